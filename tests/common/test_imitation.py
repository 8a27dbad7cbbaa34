"""The policy network learns to act as the planner does; nothing else of the agent changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import TDMPC2, FacTDMPC
from sb3_mpc.common.imitation import imitate_planner
from sb3_mpc.envs import make_multitask
from tests.support.agents import PointEnv, make_agent, vec


@pytest.fixture
def plan_simply(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """:return: gives an agent a planner that goes to the middle; the plans of a random model are mostly noise"""

    def give(model: Any) -> None:
        def predict(observations: np.ndarray, *args: Any, **kwargs: Any) -> Any:
            return model.policy.unscale_action(np.clip(-3 * observations[:, :2], -1, 1)), None

        monkeypatch.setattr(model, "predict", predict)

    return give


def test_the_network_acts_as_the_planner(algorithm: Any, plan_simply: Callable[[Any], None]) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv), seed=0)
    model.learn(24)
    plan_simply(model)
    prior = {id(p) for p in model.actor.prior_net.parameters()}
    rest = {name: p.clone() for name, p in model.policy.named_parameters() if id(p) not in prior}
    differences = imitate_planner(model, 160, rounds=2, gradient_steps=400, batch_size=64, learning_rate=0.01)
    assert differences[1] < 0.5 * differences[0]
    named = dict(model.policy.named_parameters())
    assert len(rest) > 8 and all(th.equal(value, named[name]) for name, value in rest.items())
    model.learn(8, reset_num_timesteps=False)


def test_a_student_learns_from_its_expert(plan_simply: Callable[[Any], None]) -> None:
    env = vec(PointEnv)
    expert, model = make_agent(TDMPC2, env, seed=0), make_agent(FacTDMPC, env, seed=0)
    model.learn(24)
    plan_simply(expert)
    first, second = imitate_planner(model, 160, rounds=2, gradient_steps=400, learning_rate=0.01, teacher=expert)
    assert second < 0.5 * first
    with pytest.raises(ValueError, match="teacher's observation_space, .* use a teacher that was trained"):
        imitate_planner(model, teacher=make_agent(TDMPC2, "Pendulum-v1"))


def test_several_tasks() -> None:
    env = make_multitask([PointEnv, lambda: PointEnv(length=5)])
    model = make_agent(TDMPC2, env, "MultitaskPolicy", seed=0)
    model.learn(16)
    assert len(imitate_planner(model, 8, rounds=2, gradient_steps=3)) == 2


def test_bad_arguments() -> None:
    model = make_agent(TDMPC2, vec(PointEnv, PointEnv))
    with pytest.raises(ValueError, match="total_timesteps=7 is less than .* use more, or fewer rounds"):
        imitate_planner(model, 7, rounds=4)
    with pytest.raises(ValueError, match="batch_size=0 is out of range"):
        imitate_planner(model, batch_size=0)
    model.env = None
    with pytest.raises(ValueError, match="needs an environment .* model.set_env"):
        imitate_planner(model)
