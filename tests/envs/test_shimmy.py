"""Environments that Shimmy registers itself train with our classes as they are."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation

from sb3_mpc.envs.gl import set_headless_backend
from tests.support.agents import ALGORITHMS, make_agent

set_headless_backend()
pytest.importorskip("dm_control")
import shimmy

gym.register_envs(shimmy)


def make(task: str, policy: str) -> gym.Env:
    env = gym.make(f"dm_control/{task}-v0")
    return FlattenObservation(env) if policy == "MlpPolicy" else env


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training(algorithm, policy, tmp_path):
    """The walker has a number, its height, among its observations; all are float64, and so are the actions."""
    env = make("walker-walk", policy)
    model = make_agent(algorithm, env, policy, buffer_size=100).learn(12)
    assert model._n_updates > 0
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=env)
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
    updates = model._n_updates
    assert loaded.learn(12, reset_num_timesteps=False)._n_updates > updates


def test_episodes_end_truncated_as_those_of_dm_control():
    env = make("cartpole-balance", "MlpPolicy")
    model = make_agent(ALGORITHMS[0], env, buffer_size=1000, learning_starts=1000, gradient_steps=0).learn(1000)
    assert model.ep_info_buffer[0]["l"] == 1000
    buffer = model.replay_buffer
    assert buffer.dones.sum() == buffer.timeouts.sum() == 1


def test_empty_observations_are_refused():
    """Two kinds of sensors that a humanoid of dm_control's locomotion does not have."""
    with pytest.raises(ValueError, match="observation 'walker/actuator_activation' is empty.*FlattenObservation"):
        make_agent(ALGORITHMS[0], make("CmuHumanoidGoToTarget", "MultiInputPolicy"), "MultiInputPolicy")
    make_agent(ALGORITHMS[0], make("CmuHumanoidGoToTarget", "MlpPolicy"), buffer_size=100).learn(12)
