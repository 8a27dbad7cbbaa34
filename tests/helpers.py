"""What several tests need."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import sb3_mpc.envs  # noqa: F401


def can_render() -> bool:
    """Whether one of MuJoCo's OpenGL backends works here."""
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


class SpacesOnlyEnv(gym.Env):
    """Environment of given spaces whose observations are random and whose rewards are zero; it never ends."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}
