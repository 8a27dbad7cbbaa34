"""A model that has diverged: no action is taken, and the message says what is NaN and since when."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2, FacTDMPC
from tests.support.agents import PointEnv, SpaceEnv, assert_one_clear_sentence, make_agent, two_envs, vec

# what becomes NaN -> the network, and what the plan then lacks
PARTS = {
    "encoder": "latent state",
    "prior_net": "policy prior",
    "reward_head": "estimated return",
    "dynamics": "estimated return",
    "q_ensemble": "estimated return",
}


def poison(model: Any, network: str) -> None:
    """
    :param model: agent
    :param network: part of its world model, one parameter of which becomes NaN
    """
    with th.no_grad():
        next(getattr(model.policy.world_model, network).parameters()).view(-1)[0] = np.nan


@pytest.mark.parametrize("network", PARTS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_nan_never_acts(algorithm: Any, network: str, deterministic: bool) -> None:
    model = make_agent(algorithm, two_envs())
    poison(model, network)
    with pytest.raises(ValueError) as error:
        model.predict(model.get_env().reset(), deterministic=deterministic)
    assert_one_clear_sentence(error.value, PARTS[network], network, "no action was taken", "load an earlier checkpoint")


@pytest.mark.parametrize("network", PARTS)
def test_nan_stops_training_before_the_next_step(algorithm: Any, network: str) -> None:
    env = PointEnv(100)
    model = make_agent(algorithm, env, gradient_steps=0)
    with pytest.raises(ValueError) as error:
        model.learn(40, callback=lambda local, _: model.num_timesteps != 20 or poison(model, network) is None)
    assert_one_clear_sentence(error.value, network, r"at step 20\b", r"after 0 updates")
    assert env.steps == 20


def test_nan_of_the_termination_head_never_acts(algorithm: Any) -> None:
    """It would compare as "never ends"."""
    model = make_agent(algorithm, PointEnv(), episodic=True)
    poison(model, "termination_head")
    with pytest.raises(ValueError) as error:
        model.predict(np.zeros(3, np.float32))
    assert_one_clear_sentence(error.value, "estimated return", "termination_head", "no action was taken")


def test_nan_never_acts_without_planning(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    poison(model, "prior_net")
    for act in (lambda observation: model.predict(observation, use_planner=False), model.actor.predict):
        with pytest.raises(ValueError) as error:
            act(np.zeros(3, np.float32))
        assert_one_clear_sentence(error.value, "policy prior", "no action was taken", "load an earlier checkpoint")


def test_a_student_that_diverged_does_not_act() -> None:
    model = make_agent(FacTDMPC, PointEnv()).learn(10)
    assert model.policy.distilled
    with th.no_grad():
        for parameter in model.policy.student.parameters():
            parameter.fill_(np.nan)
    with pytest.raises(ValueError) as error:
        model.predict(np.zeros(3, np.float32))
    assert_one_clear_sentence(error.value, "latent state", "no action was taken", "load an earlier checkpoint")


def test_losses_are_looked_at_in_the_burst_after_seeding(algorithm: Any) -> None:
    """At least every hundred updates, and not after a thousand of them; without a look at each."""
    model = make_agent(algorithm, PointEnv(), learning_starts=10, pretrain_gradient_steps=1000)
    updates = 0
    draw = model.draw_noise

    def count(batch_size: int) -> Any:
        nonlocal updates
        updates += 1
        if updates == 12:
            poison(model, "dynamics")
        return draw(batch_size)

    model.draw_noise = count
    with pytest.raises(ValueError) as error:
        model.learn(20)
    assert 13 < updates <= 112 and model.num_timesteps == 11
    assert_one_clear_sentence(error.value, "consistency_loss", "NaN or infinite", rf"\b{updates}\b", "checkpoint")


@pytest.mark.parametrize(("value", "words"), [(1e30, "VecNormalize"), (1e300, "VecNormalize"), (np.inf, "check the")])
@pytest.mark.parametrize("normalized", [False, True])
def test_observations_that_no_network_can_read(value: float, words: str, normalized: bool) -> None:
    """Also those that become infinite in single precision, and those that ``VecNormalize`` makes NaN."""
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    env: Any = vec(lambda: SpaceEnv(box, spaces.Box(-1, 1, (1,))))
    inner = env.envs[0]
    step, count = inner.step, 0

    def spoiled(action: Any) -> Any:
        nonlocal count
        observation, *rest = step(action)
        count += 1
        return (np.array([0.0, value]) if count == 5 else observation), *rest

    inner.step = spoiled
    model = make_agent(TDMPC2, VecNormalize(env) if normalized else env)
    with pytest.raises(ValueError) as error, np.errstate(all="ignore"):
        model.learn(20)
    assert_one_clear_sentence(error.value, "observation of environment 0", rf"is {value}".replace("+", r"\+"), words)
    assert model.num_timesteps == 5
    if not normalized:
        with pytest.raises(ValueError, match="observation given to predict"):
            model.predict(np.array([value, 0.0]))


@pytest.mark.parametrize("rate", [1e6, 1e20])
def test_steps_that_are_far_too_large(rate: float) -> None:
    """Named before another action is taken, and not when all is lost."""
    model = make_agent(TDMPC2, PointEnv(), learning_rate=lambda left: 1e-3 if left == 1 else rate)
    with pytest.raises(ValueError) as error:
        model.learn(30)
    assert_one_clear_sentence(error.value, "Training has diverged", "has reached", "lower learning_rate")
    assert model.num_timesteps < 12
    with pytest.raises(ValueError, match="learning_rate=.* is out of range"):
        make_agent(TDMPC2, PointEnv(), learning_rate=rate)


def test_predict_in_a_thread_while_the_first_termination_appears() -> None:
    model = make_agent(TDMPC2, PointEnv())
    size = len(model.policy.world_model._modules)
    model.policy.enable_termination()
    assert len(model.policy.world_model._modules) == size  # nobody who goes through them is disturbed
    model.policy.disable_termination()
    assert len(model.policy.world_model._modules) == size
