"""Observations divided by their spread, inside the agent: ``policy_kwargs=dict(normalize_observations=True)``."""

from pathlib import Path
from typing import Any

import gymnasium as gym
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
WIDE = spaces.Box(0, 2000, (3,), np.float32)


def test_numbers_are_those_of_vec_normalize() -> None:
    """After the same observations, apart from those that do not count, and from deviations below 0.01."""
    space = spaces.Box(-np.inf, np.inf, (3, 1), np.float32)
    ours: Any = NormalizingExtractor(space)
    theirs = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space, spaces.Box(-1, 1, (1,)))]))
    rng = np.random.default_rng(0)
    theirs.obs_rms.count = 0.0  # SB3 begins as if one observation of 0 and variance 1 had been seen, 1e-4 times
    for size in (1, 5, 200):
        batch = (rng.normal(size=(size, 3, 1)) * [[1], [100], [0]] + [[5], [-3], [7]]).astype(np.float32)
        theirs.obs_rms.update(batch)
        counts = th.as_tensor(rng.permutation([1.0] * size + [0.0] * 3), dtype=th.float32).unsqueeze(1)
        all = th.full((size + 3, 3, 1), 1000.0)
        all[counts[:, 0] > 0] = th.as_tensor(batch)
        ours.observe(all, counts)
        ours.train()(all)  # changes nothing
    theirs.epsilon = 1e-4  # 0.01 ** 2
    new = (rng.normal(size=(50, 3, 1)) * [[3], [3000], [0.1]] + [[5], [0], [7]]).astype(np.float32)
    found = ours(th.as_tensor(new)).numpy()
    assert np.allclose(found, theirs.normalize_obs(new)[..., 0], atol=1e-3)
    assert np.abs(found).max() == 10 and ours.count == 206


def test_it_learns_from_what_is_replayed_and_changes_nothing_when_acting(algorithm: Any) -> None:
    """Each observation of an update counts once, and those that fill up a window behind an episode's end never."""
    model = make_agent(algorithm, two_envs(), policy_kwargs=NORMALIZED, seed=0)
    seen: list[th.Tensor] = []
    update = model.update

    def recorded(batch: Any, *args: Any) -> Any:
        seen.append(th.cat([batch.observations[:1].flatten(0, 1), batch.observations[1:][batch.mask.squeeze(-1) > 0]]))
        return update(batch, *args)

    model.update = recorded
    model.learn(30)
    extractor = model.policy.world_model.encoder.features_extractor
    state = {name: value.clone() for name, value in extractor.state_dict().items()}
    x = th.cat(seen)
    assert state["count"] == len(x) < len(seen) * model.batch_size * (model.horizon + 1)
    th.testing.assert_close(state["mean"], x.mean(0), atol=1e-5, rtol=1e-5)
    th.testing.assert_close(state["std"], x.std(0, correction=0), atol=1e-5, rtol=1e-5)
    model.predict(model.get_env().reset())
    model.policy.set_training_mode(True)
    model.actor(th.full((4, 3), 50.0))
    assert all(th.equal(value, state[name]) for name, value in extractor.state_dict().items())
    acting = model.policy.active()[0].encoder.features_extractor  # of FacTDMPC the student
    th.testing.assert_close(acting.state_dict(), extractor.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_saved_with_the_agent(dtype: str, tmp_path: Path) -> None:
    """In half precision, too, in which the mean of these observations would be off by several of their deviations."""
    env = DummyVecEnv([lambda: gym.wrappers.TransformObservation(PointEnv(), lambda x: 1000 + 0.1 * x, WIDE)])
    model = make_agent(TDMPC2, env, policy_kwargs=NORMALIZED, seed=0).learn(30)
    own = model.policy.world_model.encoder.features_extractor
    model.save(tmp_path / "agent")
    save_agent(model, tmp_path / "agent.safetensors", dtype)
    observations = (1000 + 0.1 * np.random.default_rng(0).uniform(-1, 1, (20, 3))).astype(np.float32)
    for other in (TDMPC2.load(tmp_path / "agent"), load_agent(tmp_path / "agent.safetensors")):
        same: Any = other.policy.world_model.encoder.features_extractor
        assert all(th.equal(value, own.state_dict()[name]) for name, value in same.state_dict().items())
        found, expected = (m.actor.predict(observations, deterministic=True)[0] for m in (other, model))
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_agents_of_earlier_versions_see_what_they_saw() -> None:
    """They have learned with deviations down to 1e-4."""
    extractor = NormalizingExtractor(WIDE)
    state = extractor.state_dict() | {"mean": th.full((3,), 5.0), "std": th.full((3,), 1e-3)}
    x = th.tensor([[5.0, 5.001, 5.002]])
    extractor.load_state_dict(state)
    th.testing.assert_close(extractor(x), th.tensor([[0.0, 0.1, 0.2]]), atol=1e-3, rtol=0)
    del state["smallest_std"]
    extractor.load_state_dict(state)
    th.testing.assert_close(extractor(x), th.tensor([[0.0, 1.0, 2.0]]), atol=1e-3, rtol=0)
    assert "smallest_std" not in state
    del state["std"], state["mean"], state["count"]
    changed = NormalizingExtractor(WIDE)
    changed.load_state_dict(state, strict=False)
    th.testing.assert_close(changed.smallest_std, NormalizingExtractor(WIDE).smallest_std)


def test_images_and_tasks_are_left_alone() -> None:
    """Of a dict, what is not an image is normalised; of several tasks nothing."""
    space = spaces.Dict(image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (3,)))
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    model = make_agent(TDMPC2, env, "MultiInputPolicy", NORMALIZED).learn(12)
    extractor: Any = model.policy.world_model.encoder.features_extractor
    kinds = [type(part) for part in extractor.extractors]
    assert kinds[1] is NormalizingExtractor and kinds[0] is not NormalizingExtractor and extractor.extractors[1].count
    env = SpaceEnv(space["image"], spaces.Box(-1, 1, (2,)))
    for policy in ("CnnPolicy", "MlpPolicy"):
        model = make_agent(TDMPC2, env, policy, NORMALIZED).learn(12)
        assert not [part for part in model.policy.modules() if isinstance(part, NormalizingExtractor)]
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
