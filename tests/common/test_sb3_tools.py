"""SB3's callbacks, loggers, wrappers, vectorised environments and evaluation work as they do with SAC."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from tests.support.agents import PointEnv, Recorder, make_agent, training_alone, vec


class Order(BaseCallback):
    """Notes the events and one local variable of each."""

    def __init__(self, stop_at: int = 10**9, answer: Any = False) -> None:
        super().__init__()
        self.events: list[str] = []
        self.stop_at, self.answer = stop_at, answer

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> Any:
        self.events.append("step")
        assert self.locals["new_obs"].shape == (1, 3)
        assert {"infos", "dones", "rewards", "actions"} <= self.locals.keys()
        assert self.num_timesteps == self.model.num_timesteps
        return self.answer if self.n_calls >= self.stop_at else True

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


def test_callbacks_are_called_in_order(algorithm: Any) -> None:
    callback = Order()
    model = make_agent(algorithm, PointEnv(), train_freq=2)
    assert model.learn(4, callback=callback) is model
    rollout = ["rollout_start", "step", "step", "rollout_end"]
    assert callback.events == ["training_start", *rollout, *rollout, "training_end"]
    seen = []
    model.learn(4, callback=lambda local, _: seen.append(local["self"].num_timesteps) is None)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", [False, np.bool_(0), th.tensor(False)])
def test_callbacks_stop_training_at_once(algorithm: Any, answer: Any) -> None:
    callback, env = Order(stop_at=12, answer=answer), Recorder(PointEnv())
    model = make_agent(algorithm, env).learn(100, callback=[callback])
    assert callback.n_calls == model.num_timesteps == 12
    # and it can go on, with the step at which it was stopped in the replay buffer
    model.learn(5, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.size() == 17
    np.testing.assert_array_equal(model.replay_buffer.observations[:17, 0], [row[0] for row in env.log])


def test_checkpoints_during_training_can_be_loaded(algorithm: Any, tmp_path: Any) -> None:
    env = VecNormalize(vec(PointEnv))
    callback = CheckpointCallback(15, tmp_path, save_replay_buffer=True, save_vecnormalize=True)
    make_agent(algorithm, env).learn(20, callback=callback, progress_bar=True)
    model = algorithm.load(
        tmp_path / "rl_model_15_steps.zip",
        env=VecNormalize.load(tmp_path / "rl_model_vecnormalize_15_steps.pkl", vec(PointEnv)),
    )
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_15_steps.pkl")
    assert model.replay_buffer.size() in (14, 15)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 25


def test_losses_and_rollouts_are_logged(algorithm: Any, tmp_path: Any) -> None:
    model = make_agent(algorithm, PointEnv(5), **training_alone(algorithm))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, log_interval=4)
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    names = header.split(",")
    assert len(rows) == 2
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/episodes", "time/total_timesteps"} <= set(
        names
    )
    losses = {
        f"train/{name}"
        for name in ("n_updates", "learning_rate", "consistency_loss", "reward_loss", "value_loss", "pi_loss")
    }
    assert losses | {"train/grad_norm", "train/pi_scale"} <= set(names)
    last = dict(zip(names, rows[-1].split(","), strict=True))
    assert float(last["rollout/ep_len_mean"]) == 5.0
    assert float(last["time/total_timesteps"]) == 40
    assert all(np.isfinite(float(last[name])) for name in names if name.startswith("train/"))


def test_logging_may_be_switched_off(algorithm: Any, tmp_path: Any) -> None:
    model = make_agent(algorithm, PointEnv(5))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20, log_interval=None)
    assert (tmp_path / "progress.csv").read_text() == ""


def test_tensorboard_folder_is_named_after_the_class(algorithm: Any, tmp_path: Any) -> None:
    pytest.importorskip("tensorboard")
    model = make_agent(algorithm, PointEnv(), tensorboard_log=str(tmp_path))
    model.learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
    model.learn(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{algorithm.__name__}_1", f"{algorithm.__name__}_2"]


def test_stats_window_size_is_that_of_the_episode_statistics(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(2), stats_window_size=3).learn(20)
    assert len(model.ep_info_buffer) == 3


def test_vec_normalize_stores_raw_data_and_predicts_on_normalised(algorithm: Any) -> None:
    recorder = Recorder(PointEnv(5))
    env = VecNormalize(vec(lambda: recorder))
    model = make_agent(algorithm, env).learn(30)
    assert model.get_vec_normalize_env() is env
    np.testing.assert_allclose(model.replay_buffer.observations[:30, 0], [row[0] for row in recorder.log], atol=1e-5)
    np.testing.assert_allclose(model.replay_buffer.rewards[:30, 0], [row[2] for row in recorder.log], atol=1e-5)
    other = VecNormalize(vec(PointEnv), training=False, norm_reward=False)
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.learn(10)
    assert np.isfinite(evaluate_policy(model, other, 2, warn=False)[0])


def test_environments_may_be_in_other_processes(algorithm: Any) -> None:

    class Unsendable(PointEnv):
        """What gym.make gives with a function among its arguments: a specification that cannot be pickled."""

        spec = EnvSpec("Point-v0", kwargs=dict(reward=lambda x: x))

    limited = [lambda: gym.wrappers.TimeLimit(Unsendable(10**9), 200)] * 2
    env = SubprocVecEnv(limited, start_method="fork")  # type: ignore[arg-type]
    try:
        model = make_agent(algorithm, env, gamma="auto").learn(20)
        assert model.gamma == 0.975 and model._n_updates == 6
        assert evaluate_policy(model, env, 2, warn=False)[0] < 0
    finally:
        env.close()


@pytest.mark.parametrize("name", ["Pendulum-v1", "Hopper-v5"])
def test_a_script_for_sac_runs(algorithm: Any, tmp_path: Any, name: str) -> None:
    """The usual steps, with environments of Gymnasium that never terminate and that do."""
    if name == "Hopper-v5":
        pytest.importorskip("mujoco")
    env = gym.make(name)
    model = make_agent(algorithm, env, learning_starts=100, verbose=0)
    model.learn(total_timesteps=120, log_interval=4)
    model.save(tmp_path / "agent")
    del model
    model = algorithm.load(tmp_path / "agent")
    assert model.policy.episodic is (name == "Hopper-v5")
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()


def test_evaluation_of_uneven_episodes(algorithm: Any) -> None:
    """``evaluate_policy`` keeps the flag of an environment that has done its share at True: its row is cold."""
    model = make_agent(algorithm, PointEnv())
    rewards, lengths = evaluate_policy(
        model, vec(lambda: PointEnv(3), lambda: PointEnv(9)), 4, warn=False, return_episode_rewards=True
    )
    assert len(rewards) == 4 and set(lengths) == {3, 9}
