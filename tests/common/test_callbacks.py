"""The overestimation of values is measured during training, against returns, and does not disturb it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.common.callbacks import OverestimationCallback
from tests.support.agents import PointEnv, assert_same_state, make_agent, value_of, vec


class Steady(gym.RewardWrapper):
    """Reward 1 in each of a number of steps."""

    def __init__(self, length: int) -> None:
        super().__init__(PointEnv(length, start=0.2))

    def reward(self, reward: Any) -> float:
        return 1.0


def test_overestimation_compares_values_with_discounted_returns(algorithm: Any) -> None:
    callback = OverestimationCallback(vec(lambda: Steady(5), lambda: Steady(3)), eval_freq=10, n_eval_episodes=5)
    model = make_agent(algorithm, PointEnv(), gamma=0.9).learn(30, callback=callback)
    assert [steps for steps, *_ in callback.results] == [10, 20, 30]
    # Two episodes of five steps, three of three
    expected = (2 * sum(0.9**t for t in range(5)) + 3 * sum(0.9**t for t in range(3))) / 5
    assert [mc_return for *_, mc_return in callback.results] == pytest.approx([expected] * 3)
    value, _ = callback.measure()
    assert value == pytest.approx(value_of(model, Steady(3).reset()[0]), rel=1e-4, abs=1e-5)
    logged = model.logger.name_to_value
    assert logged["overestimation/relative"] == pytest.approx((callback.results[-1][1] - expected) / expected)


def test_overestimation_does_not_disturb_training() -> None:
    plain, watched = (make_agent(TDMPC2, PointEnv(), seed=0) for _ in range(2))
    plain.learn(30)
    watched.learn(30, callback=OverestimationCallback(PointEnv(), eval_freq=7, n_eval_episodes=2))
    assert_same_state(plain.get_parameters(), watched.get_parameters())


def test_overestimation_with_normalised_observations() -> None:
    callback = OverestimationCallback(VecNormalize(vec(PointEnv), training=False), eval_freq=20, n_eval_episodes=1)
    model = make_agent(TDMPC2, VecNormalize(vec(PointEnv))).learn(20, callback=callback)
    np.testing.assert_array_equal(callback.eval_env.obs_rms.mean, model.get_env().obs_rms.mean)


def test_overestimation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n_eval_episodes=0 must be at least 1"):
        OverestimationCallback(PointEnv(), n_eval_episodes=0)
