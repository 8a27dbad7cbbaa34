"""``learn`` makes the updates asked for, acts with a warm start that follows the episodes, and repeats itself."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_mpc import TDMPC2
from tests.support.agents import PointEnv, Recorder, SpaceEnv, assert_same_state, make_agent, observations_of, vec

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("n_envs", "steps", "settings", "updates"),
    [
        (1, 20, dict(learning_starts=8), 12),
        (1, 20, dict(learning_starts=8, train_freq=4, gradient_steps=3), 9),
        (1, 20, dict(learning_starts=0, train_freq=(4, "step"), gradient_steps=-1), 20),
        (2, 20, dict(learning_starts=8, gradient_steps=-1), 12),
        (2, 20, dict(learning_starts=8), 6),
        (1, 20, dict(learning_starts=0, train_freq=(1, "episode"), gradient_steps=-1), 20),
        (1, 20, dict(learning_starts=8, gradient_steps=0), 0),
        (1, 20, dict(learning_starts=20), 0),
        (1, 20, dict(learning_starts=8, pretrain_gradient_steps=5), 17),
    ],
)
def test_as_many_updates_as_the_arguments_say(
    algorithm: Any, n_envs: int, steps: int, settings: dict[str, Any], updates: int
) -> None:
    model = make_agent(algorithm, vec(*[PointEnv] * n_envs), **settings)
    model.learn(steps)
    assert model.num_timesteps == steps
    assert model._n_updates == updates
    if updates > 0:
        assert model.logger.name_to_value["train/n_updates"] == updates
    # the burst at the end of seeding comes once
    model.learn(4, reset_num_timesteps=False)
    extra = settings.get("gradient_steps", 1)
    if "pretrain_gradient_steps" in settings:
        assert model._n_updates == updates + 4 * extra


def test_automatic_burst_only_with_automatic_learning_starts(algorithm: Any) -> None:
    assert inspect.signature(algorithm.__init__).parameters["pretrain_gradient_steps"].default == "auto"
    model = make_agent(algorithm, gym.wrappers.TimeLimit(PointEnv(10**9), 50), learning_starts="auto", train_freq=20)
    assert model.learning_starts == model.pretrain_gradient_steps == 1000
    model.learn(1000)
    assert model._n_updates == 0
    model.pretrain_gradient_steps = 30  # the paper's number would take too long here
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates == 31


def test_actions_are_uniform_before_learning_starts(algorithm: Any) -> None:
    env = Recorder(PointEnv())
    model = make_agent(algorithm, env, learning_starts=200, seed=3).learn(200)
    model.action_space.seed(3)
    expected = [model.action_space.sample() for _ in range(200)]
    np.testing.assert_allclose([action for _, action, *_ in env.log], expected, atol=1e-6)


def test_action_noise_is_added(algorithm: Any) -> None:
    noise = NormalActionNoise(np.full(2, 10.0), np.zeros(2))  # so large that every action is at its bound
    env = Recorder(PointEnv())
    make_agent(algorithm, vec(lambda: env, PointEnv), action_noise=noise, learning_starts=0).learn(8)
    np.testing.assert_allclose([action for _, action, *_ in env.log], [[2.0, 3.0]] * 4, atol=1e-6)


def watch_plans(model: Any, monkeypatch: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    :param model: agent
    :param monkeypatch: pytest's
    :return: list that grows by the warm start and the mean of every plan, both ``[n_envs, H, A]``
    """
    plans, plan = [], model.policy.planner.plan

    def spy(z: th.Tensor, prev_mean: th.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = plan(z, prev_mean, *args, **kwargs)
        plans.append((prev_mean.numpy().copy(), result.mean.numpy().copy()))
        return result

    monkeypatch.setattr(model.policy.planner, "plan", spy)
    return plans


def test_training_uses_a_warm_start_that_follows_the_episodes(algorithm: Any, monkeypatch: Any) -> None:
    model = make_agent(algorithm, vec(lambda: PointEnv(3), lambda: PointEnv(5)), learning_starts=0)
    plans = watch_plans(model, monkeypatch)
    model.learn(14)
    model.learn(14, reset_num_timesteps=False)
    assert len(plans) == 14
    for step, (warm_start, _) in enumerate(plans):
        for env, length in enumerate((3, 5)):
            expected = np.zeros((2, 2)) if step % length == 0 else plans[step - 1][1][env]
            np.testing.assert_array_equal(warm_start[env], expected, err_msg=f"{step=}, {env=}")
    model.learn(4)  # a reset
    assert not plans[14][0].any() and plans[15][0].any()


def test_evaluation_does_not_disturb_training(algorithm: Any) -> None:
    plain = make_agent(algorithm, PointEnv(), seed=0)
    watched = make_agent(algorithm, PointEnv(), seed=0)
    plain.learn(40)
    evaluation = EvalCallback(PointEnv(), eval_freq=9, n_eval_episodes=2, verbose=0, warn=False)
    watched.learn(40, callback=evaluation)
    assert evaluation.n_calls == 40 and np.isfinite(evaluation.last_mean_reward)
    assert_same_state(plain.get_parameters(), watched.get_parameters())
    np.testing.assert_array_equal(plain.replay_buffer.actions[:40], watched.replay_buffer.actions[:40])


def test_two_runs_with_one_seed_are_equal(algorithm: Any) -> None:
    noise = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
    runs = []
    for seed in (0, 0, 1):
        model = make_agent(algorithm, vec(PointEnv, PointEnv), seed=seed, action_noise=noise).learn(40)
        actions = [model.predict(observations_of(model.get_env(), 2), deterministic=False)[0] for _ in range(5)]
        runs.append((model.get_parameters()["policy"], model.replay_buffer.actions[:20], actions))
    assert_same_state(runs[0], runs[1])
    assert not np.array_equal(runs[0][1], runs[2][1])


def test_second_learn_continues_or_starts_anew(algorithm: Any) -> None:
    env = Recorder(PointEnv(10))
    model = make_agent(algorithm, env).learn(13)
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == 17
    assert env.log[-1][3][2] == pytest.approx(0.7)  # the same episode went on
    model.learn(4)
    assert model.num_timesteps == 4
    assert env.log[-1][3][2] == pytest.approx(0.4)  # a new one


def test_set_env_goes_on_in_another_environment_of_the_same_spaces(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv)).learn(13)
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs is not None
    model.learn(4, reset_num_timesteps=False)
    model.set_env(PointEnv())
    assert model._last_obs is None
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == 21
    with pytest.raises(AssertionError):
        model.set_env(vec(PointEnv, PointEnv))
    with pytest.raises(ValueError, match=r"(?i)observation spaces"):
        model.set_env(SpaceEnv(BOX, model.action_space))
    with pytest.raises(ValueError, match=r"(?i)action spaces"):
        model.set_env(SpaceEnv(model.observation_space, BOX))


def test_set_env_drops_the_plan_of_the_old_one(algorithm: Any, monkeypatch: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv), learning_starts=0).learn(4)
    model.set_env(vec(PointEnv))
    plans = watch_plans(model, monkeypatch)
    model.learn(3, reset_num_timesteps=False)
    assert [warm_start.any() for warm_start, _ in plans] == [False, True, True]


def limited() -> gym.Env:
    """:return: an environment whose episodes end by a time limit of 8 steps"""
    return Monitor(gym.wrappers.TimeLimit(PointEnv(100), 8))


def lengths(model: Any) -> list[int]:
    """:return: lengths of the episodes in the order of their ends"""
    return [int(episode["l"]) for episode in model.ep_info_buffer]


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_first_episodes_of_several_environments_end_one_after_the_other(kind: Any) -> None:
    """By their time limit, so that values go on; and so it is again at a new beginning."""
    model = make_agent(TDMPC2, kind([limited] * 4), learning_starts=1_000)
    model.learn(4 * 16)
    assert lengths(model) == [2, 4, 6, 8, 8, 8, 8, 8]
    ends = np.flatnonzero(model.replay_buffer.dones[:16, 0])
    assert ends.tolist() == [1, 9] and model.replay_buffer.timeouts[:16][ends, 0].all()
    model.learn(4 * 8, reset_num_timesteps=False)
    assert lengths(model)[-4:] == [8, 8, 8, 8], "what goes on is not cut again"
    assert lengths(model.learn(4 * 8)) == [2, 4, 6, 8]
    model.env.close()


def test_what_cannot_be_staggered_stays_as_it_is() -> None:
    for env in (vec(limited), vec(*[lambda: Monitor(PointEnv(8))] * 2)):
        model = make_agent(TDMPC2, env, learning_starts=1_000).learn(16)
        assert set(lengths(model)) == {8}
    model = make_agent(TDMPC2, vec(limited, limited), learning_starts=1_000)
    model.staggers_episodes = False
    assert lengths(model.learn(16)) == [8, 8]


class Counts(gym.Wrapper):
    """Counts its steps under the name of Gymnasium's time limit, which it is not."""

    def reset(self, **kwargs: Any) -> Any:
        self._elapsed_steps, self._max_episode_steps = 5, 20
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._elapsed_steps += 1
        return super().step(action)


class Unwilling(DummyVecEnv):
    """Of somebody else."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise RuntimeError("no methods here")


def test_only_time_limits_are_staggered_and_each_by_its_own() -> None:
    env = vec(*[lambda: Counts(Monitor(PointEnv(8)))] * 2)
    assert lengths(make_agent(TDMPC2, env, learning_starts=1_000).learn(16)) == [8, 8]
    assert env.get_attr("_elapsed_steps") == [5, 5]
    limits = iter((40, 4, 8, 8))
    env = vec(*[lambda: Monitor(gym.wrappers.TimeLimit(PointEnv(100), next(limits)))] * 4)
    assert lengths(make_agent(TDMPC2, env, learning_starts=1_000).learn(4 * 10))[:3] == [2, 4, 6]
    model = make_agent(TDMPC2, Unwilling([limited] * 2), learning_starts=1_000)
    assert lengths(model.learn(16)) == [8, 8]
