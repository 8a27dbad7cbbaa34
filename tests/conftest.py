"""Fixtures and settings of all tests. The folders mirror the packages; what tests share is in ``tests/support``."""

import functools
import os
from pathlib import Path
from typing import Any

# The networks of the tests are tiny, and the workers of pytest-xdist share the cores: before PyTorch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import pytest
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_mpc.envs  # noqa: F401
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from tests.support.agents import ALGORITHMS, SMALL, SMALL_POLICY

SHORTENED = ("Pendulum-v1", "dmc/walker-walk-v0", "dmc/cartpole-swingup-v0", "dmc/cup-catch-pixels-v0")


# make test asks every class, make test-fast only the first: most of what is asked is in what they share
EACH = [pytest.param(a, marks=() if a is ALGORITHMS[0] else pytest.mark.slow, id=a.__name__) for a in ALGORITHMS]


@pytest.fixture(params=EACH)
def algorithm(request: pytest.FixtureRequest) -> type[OffPolicyAlgorithm]:
    """:return: each of the algorithm classes in turn"""
    return request.param


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[WorldModelAlgorithm]:
    """
    For scripts as users have them: an empty folder, tiny agents in place of those that they ask for, short episodes.

    :return: list that the models are added to which are trained
    """
    for name in SHORTENED:
        monkeypatch.setattr(gym.spec(name), "max_episode_steps", 20)
    settings: dict[str, Any] = dict(
        SMALL, learning_starts=50, pretrain_gradient_steps=2, policy_kwargs=dict(SMALL_POLICY, enc_dim=16)
    )
    trained: list[WorldModelAlgorithm] = []
    create, learn = WorldModelAlgorithm.__init__, WorldModelAlgorithm.learn

    @functools.wraps(create)
    def tiny(self: WorldModelAlgorithm, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **{**kwargs, **settings})

    def remember(self: WorldModelAlgorithm, *args: Any, **kwargs: Any) -> WorldModelAlgorithm:
        trained.append(self)
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(WorldModelAlgorithm, "__init__", tiny)
    monkeypatch.setattr(WorldModelAlgorithm, "learn", remember)
    monkeypatch.chdir(tmp_path)
    return trained
