"""Plans are stored beside their transitions, by the methods that learn from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import BMPC, TDMPC2, TDMPCSquare
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from tests.support.agents import make_agent, two_envs

PLANNERS_OF_DATA = [TDMPCSquare, BMPC]


def store(model: Any) -> np.ndarray:
    plan = model._last_plan
    return np.zeros((2, 2, 2)) if plan is None else model.plan_to_store(plan).numpy()


@pytest.mark.parametrize("algorithm", PLANNERS_OF_DATA)
def test_plans_are_stored_beside_their_actions(algorithm: Any) -> None:
    model = make_agent(algorithm, two_envs(), learning_starts=8, gradient_steps=0)
    plans: list[np.ndarray] = []
    model.learn(20, callback=lambda local, _: plans.append(store(model)) is None)
    stored = model.replay_buffer.plans[:10]
    assert not model.replay_buffer.planned[:4].any() or algorithm is TDMPCSquare  # the seeding phase has no plan
    assert model.replay_buffer.planned[4:10].all() and not model.replay_buffer.planned[10:].any()
    np.testing.assert_array_equal(stored[4:].transpose(0, 2, 1, 3), np.stack(plans[4:]))
    assert (stored[4:, :, 1] >= model.min_std).all() and (np.abs(stored[4:, :, 0]) <= 1).all()


def test_plans_follow_their_transitions_through_wrapping_and_windows() -> None:
    """Each plan is made of its own transition's number, so that a misplaced one is seen."""
    space = spaces.Box(-1, 1, (1,), np.float32)
    buffer = PlanReplayBuffer(20, spaces.Box(-1, 1000, (1,)), space, "cpu", n_envs=2, horizon=3)
    for step in range(17):
        number = np.array([[step], [100 + step]], np.float32)
        done = np.array([step % 4 == 3, step % 5 == 4])
        buffer.add(number, number + 1, number / 1000, np.zeros(2), done, [{}, {}])
        buffer.store_plans(np.stack([number, 1 + 0 * number]))
    batch = buffer.sample(64)
    assert batch.plans is not None and batch.buffer_index is not None
    close = batch.mask[..., 0] > 0
    assert th.equal(batch.plans[0][close], batch.observations[:-1][close])
    rows, envs = batch.buffer_index
    assert th.allclose(th.from_numpy(buffer.actions[rows, envs]), batch.actions)
    buffer.store_plans(np.full((2, 1, 1), 7.0), rows[:1, 0], envs[:1, 0])
    assert (buffer.plans[rows[0, 0], envs[0, 0]] == 7).all()
    buffer.add(number, number, number / 1000, np.zeros(2), done, [{}, {}])
    assert not buffer.planned[17 % 10].any()  # the plan of what was there before is forgotten
    assert buffer.planned.sum() == 18 and np.isnan(buffer.plans[17 % 10]).all()


@pytest.mark.parametrize("algorithm", PLANNERS_OF_DATA)
def test_a_plan_that_became_nan_is_still_a_plan(algorithm: Any) -> None:
    """It must not pass for a transition without one: the loss shows it. Nobody can store it on purpose either."""
    settings = dict(reanalyze_interval=0) if algorithm is BMPC else dict(scale_threshold=0.0)
    model = make_agent(algorithm, two_envs(), **settings).learn(20)
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.replay_buffer.store_plans(np.full((2, 2, 2), np.nan))
    model.replay_buffer.plans[4:10] = np.nan
    with pytest.raises(ValueError, match="pi_loss"):
        model.train(1)


@pytest.mark.parametrize("algorithm", PLANNERS_OF_DATA)
def test_buffers_with_plans_are_saved_and_others_refused(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, two_envs()).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_agent(algorithm, two_envs())
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(other.replay_buffer.plans[:10], model.replay_buffer.plans[:10])
    np.testing.assert_array_equal(other.replay_buffer.planned[:10], model.replay_buffer.planned[:10])
    make_agent(TDMPC2, two_envs()).learn(20).save_replay_buffer(tmp_path / "plain")
    with pytest.raises(ValueError, match=f"PlanReplayBuffer of this package as {algorithm.__name__} needs it"):
        other.load_replay_buffer(tmp_path / "plain")
    make_agent(TDMPC2, two_envs()).load_replay_buffer(tmp_path / "buffer")  # more than it needs does not hurt
