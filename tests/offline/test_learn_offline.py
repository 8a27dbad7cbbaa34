"""Learning from recorded data: without acting, beside what is collected, and exactly resumable."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import BMPC, TDMPC2, FacTDMPC
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.buffers.sources import OF_DATA
from sb3_mpc.offline import Dataset
from sb3_mpc.offline.windows import Windows
from sb3_mpc.offline.writer import DatasetWriter
from tests.support.agents import PointEnv, assert_one_clear_sentence, assert_same_state, make_agent, vec


def point_data(terminate: bool = True, seed: int = 0, **kwargs: Any) -> Dataset:
    """:return: what random actions do to a point"""
    rng, env = np.random.default_rng(seed), PointEnv(6, terminate)
    columns: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "next_observations")}
    ended, cut = [], []
    for episode in range(8):
        seen, done = env.reset(seed=seed + episode)[0], False
        while not done:
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            behind, reward, terminated, truncated, _ = env.step(action)
            for name, value in zip(columns, (seen, action, reward, behind), strict=True):
                columns[name].append(value)
            ended.append(terminated), cut.append(truncated)
            seen, done = behind, terminated or truncated
    arrays = {name: np.stack(values) for name, values in columns.items()}
    spaces_of = dict(observation_space=env.observation_space, action_space=env.action_space)
    return Dataset.from_arrays(**arrays, terminated=np.array(ended), truncated=np.array(cut), **spaces_of, **kwargs)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return point_data()


def test_a_resumed_run_equals_one_that_was_not_interrupted(algorithm: Any, data: Dataset, tmp_path: Path) -> None:
    """Bit for bit: networks, optimisers, random numbers, and BMPC's plans, from a file of SB3's own callback."""
    settings: dict[str, Any] = dict(seed=1, learning_rate=lambda left: 1e-3 * left)
    if algorithm is BMPC:
        settings["reanalyze_interval"] = 2
    single = make_agent(algorithm, data.as_env(), **settings)
    single.learn_offline(data, 8, CheckpointCallback(5, str(tmp_path)), log_interval=3)
    resumed = algorithm.load(tmp_path / "rl_model_5_steps")
    assert resumed.num_timesteps == resumed._n_updates == 5
    resumed.learn_offline(Dataset.load(data.path), 3, reset_num_timesteps=False, log_interval=2)
    assert single.num_timesteps == resumed.num_timesteps == single._n_updates == 8
    assert_same_state(resumed.get_parameters(), single.get_parameters())
    assert th.equal(resumed.policy.generator.get_state(), single.policy.generator.get_state())


def test_same_updates_as_from_the_replay_buffer(algorithm: Any) -> None:
    """The same windows give the same losses, to the last bit."""
    model = make_agent(algorithm, vec(lambda: PointEnv(3, terminate=True)), seed=0)
    model.learn(30)
    twin, buffer = copy.deepcopy(model.policy), model.replay_buffer
    stored = Dataset.from_replay_buffer(buffer)
    windows = stored.windows(model.horizon, plans=hasattr(buffer, "plans"))
    rows = np.arange(buffer.size())
    episodes = np.searchsorted(np.cumsum(stored.episodes["length"]), rows, side="right")
    of_data = windows.at(episodes, rows - stored.episodes["start"][episodes])
    of_buffer = buffer._get_samples(rows)
    model.policy.set_training_mode(True), twin.set_training_mode(True)
    noise = model.draw_noise(len(rows))
    first = model.update(of_buffer._replace(buffer_index=None), noise)
    model.policy = twin
    second = model.update(of_data._replace(buffer_index=None), noise)
    assert_same_state(first, second)


def test_then_it_acts_by_planning_at_once(algorithm: Any, data: Dataset) -> None:
    """After learning from data there are no random actions, and no update before an episode has ended; unless asked."""
    planned: list[bool] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            planned.append(self.model._last_plan is not None)
            return True

    model = make_agent(algorithm, data.as_env(), seed=0, learning_starts=5, pretrain_gradient_steps=4)
    model.learn_offline(data, 2)
    assert model.policy.episodic and model._n_updates == 2
    model.set_env(vec(lambda: PointEnv(6, terminate=True)))
    model.learn(5, Look())
    assert planned == [True] * 5 and model.learning_starts == 0 and model._n_updates == 2
    model.learn(5, Look(), reset_num_timesteps=False)
    assert model._n_updates == 7  # of the decisions since the end of the first episode
    asked = make_agent(algorithm, data.as_env(), seed=0, learning_starts=5)
    asked.learn_offline(data, 2)
    asked.set_env(vec(lambda: PointEnv(6, terminate=True)))
    planned.clear()
    asked.learn(7, Look(), random_seeding=True)
    assert planned == [False] * 5 + [True] * 2
    planned.clear()
    make_agent(algorithm, PointEnv(6), learning_starts=5).learn(3, Look(), random_seeding=False)
    assert planned == [True] * 3
    with pytest.raises(ValueError, match="random_seeding='never'"):
        asked.learn(1, random_seeding="never")


def test_learn_mixes_data_and_experience(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a number or by a schedule of the remaining progress, in batches of the same size."""
    parts: list[float] = []
    update = BMPC.refresh_batch

    def look(self: Any, batch: Any) -> Any:
        parts.append(float((batch.buffer_index[1, 0] == OF_DATA).mean()))
        return update(self, batch)

    monkeypatch.setattr(BMPC, "refresh_batch", look)
    model = make_agent(BMPC, PointEnv(6, terminate=True), learning_starts=4, pretrain_gradient_steps=0, seed=0)
    model.learn(8, offline_data=data, offline_fraction=0.25)
    assert parts == [0.25] * 4 and model.windows is model.replay_buffer
    parts.clear()
    model.learn(8, offline_data=data, offline_fraction=lambda left: left, reset_num_timesteps=False)
    assert parts == sorted(parts, reverse=True) and parts[0] > 0.4 and parts[-1] == 0
    parts.clear()
    model.learn(2, reset_num_timesteps=False)
    assert parts == [0, 0]
    with pytest.raises(ValueError) as caught:
        model.learn(1, offline_data=data, offline_fraction=1.5)
    assert_one_clear_sentence(caught.value, "offline_fraction=1.5")


@pytest.mark.slow
def test_a_resumed_mixture_goes_on(data: Dataset, tmp_path: Path) -> None:
    def start() -> Any:
        return make_agent(TDMPC2, vec(lambda: PointEnv(6, start=0.5)), seed=4)

    single = start().learn(30, offline_data=data)
    first = start().learn(18, offline_data=data)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    second = TDMPC2.load(tmp_path / "model", env=vec(lambda: PointEnv(6, start=0.5)))
    second.load_replay_buffer(tmp_path / "buffer")
    second.learn(12, offline_data=data, reset_num_timesteps=False)
    assert_same_state(second.get_parameters(), single.get_parameters())


def test_callbacks_and_log(data: Dataset, tmp_path: Path) -> None:
    """Callbacks count updates; the log has losses, speed, and values beside what the data returned."""
    evaluation = EvalCallback(PointEnv(6), n_eval_episodes=1, eval_freq=2, log_path=str(tmp_path), verbose=0)
    model = make_agent(TDMPC2, data.as_env(), seed=0, tensorboard_log=str(tmp_path), gamma=0.5)
    model.learn_offline(data, 4, evaluation, log_interval=2, tb_log_name="run", progress_bar=True)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [2, 4]
    assert list((tmp_path / "run_1").glob("events*")) and model.num_timesteps == 4
    logged: dict[str, float] = {}

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    record = model.logger.record
    model.logger.record = lambda name, value, *a, **k: (logged.update({name: value}), record(name, value, *a, **k))[1]  # type: ignore[method-assign]
    model._custom_logger = True
    model.learn_offline(data, 100, Stop(), log_interval=1)
    assert model.num_timesteps == 3
    names = {"offline/value_of_data", "offline/value_of_policy", "offline/return_of_data", "train/reward_loss"}
    assert names | {"time/updates_per_second", "train/learning_rate", "train/n_updates"} <= set(logged)
    powers = 0.5 ** np.arange(6)
    expected = np.mean([(powers * data.episode(i)["rewards"]).sum() for i in range(len(data.episodes))])
    assert logged["offline/return_of_data"] == pytest.approx(expected, rel=1e-5)


def test_terminations_in_the_data_make_the_head() -> None:
    for terminate in (False, True):
        model = make_agent(TDMPC2, PointEnv(6), seed=0)
        model.learn_offline(point_data(terminate), 2)
        assert model.policy.episodic is terminate
    ignoring = make_agent(TDMPC2, PointEnv(6), episodic=False)
    ignoring.learn_offline(point_data(), 1)
    assert not ignoring.policy.episodic


def test_bmpc_plans_for_recorded_states(data: Dataset) -> None:
    """Data have no plans; those that it makes are kept for the next time, and the files stay as they are."""
    model = make_agent(BMPC, data.as_env(), seed=0, reanalyze_interval=1, reanalyze_batch_size=16)
    model.learn_offline(data, 3)
    plans = model._offline_state["windows"]["plans"]
    assert len(plans["rows"]) > 16 and np.isfinite(plans["plans"]).all()
    assert Dataset.load(data.path, verify=True).fingerprint == data.fingerprint


def test_data_of_several_tasks(tmp_path: Path) -> None:
    """The environment of the data tells the policy names, numbers of actions and lengths of the tasks."""
    rng = np.random.default_rng(0)
    space = spaces.Dict(obs=spaces.Box(-np.inf, np.inf, (3,), np.float32), task=spaces.Discrete(2))
    sizes = dict(tasks=["one", "two"], action_dims=[1, 2], episode_lengths=[5, 500])
    with DatasetWriter(tmp_path / "data", space, spaces.Box(-1, 1, (2,), np.float32), **sizes) as writer:
        for task in (0, 1, 0, 1):
            actions = rng.uniform(-1, 1, (5, 2)) * [1, task]
            observations = dict(obs=rng.normal(size=(6, 3)), task=np.full(6, task))
            writer.add(observations, actions, rng.normal(size=5), terminated=False)
    data = Dataset.load(tmp_path / "data")
    model = make_agent(TDMPC2, data.as_env(), "MultitaskPolicy", dict(task_dim=4), seed=0)
    assert model.policy.task_names == ["one", "two"] and model.policy.tasks["gammas"] == data.policy_kwargs["gammas"]
    assert model.policy.world_model.action_masks.tolist() == [[1, 0], [1, 1]]
    model.learn_offline(data, 3)
    assert model._n_updates == 3
    swapped = data.save(tmp_path / "swapped")
    swapped.tasks = swapped.tasks[::-1]
    for learn in (lambda: model.learn_offline(swapped, 1), lambda: model.learn(4, offline_data=swapped)):
        with pytest.raises(ValueError, match="have the tasks two, one, the agent one, two"):
            learn()
    observation = dict(obs=np.zeros(3, np.float32), task=np.array(0))
    assert model.predict(observation, deterministic=True)[0][1] == 0


def test_distilling_from_data(data: Dataset, tmp_path: Path) -> None:
    """A given expert is distilled from data alone, by `distill` or `learn_offline`, the latter exactly resumable."""
    expert = make_agent(TDMPC2, PointEnv(6, terminate=True), seed=0)
    expert.learn_offline(data, 3)
    assert FacTDMPC.distill(expert, data, steps=2)._student_updates == 2
    single = make_agent(FacTDMPC, data.as_env(), expert=expert, seed=1)
    single.learn_offline(data, 5, CheckpointCallback(3, str(tmp_path)))
    assert single._distilled and single._student_updates == single.num_timesteps == 5 and single._n_updates == 0
    resumed = FacTDMPC.load(tmp_path / "rl_model_3_steps")
    resumed.learn_offline(data, 5 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same_state(resumed.get_parameters(), single.get_parameters())


def test_distilling_from_data_and_experience(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch of segments has as many of the data as a batch of the expert's would have."""
    drawn: dict[str, set[int]] = {}
    for source in (SequenceReplayBuffer, Windows):

        def sample(self: Any, batch_size: int, env: Any = None, _sample: Any = source.sample) -> Any:
            drawn.setdefault(type(self).__name__, set()).add(batch_size)
            assert self.horizon == model.horizon + 1, "segments have one action more"
            return _sample(self, batch_size, env)

        monkeypatch.setattr(source, "sample", sample)
    expert = make_agent(TDMPC2, PointEnv(6, terminate=True), seed=0)
    model = make_agent(FacTDMPC, PointEnv(6, terminate=True), expert=expert, distill_batch_size=8, distill_steps=3)
    model.learn(20, offline_data=data, offline_fraction=0.25)
    assert drawn == {"SequenceReplayBuffer": {6}, "Windows": {2}}
    assert model._student_updates == 3 and model.replay_buffer.horizon == model.horizon


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (gym.make("Pendulum-v1"), ["The data have actions"]),
        (gym.make("MountainCarContinuous-v0"), ["The data have observations"]),
    ],
)
def test_data_of_another_environment(data: Dataset, env: gym.Env, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make_agent(TDMPC2, env).learn_offline(data, 1)
    assert_one_clear_sentence(caught.value, *words)


def test_what_is_no_data_set() -> None:
    with pytest.raises(ValueError) as caught:
        make_agent(TDMPC2, PointEnv()).learn_offline("data/point", 1)
    assert_one_clear_sentence(caught.value, "Data to learn from are a str", "Dataset.load")


def test_the_spaces_of_the_data_are_enough(data: Dataset, tmp_path: Path) -> None:
    """Made, trained, saved and loaded without an environment; acting in one afterwards."""
    model = make_agent(TDMPC2, data.as_env(), gamma="auto", seed=0)
    assert model.gamma == 0.95  # from the six decisions of an episode
    model.learn_offline(data, 2)
    with pytest.raises(RuntimeError, match="set_env"):
        model.learn(1)
    model.save(tmp_path / "model")
    loaded = TDMPC2.load(tmp_path / "model")
    loaded.learn_offline(data, 1)
    acting = TDMPC2.load(tmp_path / "model", env=PointEnv(6))
    evaluate_policy(acting, acting.get_env(), 1)
    acting.learn(8)
    assert acting.num_timesteps == 8


@pytest.mark.slow
def test_better_than_the_data(tmp_path: Path) -> None:
    """Random actions in Pendulum return about -1,200 an episode; planning in a model learned from them does better."""
    rng, env = np.random.default_rng(0), gym.make("Pendulum-v1")
    with DatasetWriter(tmp_path / "data", env.observation_space, env.action_space) as writer:
        for seed in range(20):
            observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
            for _ in range(200):
                actions.append(rng.uniform(-2, 2, 1).astype(np.float32))
                seen, reward, *_ = env.step(actions[-1])
                observations.append(seen), rewards.append(reward)
            writer.add(np.stack(observations), np.stack(actions), np.array(rewards), terminated=False, truncated=True)
    data = Dataset.load(tmp_path / "data")
    model = TDMPC2("MlpPolicy", data.as_env(), preset="small", seed=0, device="cpu", compile=False)
    model.learn_offline(data, 1_000)
    mean = evaluate_policy(model, make_vec_env("Pendulum-v1", 10, seed=1), 10)[0]
    assert mean > data.returns().mean() + 250
