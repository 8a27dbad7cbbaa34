"""What is measured during training is what it says, and does not disturb it."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import BMPC, MBDPO, TDMPC2
from sb3_mpc.common.callbacks import (
    LatentTrajectoryCallback,
    OverestimationCallback,
    PlannerGapCallback,
    SearchMismatchCallback,
    TaskEmbeddingCallback,
)
from sb3_mpc.common.callbacks.latents import to_plane
from sb3_mpc.common.callbacks.planner import SEED
from sb3_mpc.common.planning.plan import Plan
from tests.common.policies import test_multitask as multitask
from tests.support.agents import PointEnv, assert_same_state, make_agent, training_alone, two_envs, value_of, vec


class Steady(gym.RewardWrapper):
    """Reward 1 in each of a number of steps."""

    def __init__(self, length: int) -> None:
        super().__init__(PointEnv(length, start=0.2))

    def reward(self, reward: Any) -> float:
        return 1.0


class SteadyTask(multitask.TwoTasksEnv):
    """Reward 1 in each step of one task."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest  # type: ignore[return-value]


def test_overestimation_compares_values_with_discounted_returns(algorithm: Any) -> None:
    callback = OverestimationCallback(vec(lambda: Steady(5), lambda: Steady(3)), eval_freq=10, n_eval_episodes=5)
    model = make_agent(algorithm, PointEnv(), gamma=0.9, **training_alone(algorithm)).learn(30, callback=callback)
    assert [row["timesteps"] for row in callback.results] == [10, 20, 30]
    # Two episodes of five steps, three of three
    expected = (2 * sum(0.9**t for t in range(5)) + 3 * sum(0.9**t for t in range(3))) / 5
    assert [row["mc_return"] for row in callback.results] == pytest.approx([expected] * 3)
    value = callback.measure()["value"]
    assert value == pytest.approx(value_of(model, Steady(3).reset()[0]), rel=1e-4, abs=1e-5)
    logged = model.logger.name_to_value
    assert logged["overestimation/relative"] == pytest.approx((callback.results[-1]["value"] - expected) / expected)


def test_overestimation_has_the_discount_of_the_task() -> None:
    model = multitask.make_agent()
    for task, gamma in enumerate(multitask.GAMMAS):
        callback = OverestimationCallback(SteadyTask(task), n_eval_episodes=1)
        callback.init_callback(model)
        assert callback.record()["mc_return"] == pytest.approx(sum(gamma**t for t in range(10)))


def test_measurements_do_not_disturb_training(algorithm: Any, tmp_path: Path) -> None:
    """Each writes its table and its picture."""
    plain, watched = (make_agent(algorithm, PointEnv(), seed=0) for _ in range(2))
    plain.learn(30)
    settings: dict[str, Any] = dict(eval_freq=10, folder=tmp_path)
    callbacks = [
        OverestimationCallback(PointEnv(), n_eval_episodes=2, **settings),
        PlannerGapCallback(PointEnv(), n_eval_episodes=1, **settings),
        SearchMismatchCallback(n_states=4, **settings),
        LatentTrajectoryCallback(PointEnv(), every=3, **settings),
    ]
    watched.learn(30, callback=callbacks)
    assert_same_state(plain.get_parameters(), watched.get_parameters())
    for callback in callbacks:
        with (tmp_path / f"{callback.name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["timesteps"] for row in rows] == ["10", "20", "30"]
        for name, value in callback.results[-1].items():
            assert np.isfinite(value) and float(rows[-1][name]) == value
            assert name == "timesteps" or watched.logger.name_to_value[f"{callback.name}/{name}"] == value
        assert (tmp_path / f"{callback.name}.png").read_bytes().startswith(b"\x89PNG")
    callbacks[-1].record()  # after the distillation, if there is one, the student acts


def test_overestimation_with_normalised_observations() -> None:
    callback = OverestimationCallback(VecNormalize(vec(PointEnv), training=False), eval_freq=20, n_eval_episodes=1)
    model = make_agent(TDMPC2, VecNormalize(vec(PointEnv))).learn(20, callback=callback)
    np.testing.assert_array_equal(callback.eval_env.obs_rms.mean, model.get_env().obs_rms.mean)


def test_measurements_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="n_eval_episodes=0 must be at least 1"):
        OverestimationCallback(PointEnv(), n_eval_episodes=0)
    with pytest.raises(ValueError, match="eval_freq=0 must be at least 1"):
        LatentTrajectoryCallback(PointEnv(), eval_freq=0)
    with pytest.raises(ValueError, match="n_states=0 must be at least 1"):
        SearchMismatchCallback(n_states=0)


def test_gap_between_planner_and_policy() -> None:
    """Returns in the same episodes: with a planner that does nothing, the prior is better by what it gets."""
    model = make_agent(TDMPC2, PointEnv(), seed=0)
    model.policy.world_model.prior_net[-1].bias.data[:2] = 3.0  # the prior pushes as hard as it can
    model.policy.planner.plan = lambda z, mean, noise: still(z, mean)
    callback = PlannerGapCallback(vec(PointEnv), n_eval_episodes=3)
    callback.init_callback(model)
    found, returns = callback.record(), np.zeros(2)
    env = vec(PointEnv, seed=SEED)
    for index, action in enumerate((np.zeros((1, 2)), np.tanh([[3.0, 3.0]]))):
        env.seed(SEED)
        env.reset()
        for _ in range(30):
            returns[index] += env.step(model.policy.to_env_actions(action))[1][0] / 3
    assert [found["planner"], found["policy"]] == pytest.approx(returns, rel=1e-2)
    assert found["gap"] == pytest.approx(found["planner"] - found["policy"])


def still(z: th.Tensor, mean: th.Tensor, action: float = 0.0) -> Plan:
    """:return: a plan of one action throughout"""
    first, rest = th.full_like(mean[:, 0], action), th.full_like(mean, action)
    return Plan(first, rest, th.ones_like(rest), first, th.zeros(len(z)))


@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC, MBDPO], ids=lambda cls: cls.__name__)
def test_mismatch_of_planner_and_policy(algorithm: Any) -> None:
    model = make_agent(algorithm, two_envs(True), gamma=0.9, learning_starts=100, seed=0)
    model.learn(20)  # without an update: rewards and values are zero
    world, planner, callback = model.policy.world_model, model.policy.planner, SearchMismatchCallback(n_states=64)
    callback.init_callback(model)
    model.replay_buffer.seed(SEED)
    batch = model.replay_buffer.sample(64)
    world.prior_net[-1].weight.data.zero_()
    world.prior_net[-1].bias.data.zero_()
    planner.plan = lambda z, mean, noise: still(z, mean, 0.5)
    found = callback.measure()
    assert found["action_drift"] == pytest.approx(0.5)
    assert found["data_drift"] == pytest.approx((batch.actions[0] - 0.5).square().mean().sqrt().item(), rel=1e-5)
    error = batch.rewards[0].abs().mean().item() if world.values_actions else 0.0
    assert found["td_error"] == found["cross_td_error"] == pytest.approx(error, abs=1e-5)
    assert found["improvement"] == pytest.approx(0.0, abs=1e-5)
    # Rewards of 1 for the planner's actions and 2 as the value of everything
    world.reward = lambda z, a: world.two_hot.encode((a[..., :1] > 0.25).float()).clamp(min=1e-9).log()
    world.value = lambda z, *args, **kwargs: world.two_hot.encode(th.full((2, *z.shape[:-1], 1), 2.0)).clamp(1e-9).log()
    found = callback.measure()
    assert found["improvement"] == pytest.approx(1 + 0.9, rel=1e-4)
    targets = batch.rewards[0] + 0.9 * 2 * (1 - batch.terminated[0]) - 2
    errors = targets.abs().mean().item() if world.values_actions else 0.2
    assert found["td_error"] == pytest.approx(errors, rel=1e-4)
    assert found["cross_td_error"] == pytest.approx(errors if world.values_actions else 0.8, rel=1e-4)


def test_cross_td_error_has_the_next_action_of_the_planner() -> None:
    model = make_agent(TDMPC2, PointEnv(), gamma=0.9, learning_starts=100, seed=0)
    model.learn(20)
    world, callback = model.policy.world_model, SearchMismatchCallback(n_states=16)
    callback.init_callback(model)
    model.replay_buffer.seed(SEED)
    batch = model.replay_buffer.sample(16)
    world.prior_net[-1].weight.data.zero_()
    model.policy.planner.plan = lambda z, mean, noise: still(z, mean, 0.5)
    world.value = lambda z, a, *args, **kwargs: world.two_hot.encode(a[..., :1].expand(2, *z.shape[:-1], 1)).log()
    found, value = callback.measure(), batch.actions[0, :, :1]
    for name, action in (("td_error", 0.0), ("cross_td_error", 0.5)):
        error = batch.rewards[0] + 0.9 * action - value
        assert found[name] == pytest.approx(error.abs().mean().item(), rel=1e-3)


def test_mismatch_of_an_empty_buffer_is_not_a_number() -> None:
    callback = SearchMismatchCallback()
    callback.init_callback(make_agent(TDMPC2, PointEnv()))
    assert all(np.isnan(value) for value in callback.measure().values())


def test_task_embeddings(tmp_path: Path) -> None:
    model, callback = multitask.make_agent(), TaskEmbeddingCallback(names=["three", "one"], folder=tmp_path)
    model.policy.world_model.task_embedding.weight.data.copy_(th.tensor([[0.6, 0, 0, 0], [0, 0.8, 0, 0]]))
    callback.init_callback(model)
    assert callback.record() == pytest.approx(dict(nearest=1.0, spread=1.0))
    assert (tmp_path / "task_embeddings.png").read_bytes().startswith(b"\x89PNG")
    callback.init_callback(make_agent(TDMPC2, PointEnv()))
    with pytest.raises(ValueError, match="MultitaskPolicy"):
        callback.record()


def test_points_in_the_plane() -> None:
    """Principal components keep distances within a plane."""
    flat = (
        np.random.default_rng(0).normal(size=(8, 2)) @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0][:2]
    )
    plane, method = to_plane(flat, "pca")
    assert method == "PCA"
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, plane)]
    np.testing.assert_allclose(*distances, rtol=1e-6)
    with pytest.raises(ValueError, match="unknown"):
        to_plane(flat, "umap")
    with pytest.raises(ImportError):
        to_plane(flat[:3], "tsne")
    assert to_plane(flat[:1])[0].shape == (1, 2)


def test_latent_trajectory() -> None:
    """Of a model that predicts that nothing changes, and whose latent state is the observation."""
    model = make_agent(TDMPC2, PointEnv(6, start=0.2), seed=0)
    world, callback = model.policy.world_model, LatentTrajectoryCallback(PointEnv(6, start=0.2), every=2)
    world.encode = lambda observation, shift=None: th.nn.functional.pad(observation, (0, 13))
    world.next = lambda z, action: z
    callback.init_callback(model)
    found = callback.record()
    assert callback.states.shape == (6, 16) and callback.imagined.shape == (3, 3, 16)
    np.testing.assert_allclose(callback.states[0, :3], [0.2, 0.2, 0.0], rtol=1e-6)
    variance = callback.states.var(0).sum()
    for k in (1, 2):
        change = np.square(callback.states[k:] - callback.states[:-k]).sum(1).mean()
        assert found[f"error_{k}"] == pytest.approx(change / variance, rel=1e-5)
    assert found.keys() == {"error_1", "error_2"}
