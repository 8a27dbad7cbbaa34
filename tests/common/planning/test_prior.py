"""Acting without planning: the policy prior in place of a planner."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC, TDMPC2, TDMPCSquare
from sb3_mpc.agents import load_agent, save_agent
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.planning.prior import PriorPlanner
from tests.support.agents import make_agent, observations_of, two_envs

WITHOUT = dict(planner_class=PriorPlanner)


@pytest.mark.parametrize("method", [TDMPC2, TDMPCSquare, BMPC])
def test_training_and_predictions_plan_nothing(method: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any) -> Any:
        raise AssertionError("a sequence was evaluated")

    monkeypatch.setattr(MPPIPlanner, "evaluate", fail)
    settings = dict(reanalyze_interval=0) if method is BMPC else {}  # which plans, whoever acts
    model = make_agent(method, two_envs(), policy_kwargs=WITHOUT, learning_rate=1e-2, **settings).learn(40)
    observations = observations_of(model, 5)
    action, state = model.predict(observations, deterministic=True)
    expected = model.actor.predict(observations, deterministic=True)[0]
    np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(observations, state, deterministic=True)[0], action)
    assert np.std([model.predict(observations)[0] for _ in range(10)], axis=0).min() > 0
    save_agent(model, tmp_path / "agent")
    again = load_agent(tmp_path / "agent.safetensors")
    assert isinstance(again.policy.planner, PriorPlanner)
    np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], action)


def test_stored_plan_is_the_gaussian_of_the_prior() -> None:
    """As in the official code of TD-M(PC)², which stores mode and standard deviation where the network acts."""
    model = make_agent(TDMPCSquare, two_envs(), policy_kwargs=WITHOUT).learn(16)
    world = model.policy.world_model
    plan, _ = model.policy.plan_batch(observations_of(model, 4))
    z = world.encode(th.as_tensor(observations_of(model, 4)))
    mean, log_std = world.prior(z)
    mode, std = model.plan_to_store(plan)
    th.testing.assert_close(mode, th.tanh(mean).detach())
    th.testing.assert_close(std, log_std.exp().detach())
    assert not th.equal(plan.action, mode)
