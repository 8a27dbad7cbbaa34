"""``predict`` plans, carries the plan in ``state``, and is a pure function where it is deterministic."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import MBDPO
from tests.support.agents import PointEnv, assert_same_state, make_agent, observations_of, two_envs, vec


def test_predict_takes_one_observation_or_a_batch(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), learning_rate=1e-2, seed=0).learn(40)
    observations = observations_of(model.get_env(), 5)
    together, _ = model.predict(observations, deterministic=True)
    assert together.shape == (5, 2)
    alone = [model.predict(observation, deterministic=True)[0] for observation in observations]
    # Diffusion weighs standardised returns, so that rounding counts for more where all returns are nearly the same
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-3 if algorithm is MBDPO else 1e-5)
    assert len({tuple(action) for action in alone}) == 5  # an agent that looks at its observation


def test_predict_on_reset_tuple_is_refused(algorithm: Any) -> None:
    env = PointEnv()
    model = make_agent(algorithm, env)
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(env.reset())


def test_predict_of_model_and_policy_are_the_same(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv))
    observation = observations_of(model.get_env(), 2)
    first, state_1 = model.predict(observation, deterministic=True)
    second, state_2 = model.policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert_same_state(state_1, state_2)
    env = vec(lambda: PointEnv(start=0.3), lambda: PointEnv(start=-0.2))
    assert evaluate_policy(model, env, 4, warn=False) == evaluate_policy(model.policy, env, 4, warn=False)


def test_state_is_the_plan_with_one_row_for_each_environment(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), horizon=3)
    _, state = model.predict(observations_of(model.get_env(), 4), deterministic=True)
    assert isinstance(state, tuple)
    assert all(isinstance(part, np.ndarray) and part.shape[0] == 4 for part in state)
    assert state[0].shape == (4, 3, 2) and state[0].dtype == np.float32
    assert np.abs(state[0]).max() <= 1.0


def test_state_is_a_warm_start(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    observations = observations_of(model.get_env(), 3)
    cold, state = model.predict(observations, deterministic=True)
    warm, _ = model.predict(observations, state=state, deterministic=True)
    assert not np.allclose(cold, warm)  # it matters
    zero = tuple(np.zeros_like(part) for part in state)
    np.testing.assert_array_equal(model.predict(observations, state=zero, deterministic=True)[0], cold)
    # nothing stays behind
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], cold)


def test_episode_start_clears_its_row_only(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    observations = observations_of(model.get_env(), 3)
    cold, state = model.predict(observations, deterministic=True)
    warm, _ = model.predict(observations, state=state, episode_start=np.zeros(3, bool), deterministic=True)
    mixed, _ = model.predict(
        observations, state=state, episode_start=np.array([False, True, False]), deterministic=True
    )
    np.testing.assert_array_equal(mixed[[0, 2]], warm[[0, 2]])
    np.testing.assert_array_equal(mixed[1], cold[1])


def test_arrays_of_the_caller_are_left_alone(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    observations = observations_of(model.get_env(), 3)
    _, state = model.predict(observations, deterministic=True)
    start = np.array([True, False, False])
    kept = copy.deepcopy((observations, state, start))
    _, new_state = model.predict(observations, state=state, episode_start=start, deterministic=True)
    assert_same_state(kept, (observations, state, start))
    new_state[0][:] = 0.0  # a copy, not a view of something inside
    assert_same_state(kept, (observations, state, start))
    action, _ = model.predict(observations, state=state, episode_start=start, deterministic=True)
    action[:] = 0.0
    again, _ = model.predict(observations, state=state, episode_start=start, deterministic=True)
    assert np.abs(again).max() > 0


def random_states() -> tuple[Any, ...]:
    """:return: states of the global random number generators"""
    return th.random.get_rng_state().clone(), np.random.get_state()[1].copy(), np.random.get_state()[2]  # type: ignore[index]


def test_deterministic_is_a_pure_function(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), seed=0)
    observations = observations_of(model.get_env(), 3)
    before = random_states()
    actions = [model.predict(observations, deterministic=True)[0] for _ in range(3)]
    assert_same_state(before, random_states())
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    # it leaves no mark on the stochastic actions either
    twin = make_agent(algorithm, PointEnv(), seed=0)
    first, _ = model.predict(observations, deterministic=False)
    second, _ = twin.predict(observations, deterministic=False)
    np.testing.assert_array_equal(first, second)


def test_stochastic_actions_differ_and_follow_the_seed(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), seed=0)
    observations = observations_of(model.get_env(), 3)
    first = [model.predict(observations)[0] for _ in range(2)]
    assert not np.allclose(first[0], first[1])
    model.set_random_seed(0)
    th.rand(3), np.random.rand(3)  # what others draw has no influence
    second = [model.predict(observations)[0] for _ in range(2)]
    np.testing.assert_array_equal(first, second)
    model.set_random_seed(1)
    assert not np.allclose(first[0], model.predict(observations)[0])


def test_predict_keeps_no_gradients(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    model.predict(observations_of(model.get_env(), 2))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_alternating_between_environments_mixes_nothing(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    envs = [PointEnv(start=0.5), PointEnv(start=-0.5)]

    def roll(both: bool) -> list[np.ndarray]:
        used = envs if both else envs[:1]
        observations, states, actions = [env.reset()[0] for env in used], [None] * len(used), []
        for _ in range(4):
            for index, env in enumerate(used):
                action, states[index] = model.predict(observations[index], state=states[index], deterministic=True)
                observations[index] = env.step(action)[0]
                if index == 0:
                    actions.append(action)
        return actions

    np.testing.assert_array_equal(roll(both=False), roll(both=True))


def test_network_policy_acts_without_a_plan(algorithm: Any) -> None:
    model = make_agent(algorithm, two_envs()).learn(20)
    observation = observations_of(model.get_env(), 3)
    action, state = model.predict(observation, deterministic=True, use_planner=False)
    np.testing.assert_array_equal(action, model.actor.predict(observation, deterministic=True)[0])
    assert state is None and not np.allclose(action, model.predict(observation, deterministic=True)[0])
