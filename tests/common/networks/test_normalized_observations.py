"""Observations divided by their spread, inside the agent: ``policy_kwargs=dict(normalize_observations=True)``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.common.networks.encoders import NormalizingExtractor
from sb3_mpc.envs import make_multitask
from tests.support.agents import PointEnv, SpaceEnv, make_agent, two_envs

NORMALIZED = dict(normalize_observations=True)


def test_numbers_are_those_of_vec_normalize() -> None:
    """After the same observations; another process of training than SB3's, in which they come once."""
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    ours: Any = NormalizingExtractor(space)
    theirs = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space, spaces.Box(-1, 1, (1,)))]))
    rng = np.random.default_rng(0)
    theirs.obs_rms.count = 0.0  # SB3 begins as if one observation of 0 and variance 1 had been seen, 1e-4 times
    for size in (1, 5, 200):
        batch = (rng.normal(size=(size, 3)) * [1, 100, 0] + [5, -3, 7]).astype(np.float32)
        ours.train()
        ours(th.as_tensor(batch))
        theirs.obs_rms.update(batch)
    ours.eval()
    new = (rng.normal(size=(50, 3)) * [3, 3000, 0.1] + [5, 0, 7]).astype(np.float32)
    found = ours(th.as_tensor(new)).numpy()
    assert np.allclose(found, theirs.normalize_obs(new), atol=1e-3)
    assert np.abs(found).max() == 10 and ours.count == 206


def test_it_learns_from_what_is_replayed_and_changes_nothing_when_acting(algorithm: Any) -> None:
    model = make_agent(algorithm, two_envs(), policy_kwargs=NORMALIZED, seed=0).learn(30)
    extractor = model.policy.world_model.encoder.features_extractor
    state = {name: value.clone() for name, value in extractor.state_dict().items()}
    assert state["count"] > 0
    seen = model.replay_buffer.sample(500).observations.reshape(-1, 3)
    assert th.allclose(state["mean"], seen.mean(0), atol=0.5) and th.allclose(state["std"], seen.std(0), rtol=0.5)
    model.predict(model.get_env().reset())
    model.actor.predict(model.get_env().reset())
    assert all(th.equal(value, state[name]) for name, value in extractor.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_saved_with_the_agent(dtype: str, tmp_path: Path) -> None:
    model = make_agent(TDMPC2, two_envs(), policy_kwargs=NORMALIZED, seed=0).learn(30)
    own = model.policy.world_model.encoder.features_extractor
    model.save(tmp_path / "agent")
    save_agent(model, tmp_path / "agent.safetensors", dtype)
    loaded = TDMPC2.load(tmp_path / "agent"), load_agent(tmp_path / "agent.safetensors")
    for other, tolerance in zip(loaded, (0.0, 1e-3), strict=True):
        same: Any = other.policy.world_model.encoder.features_extractor
        assert th.allclose(same.std, own.std, rtol=tolerance) and same.count == own.count
        assert not same.training


def test_images_and_tasks_are_left_alone() -> None:
    """Of a dict, what is not an image is normalised; of several tasks nothing."""
    space = spaces.Dict(image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (3,)))
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    model = make_agent(TDMPC2, env, "MultiInputPolicy", NORMALIZED).learn(12)
    extractor: Any = model.policy.world_model.encoder.features_extractor
    kinds = [type(part) for part in extractor.extractors]
    assert kinds[1] is NormalizingExtractor and kinds[0] is not NormalizingExtractor and extractor.extractors[1].count
    env = SpaceEnv(space["image"], spaces.Box(-1, 1, (2,)))
    make_agent(TDMPC2, env, "CnnPolicy", NORMALIZED).learn(12)
    tasks = make_multitask([PointEnv, lambda: PointEnv(5)])
    model = make_agent(TDMPC2, tasks, "MultitaskPolicy", NORMALIZED).learn(12)
    assert not [part for part in model.policy.modules() if isinstance(part, NormalizingExtractor)]


def test_an_own_extractor_gets_plain_observations() -> None:
    kwargs = dict(NORMALIZED, features_extractor_class=FlattenExtractor)
    model = make_agent(TDMPC2, two_envs(), policy_kwargs=kwargs)
    assert type(model.policy.world_model.encoder.features_extractor) is FlattenExtractor


def test_compiled_plans_and_updates_are_the_same() -> None:
    found = []
    for compile in (False, True):
        model = make_agent(TDMPC2, two_envs(), policy_kwargs=NORMALIZED, seed=0, compile=compile).learn(16)
        found.append(model.policy.world_model.encoder.features_extractor.state_dict())
    for name, value in found[0].items():
        assert th.allclose(value.double(), found[1][name].double(), rtol=1e-2, atol=1e-2), name
