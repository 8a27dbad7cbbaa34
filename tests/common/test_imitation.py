"""A policy network learns to act as the planner does; the agent does not change."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.common.imitation import imitate_planner
from sb3_mpc.envs import make_multitask
from tests.support.agents import PointEnv, make_agent, vec


def test_the_network_acts_as_the_planner(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv), seed=0)
    model.learn(24)

    def planner(observations: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        """The plans of a random model are mostly noise: this one goes to the middle."""
        return model.policy.unscale_action(np.clip(-3 * observations[:, :2], -1, 1)), None

    monkeypatch.setattr(model, "predict", planner)
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    policy = imitate_planner(model, 160, rounds=2, gradient_steps=400, batch_size=64, learning_rate=0.01)
    assert all(th.equal(value, before[name]) for name, value in model.policy.named_parameters())
    observations = np.random.default_rng(0).uniform(-1, 1, (64, 3)).astype(np.float32)
    wanted = planner(observations)[0]
    errors = [np.abs(p.predict(observations, deterministic=True)[0] - wanted).mean() for p in (policy, model.actor)]
    assert errors[0] < 0.5 * errors[1]
    mean, _ = evaluate_policy(policy, model.get_env(), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)
    model.actor.load_state_dict(policy.state_dict())
    assert np.array_equal(
        model.actor.predict(observations, deterministic=True)[0], policy.predict(observations, deterministic=True)[0]
    )


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    """Statistics of the observations are the agent's, and no transition joins two places of the environment."""
    env = VecNormalize(vec(PointEnv))
    model = make_agent(TDMPC2, env, seed=0)
    model.learn(15)  # in the middle of an episode
    before = env.obs_rms.mean.copy(), env.obs_rms.count
    imitate_planner(model, 8, rounds=2, gradient_steps=1)
    assert np.array_equal(env.obs_rms.mean, before[0]) and env.obs_rms.count == before[1] and env.training
    model.learn(1, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer.observations[15, 0, 2] == 0, "the first step of an episode"


def test_several_tasks() -> None:
    env = make_multitask([PointEnv, lambda: PointEnv(length=5)])
    model = make_agent(TDMPC2, env, "MultitaskPolicy", seed=0)
    model.learn(16)
    policy = imitate_planner(model, 8, rounds=2, gradient_steps=3)
    actions, _ = policy.predict(env.reset(), deterministic=True)
    assert actions.shape == (2, 2)


def test_bad_arguments() -> None:
    model = make_agent(TDMPC2, vec(PointEnv, PointEnv))
    with pytest.raises(ValueError, match="total_timesteps=7 is less than .* use more, or fewer rounds"):
        imitate_planner(model, 7, rounds=4)
    with pytest.raises(ValueError, match="batch_size=0 is out of range"):
        imitate_planner(model, batch_size=0)
    model.env = None
    with pytest.raises(ValueError, match="needs an environment .* model.set_env"):
        imitate_planner(model)
