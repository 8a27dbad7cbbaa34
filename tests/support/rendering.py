"""Tests that draw run where one of MuJoCo's OpenGL backends works."""

import gymnasium as gym
import pytest

import sb3_mpc.envs  # noqa: F401  (registers the ids)


def can_render() -> bool:
    """:return: whether an OpenGL backend works here"""
    try:
        gym.make("dmc/cartpole-swingup-v0").unwrapped.frame(16, 16)  # type: ignore[attr-defined]
    except ModuleNotFoundError:
        return False
    except RuntimeError as error:
        if "OpenGL" not in str(error):
            raise
        return False
    return True


needs_gl = pytest.mark.skipif(not can_render(), reason="no OpenGL backend works on this machine")
