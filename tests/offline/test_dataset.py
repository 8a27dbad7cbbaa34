"""Data sets on disk: the same windows as the replay buffer's, whatever they are made from, and what is refused."""

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from torch.utils import _pytree as pytree

from sb3_mpc import TDMPC2
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.buffers.sources import OF_DATA, MixedWindows
from sb3_mpc.envs import make_multitask
from sb3_mpc.offline import Dataset, layout, merge
from sb3_mpc.offline.layout import ColumnFile
from sb3_mpc.offline.sources import tasks_of
from sb3_mpc.offline.writer import DatasetWriter
from tests.support.agents import PointEnv, SpaceEnv, assert_one_clear_sentence, make_agent, vec

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "double": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "image": spaces.Box(0, 255, (3, 4, 4), np.uint8),
    "dict": spaces.Dict({"a/b": spaces.Box(-1, 1, (2,), np.float32), "n": spaces.Discrete(5)}),
    "tasks": spaces.Dict(obs=spaces.Box(-1, 1, (3,), np.float32), task=spaces.Discrete(2)),
}


def filled(space: spaces.Space, cls: Any = SequenceReplayBuffer, size: int = 40, steps: int = 60, **kwargs: Any) -> Any:
    """:return: a buffer of two environments with short episodes, some cut by a reset, whose oldest rows are gone"""
    rng = np.random.default_rng(0)
    space.seed(0)
    buffer = cls(size, space, ACTIONS, "cpu", n_envs=2, **kwargs)

    def draw() -> Any:
        drawn = [space.sample(), space.sample()]
        if not isinstance(space, spaces.Dict):
            return np.stack(drawn)
        parts = {key: np.stack([one[key] for one in drawn]) for key in space.spaces}
        return {**parts, "task": np.arange(2)} if "task" in parts else parts

    now = draw()
    for _ in range(steps):
        behind, done = draw(), rng.random(2) < 0.25
        timeouts = rng.random(2) < 0.5
        infos = [{"TimeLimit.truncated": bool(d and t)} for d, t in zip(done, timeouts, strict=True)]
        buffer.add(now, behind, rng.uniform(-1, 1, (2, 2)), rng.normal(size=2), done, infos)
        if cls is PlanReplayBuffer and rng.random() < 0.5:
            buffer.store_plans(rng.normal(size=(2, 2, 2)).astype(np.float32))
        now = draw() if done.any() or rng.random() < 0.1 else behind  # another one than behind cuts the episode
    return buffer


def in_order(buffer: SequenceReplayBuffer) -> tuple[np.ndarray, np.ndarray]:
    """:return: rows and environments of all transitions, in the order of a data set"""
    rows = (buffer.pos - buffer.size() + np.arange(buffer.size())) % buffer.buffer_size
    return np.tile(rows, buffer.n_envs), np.repeat(np.arange(buffer.n_envs), len(rows))


def all_starts(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """:return: episode and step of each transition"""
    lengths = data.episodes["length"]
    return np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])


def assert_same_batch(first: Any, second: Any) -> None:
    for name in ("observations", "actions", "rewards", "terminated", "mask", "plans", "planned"):
        a, b = getattr(first, name), getattr(second, name)
        pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)]
        for one, other in pairs:
            if one is None or other is None:
                assert one is other, name
                continue
            assert one.dtype == other.dtype and one.shape == other.shape, name
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=name)


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize(("kind", "normalize"), [*((kind, False) for kind in SPACES), ("box", True)])
@pytest.mark.parametrize("cls", [SequenceReplayBuffer, PlanReplayBuffer])
def test_same_windows_as_the_replay_buffer(
    cls: Any, kind: str, normalize: bool, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    To the last bit: windows of all transitions, also those that reach past the end of an episode; from files that are
    mapped into memory, and from those that are too large for that.
    """
    if not mapped:
        monkeypatch.setattr(layout, "MAPPED", 0)
    buffer = filled(SPACES[kind], cls, horizon=3)
    env = None
    if normalize:
        env = VecNormalize(vec(lambda: SpaceEnv(SPACES["box"], ACTIONS)))
        env.obs_rms.mean, env.ret_rms.var = np.full(3, 0.3), 4.0
    data = Dataset.from_replay_buffer(buffer)
    assert data.rows == buffer.size() * 2
    assert (data.episodes["task"].max() == 1) == (kind == "tasks")
    windows = data.windows(3, plans=cls is PlanReplayBuffer)
    rows, envs = in_order(buffer)
    assert_same_batch(buffer._get_samples(rows, env, envs), windows.at(*all_starts(data), env))


def test_what_a_data_set_of_a_buffer_is_made_of() -> None:
    """Episodes of the buffer, each observation once, and how each ended."""
    buffer = filled(SPACES["box"])
    data, episodes = Dataset.from_replay_buffer(buffer), list(buffer.episodes())
    assert len(data.columns["observations"]) == data.rows + len(episodes)
    assert data.terminates and not data.episodes["truncated"].all()
    for i, stored in enumerate(episodes):
        found = data.episode(i)
        np.testing.assert_array_equal(found["observations"], stored.observations[""])
        np.testing.assert_array_equal(found["actions"], stored.actions)
        np.testing.assert_array_equal(found["rewards"], stored.rewards)
        assert (found["terminated"], found["truncated"]) == (stored.terminated, stored.truncated)
    np.testing.assert_allclose(data.returns(), [episode.rewards.sum() for episode in episodes], rtol=1e-5)


def random_episodes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """:return: episodes of 1 to 50 steps of three tasks, whose observations name episode and step"""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        length = int(rng.integers(1, 51))
        steps = np.arange(length + 1)
        observations = {
            "where": np.stack([np.full(length + 1, number), steps], axis=1).astype(np.float32),
            "image": rng.integers(0, 256, (length + 1, 1, 2, 2), np.uint8),
            "task": np.full(length + 1, rng.integers(3)),
        }
        actions, rewards = (
            rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rng.normal(size=length).astype(np.float32),
        )
        ended = int(rng.integers(3))
        made.append(
            dict(
                observations=observations, actions=actions, rewards=rewards, terminated=ended == 1, truncated=ended == 2
            )
        )
    return made


EPISODES_SPACE = spaces.Dict(
    where=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    image=spaces.Box(0, 255, (1, 2, 2), np.uint8),
    task=spaces.Discrete(3),
)


def written(path: Path, episodes: list[dict[str, Any]], space: spaces.Space = EPISODES_SPACE, **kwargs: Any) -> Dataset:
    with DatasetWriter(path, space, ACTIONS, **kwargs) as writer:
        for episode in episodes:
            writer.add(**episode)
    return Dataset.load(path)


@pytest.mark.parametrize("sampling", ["transitions", "episodes"])
@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_windows_against_a_loop_over_episodes(tmp_path: Path, count: int, sampling: str) -> None:
    episodes, horizon = random_episodes(150), 4
    data = written(tmp_path / "data", episodes)
    batch = data.windows(horizon, sampling, seed=1).sample(count)
    observations: Any = batch.observations
    where = observations["where"][0].long().tolist()
    drawn = np.zeros(len(episodes), int)
    for b, (number, start) in enumerate(where):
        episode = episodes[number]
        length = len(episode["rewards"])
        drawn[number] += 1
        if sampling == "episodes":
            assert start + horizon <= length
        for h in range(horizon):
            t, alive = start + h, start + h < length
            assert batch.mask[h, b].item() == float(alive)
            t = min(t, length - 1)
            assert batch.rewards[h, b].item() == episode["rewards"][t]
            assert batch.terminated[h, b].item() == float(episode["terminated"] and t == length - 1)
    # all parts of all windows at once, by the place that a loop would look at
    numbers, starts = np.array(where).T
    lengths = np.array([len(episode["rewards"]) for episode in episodes])
    for h in range(horizon + 1):
        place = np.minimum(starts + h, lengths[numbers])
        for key in ("where", "image", "task"):
            expected = np.stack([episodes[n]["observations"][key][t] for n, t in zip(numbers, place, strict=True)])
            np.testing.assert_array_equal(observations[key][h].numpy(), expected)
        if h < horizon:
            steps = zip(numbers, np.minimum(place, lengths[numbers] - 1), strict=True)
            np.testing.assert_array_equal(
                batch.actions[h].numpy(), np.stack([episodes[n]["actions"][t] for n, t in steps])
            )
    chance = lengths / lengths.sum() if sampling == "transitions" else (lengths >= horizon) / (lengths >= horizon).sum()
    expected = count * chance
    assert (np.abs(drawn - expected) <= 6 * np.sqrt(expected) + 1e-9).all()


def test_windows_of_a_selection(tmp_path: Path) -> None:
    """Parts of a data set share its files, and have no other rows."""
    episodes = random_episodes(30)
    data = written(tmp_path / "data", episodes, tasks=["a", "b", "c"])
    first, second = data.split(0.7, seed=3)
    assert first.rows + second.rows == data.rows and first.fingerprint != second.fingerprint != data.fingerprint
    own = {int(n) for n in second.windows(2, seed=0).sample(500).observations["where"][0, :, 0]}
    assert own == set(second.numbers.tolist()) and not own & set(first.numbers.tolist())
    only = data.of_tasks(["b"])
    assert set(only.windows(2, seed=0).sample(100).observations["task"].flatten().tolist()) == {1}
    copy = second.save(tmp_path / "copy")
    assert_same_batch(copy.windows(3).at(*all_starts(copy)), second.windows(3).at(*all_starts(second)))
    np.testing.assert_allclose(copy.returns(), data.returns()[second.numbers])
    with pytest.raises(ValueError) as caught:
        data.of_tasks(["d"])
    assert_one_clear_sentence(caught.value, "'d'", "a, b, c")


def test_the_same_seed_draws_the_same_windows_and_a_state_goes_on(tmp_path: Path) -> None:
    data = written(tmp_path / "data", random_episodes(20))
    first, second = (data.windows(3, plans=True, seed=5) for _ in range(2))
    assert_same_batch(first.sample(8), second.sample(8))
    batch = first.sample(8)
    assert not batch.planned.any() and (batch.buffer_index[1] == OF_DATA).all()
    plans = np.random.default_rng(0).normal(size=(2, 24, 2)).astype(np.float32)
    first.store_plans(plans, *batch.buffer_index.reshape(2, -1))
    other = data.windows(3, plans=True)
    other.set_state(pickle.loads(pickle.dumps(first.state())))
    assert_same_batch(other.sample(64), first.sample(64))
    known = data.windows(3, plans=True)
    known.set_state(first.state())
    again = known.at(*all_starts(data))
    stored = np.isin(again.buffer_index[0], batch.buffer_index[0])
    np.testing.assert_array_equal(again.planned.squeeze(-1).numpy(), stored)


def test_mixed_batches(tmp_path: Path) -> None:
    """A part of each batch is of the data, by number or schedule; all of it as long as the buffer has nothing."""
    buffer = filled(SPACES["box"], PlanReplayBuffer)
    data = Dataset.from_replay_buffer(buffer).windows(3, plans=True, seed=0)
    share = [0.25]
    mixed = MixedWindows(buffer, data, lambda: share[0])
    for part in (0.0, 0.25, 1.0):
        share[0] = part
        index = mixed.sample(8).buffer_index
        assert (index[1, 0] == OF_DATA).sum() == 8 * part
    share[0] = 0.25
    batch = mixed.sample(8)
    new = np.full((2, 24, 2), 0.5, np.float32)
    mixed.store_plans(new, *batch.buffer_index.reshape(2, -1))
    rows, envs = batch.buffer_index[:, :, 2:].reshape(2, -1)
    assert (buffer.plans[rows, envs] == 0.5).all() and batch.buffer_index[1, 0, :2].tolist() == [OF_DATA] * 2
    empty = SequenceReplayBuffer(10, SPACES["box"], ACTIONS, "cpu", sampling="episodes")
    windows = Dataset.from_replay_buffer(buffer).windows(3)
    assert MixedWindows(empty, windows, lambda: 0.0).sample(4).actions.shape == (3, 4, 2)
    empty.add(*[np.zeros((1, 3), np.float32)] * 2, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    assert MixedWindows(empty, windows, lambda: 0.5).sample(4).actions.shape == (3, 4, 2)


# -- Made from other data ----------------------------------------------------------------------------------------------


def test_from_arrays() -> None:
    rng = np.random.default_rng(0)
    box = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 4], np.float32))
    observations, behind = rng.normal(size=(2, 6, 3)).astype(np.float32)
    actions, rewards = rng.uniform(0, 2, (6, 2)), np.arange(6.0)
    ended, cut = np.eye(6, dtype=bool)[2], np.eye(6, dtype=bool)[3]
    data = Dataset.from_arrays(observations, actions, rewards, behind, ended, cut, action_space=box)
    assert data.episodes["length"].tolist() == [3, 1, 2]
    assert data.episodes["terminated"].tolist() == [True, False, False]
    assert data.episodes["truncated"].tolist() == [False, True, False]
    np.testing.assert_array_equal(data.episode(0)["observations"], [*observations[:3], behind[2]])
    np.testing.assert_allclose(data.episode(0)["actions"], (actions[:3] - [0, 2]) / 2, atol=1e-6)
    assert data.returns().tolist() == [3, 3, 9]
    # without the next observations, the last one of each episode is its final one
    data = Dataset.from_arrays({"x": observations}, actions, rewards, truncated=ended | cut, action_space=box)
    assert data.episodes["length"].tolist() == [2, 1] and data.rows == 3
    np.testing.assert_array_equal(data.episode(0)["observations"]["x"], observations[:3])


def test_actions_beyond_the_space_are_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="1 actions are outside"):
        data = Dataset.from_arrays(np.zeros((3, 1)), np.array([[0.5], [1.5], [1.0]]), np.zeros(3), np.zeros((3, 1)))
    assert data.columns["actions"].max() == 1


class Teacher:
    """Acts in Pendulum, and notes what happens."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self) -> np.ndarray:
        return self.rng.uniform(-2, 2, 1).astype(np.float32)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_from_minari(data_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Minari data set, by its id and by its folder, has what the environment returned."""
    minari = pytest.importorskip("minari")
    # The collector uses jax for this function alone; hundreds of megabytes
    jax = types.ModuleType("jax.tree_util")
    jax.tree_map = pytree.tree_map  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    monkeypatch.setattr(sys.modules["jax"], "tree_util", jax, raising=False)
    monkeypatch.setitem(sys.modules, "jax.tree_util", jax)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    collector = minari.DataCollector(gym.make("Pendulum-v1", max_episode_steps=7), data_format=data_format)
    teacher, expected = Teacher(), []
    for seed in range(3):
        observation, _ = collector.reset(seed=seed)
        seen, actions, rewards, cut = [observation], [], [], False
        while not cut:
            actions.append(teacher())
            observation, reward, _, cut, _ = collector.step(actions[-1])
            seen.append(observation), rewards.append(reward)
        expected.append((np.stack(seen), np.stack(actions), np.array(rewards)))
    collector.create_dataset("pendulum/random-v0", algorithm_name="random", author="test", author_email="a@b.c")
    collector.close()
    for source in ("pendulum/random-v0", tmp_path / "cache" / "pendulum" / "random-v0"):
        data = Dataset.from_minari(source)
        assert data.tasks == [("Pendulum-v1", 1, 7)] and data.episodes["truncated"].all() and not data.terminates
        for i, (observations, actions, rewards) in enumerate(expected):
            found = data.episode(i)
            np.testing.assert_array_equal(found["observations"], observations)
            np.testing.assert_allclose(found["actions"], actions / 2, atol=1e-6)
            np.testing.assert_array_equal(found["rewards"], rewards.astype(np.float32))
    with pytest.raises(FileNotFoundError) as caught:
        Dataset.from_minari("pendulum/expert-v0")
    assert_one_clear_sentence(caught.value, "pendulum/expert-v0", "minari list local")


def save_official(path: Path, content: Any) -> None:
    """Write a pickle that names classes of TensorDict, which is not installed."""
    module = types.ModuleType("tensordict._td")

    class TensorDict:
        def __init__(self, tensors: dict[str, th.Tensor], batch_size: Any) -> None:
            self._tensordict, self._batch_size, self._device = tensors, batch_size, th.device("cpu")

    TensorDict.__module__, TensorDict.__qualname__ = "tensordict._td", "TensorDict"
    module.TensorDict = TensorDict  # type: ignore[attr-defined]
    sys.modules.update({"tensordict": types.ModuleType("tensordict"), "tensordict._td": module})
    try:
        th.save(TensorDict(content, th.Size([2])) if isinstance(content, dict) else content, path)
    finally:
        del sys.modules["tensordict"], sys.modules["tensordict._td"]


def official_chunk(tasks: list[int], length: int = 5, seed: int = 0) -> dict[str, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    shape = (len(tasks), length)
    action = th.rand(*shape, 2, generator=generator) * 2 - 1
    action[th.tensor(tasks) == 0, :, 1] = 0  # a task with one action
    action[:, 0], reward = th.nan, th.rand(shape, generator=generator)
    reward[:, 0] = th.nan
    task = th.tensor(tasks).unsqueeze(1).expand(shape).contiguous()
    return dict(obs=th.randn(*shape, 3, generator=generator), action=action, reward=reward, task=task)


def test_from_official(tmp_path: Path) -> None:
    """Rows have the action and the reward that led to them; chunks are read one after the other, by their numbers."""
    chunks = [official_chunk([0, 1, 1], seed=0), official_chunk([1, 0], seed=1)]
    for number, chunk in zip((2, 10), chunks, strict=True):
        save_official(tmp_path / f"chunk_{number}.pt", chunk)
    data = Dataset.from_official(tmp_path, tasks=["one", "two"])
    assert data.episodes["task"].tolist() == [0, 1, 1, 1, 0] and data.episodes["length"].tolist() == [4] * 5
    assert [task.action_dim for task in data.tasks] == [1, 2] and not data.terminates
    found, chunk = data.episode(3), chunks[1]
    np.testing.assert_array_equal(found["observations"]["obs"], chunk["obs"][0])
    np.testing.assert_array_equal(found["observations"]["task"], [1] * 5)
    np.testing.assert_array_equal(found["actions"], chunk["action"][0, 1:])
    np.testing.assert_array_equal(found["rewards"], chunk["reward"][0, 1:])
    assert data.policy_kwargs == dict(task_names=["one", "two"], action_dims=[1, 2], gammas=[0.95, 0.95])
    unnamed = Dataset.from_official(tmp_path)  # names that nobody has given are no names
    assert unnamed.policy_kwargs["task_names"] is None and unnamed.tasks[1].name == "task 1"


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("content", [{"obs": Bomb()}, [Bomb()], "text", {"obs": th.zeros(1)}])
def test_official_files_execute_nothing(tmp_path: Path, content: Any) -> None:
    save_official(tmp_path / "chunk_0.pt", content)
    with pytest.raises(ValueError) as caught:
        Dataset.from_official(tmp_path)
    assert_one_clear_sentence(caught.value, "chunk_0.pt was refused")


def test_merge(tmp_path: Path) -> None:
    """More of the same, or several tasks, padded to the largest."""
    rng = np.random.default_rng(0)

    def make(name: str, width: int, dim: int, **kwargs: Any) -> Dataset:
        observations, actions = rng.normal(size=(5, width)).astype(np.float32), rng.uniform(-1, 1, (4, dim))
        space, box = spaces.Box(-9, 9, (width,), np.float32), spaces.Box(-2, 2, (dim,), np.float32)
        with DatasetWriter(tmp_path / name, space, box, [name[0]], episode_lengths=[4], **kwargs) as writer:
            writer.add(observations, actions, rng.normal(size=4), terminated=True)
        return Dataset.load(tmp_path / name)

    a, more, b = make("a", 3, 1), make("a2", 3, 1), make("b", 2, 2)
    both = merge([a, more], tmp_path / "both")
    assert both.rows == 8 and both.observation_space == a.observation_space and both.action_space == a.action_space
    np.testing.assert_array_equal(both.columns["actions"], np.concatenate([d.columns["actions"] for d in (a, more)]))
    tasks = merge([a, more, b], tmp_path / "tasks")
    assert [task.name for task in tasks.tasks] == ["a", "b"] and tasks.episodes["task"].tolist() == [0, 0, 1]
    assert [task.action_dim for task in tasks.tasks] == [1, 2] and [task.episode_length for task in tasks.tasks] == [
        4,
        4,
    ]
    padded = tasks.episode(2)
    np.testing.assert_array_equal(padded["observations"]["obs"][:, :2], b.episode(0)["observations"])
    assert not padded["observations"]["obs"][:, 2:].any() and (padded["observations"]["task"] == 1).all()
    np.testing.assert_array_equal(tasks.episode(0)["actions"][:, :1], a.episode(0)["actions"])
    assert tasks.as_env().get_wrapper_attr("action_dims") == [1, 2]
    with pytest.raises(ValueError) as caught:
        merge([tasks, a], tmp_path / "more", ["several", "a"])
    assert_one_clear_sentence(caught.value, "has several tasks, a, b")
    assert not (tmp_path / "more").exists()


def test_merge_sets_of_several_tasks(tmp_path: Path) -> None:
    """The new set has the tasks of all; episodes stay what they were, whatever numbers their tasks get."""
    rng = np.random.default_rng(0)

    def make(name: str, width: int, dims: dict[str, int]) -> Dataset:
        space = spaces.Dict(obs=spaces.Box(-9, 9, (width,), np.float32), task=spaces.Discrete(len(dims)))
        box = spaces.Box(-1, 1, (max(dims.values()),), np.float32)
        sizes: Any = (list(dims), list(dims.values()), [4] * len(dims))
        with DatasetWriter(tmp_path / name, space, box, *sizes) as writer:
            for task, dim in enumerate(dims.values()):
                observations = dict(obs=rng.normal(size=(5, width)), task=np.full(5, task))
                actions = np.pad(rng.uniform(-1, 1, (4, dim)), ((0, 0), (0, box.shape[0] - dim)))
                writer.add(observations, actions, rng.normal(size=4), terminated=False)
        return Dataset.load(tmp_path / name)

    first, second = make("first", 2, dict(walk=1, run=2)), make("second", 3, dict(jump=3, walk=1))
    all_tasks = merge([first, second], tmp_path / "all")
    assert [(task.name, task.action_dim) for task in all_tasks.tasks] == [("walk", 1), ("run", 2), ("jump", 3)]
    assert all_tasks.episodes["task"].tolist() == [0, 1, 2, 0]
    for number, (data, own) in enumerate(((first, 0), (first, 1), (second, 0), (second, 1))):
        before, after = data.episode(own), all_tasks.episode(number)
        width, dim = data.observation_space["obs"].shape[0], data.action_space.shape[0]
        np.testing.assert_array_equal(after["observations"]["obs"][:, :width], before["observations"]["obs"])
        np.testing.assert_array_equal(after["actions"][:, :dim], before["actions"])
        assert not after["observations"]["obs"][:, width:].any() and not after["actions"][:, dim:].any()
        np.testing.assert_array_equal(after["rewards"], before["rewards"])
    assert all_tasks.of_tasks("walk").rows == 8
    with pytest.raises(ValueError, match="one task, 'walk'"):
        merge([all_tasks, make("other", 3, dict(walk=2))], tmp_path / "wrong")


def test_merged_plans(tmp_path: Path) -> None:
    """Plans stay with their episodes; missing actions are planned as the networks have them, 0 with 1 as deviation."""
    plans = np.random.default_rng(0).uniform(0.1, 1, (4, 2, 1)).astype(np.float32)
    one, two = (spaces.Box(-1, 1, (dim,), np.float32) for dim in (1, 2))
    with DatasetWriter(tmp_path / "one", SPACES["box"], one, ["one"], plans=True) as writer:
        observations = np.zeros((5, *SPACES["box"].shape))
        writer.add(observations, np.zeros((4, 1)), np.zeros(4), False, plans=plans, planned=np.arange(4) > 0)
    with DatasetWriter(tmp_path / "two", SPACES["box"], two, ["two"]) as writer:
        writer.add(observations, np.zeros((4, 2)), np.zeros(4), False)
    merged = merge([Dataset.load(tmp_path / name) for name in ("one", "two")], tmp_path / "both")
    np.testing.assert_array_equal(merged.columns["plans"][:4, :, :1], plans)
    assert (merged.columns["plans"][:4, :, 1] == [0, 1]).all()
    assert merged.columns["planned"].tolist() == [False] + 3 * [True] + 4 * [False]


def test_describe(tmp_path: Path) -> None:
    data = written(tmp_path / "data", random_episodes(20), tasks=["walk", "run", "jump"], source="a test")
    text = data.describe(tmp_path / "returns.png")
    assert f"{data.rows:,} transitions in 20 episodes" in text and "a test" in text
    assert all(name in text for name in ("walk", "run", "jump"))
    assert (tmp_path / "returns.png").read_bytes().startswith(b"\x89PNG")


# -- What is refused ---------------------------------------------------------------------------------------------------


def change_json(path: Path, **values: Any) -> None:
    about = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**about, **values}))


def spoil_missing(path: Path) -> None:
    (path / "rewards.npy").unlink()


def spoil_truncated(path: Path) -> None:
    with open(path / "actions.npy", "rb+") as file:
        file.truncate(700)


def spoil_changed(path: Path) -> None:
    with open(path / "rewards.npy", "rb+") as file:
        file.seek(-4, 2)
        file.write(b"abcd")


def spoil_version(path: Path) -> None:
    change_json(path, version=7)


def spoil_json(path: Path) -> None:
    (path / "dataset.json").write_text((path / "dataset.json").read_text()[:100])


def spoil_types(path: Path) -> None:
    change_json(path, columns=3)


def spoil_tasks(path: Path) -> None:
    change_json(path, tasks=[dict(name="walk", action_dim=2, episode_length="long")])


def spoil_space(path: Path) -> None:
    about = json.loads((path / "dataset.json").read_text())
    about["action_space"]["shape"] = [3]
    (path / "dataset.json").write_text(json.dumps(about))


def spoil_pickle(path: Path) -> None:
    """An array of objects, which NumPy would unpickle; the description agrees with it."""
    np.save(path / "rewards.npy", np.array([Bomb()] * 3, dtype=object), allow_pickle=True)
    replaced = ColumnFile.__new__(ColumnFile)
    replaced.path, replaced.rows, replaced.checksum = path / "rewards.npy", 3, 0
    about = json.loads((path / "dataset.json").read_text())
    about["columns"]["rewards"] = replaced.describe()
    (path / "dataset.json").write_text(json.dumps(about))


def spoil_index(path: Path) -> None:
    """Episodes that reach past the columns; the description agrees with it."""
    index = np.load(path / "episodes.npy")
    index["length"][0] += 1_000_000
    replaced = ColumnFile(path / "episodes.npy", index.dtype)
    replaced.append(index)
    replaced.close()
    about = json.loads((path / "dataset.json").read_text())
    about["columns"]["episodes"] = replaced.describe()
    (path / "dataset.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_missing, ["lacks the column 'rewards'"]),
        (spoil_truncated, ["actions.npy is truncated"]),
        (spoil_changed, ["rewards.npy has changed"]),
        (spoil_version, ["version 7", "install a newer one"]),
        (spoil_json, ["dataset.json is damaged"]),
        (spoil_types, ["dataset.json is damaged"]),
        (spoil_tasks, ["dataset.json is damaged"]),
        (spoil_space, ["actions.npy does not fit the spaces"]),
        (spoil_pickle, ["rewards.npy is no array of numbers"]),
        (spoil_index, ["do not fit its columns"]),
    ],
)
def test_damaged_data_are_refused_in_a_sentence(tmp_path: Path, spoil: Any, words: list[str]) -> None:
    written(tmp_path / "data", random_episodes(5))
    spoil(tmp_path / "data")
    with pytest.raises(ValueError) as caught:
        Dataset.load(tmp_path / "data")
    assert_one_clear_sentence(caught.value, *words)


def test_one_changed_byte_is_found_by_reading_all(tmp_path: Path) -> None:
    """In a file that is too large to be read at once for every start."""
    length = 400_000
    episode = dict(observations=np.zeros((length + 1, 1)), actions=np.zeros((length, 2)), rewards=np.zeros(length))
    written(tmp_path / "data", [dict(episode, terminated=False)], spaces.Box(-1, 1, (1,), np.float32))
    with open(tmp_path / "data" / "rewards.npy", "rb+") as file:
        file.seek(512 + 6_000)  # between the first and the second of the samples
        file.write(b"\x01")
    Dataset.load(tmp_path / "data")
    with pytest.raises(ValueError, match="rewards.npy has changed"):
        Dataset.load(tmp_path / "data", verify=True)


def test_files_that_change_after_loading(tmp_path: Path) -> None:
    data = written(tmp_path / "data", random_episodes(5))
    (tmp_path / "data" / "rewards.npy").touch()
    with pytest.raises(ValueError) as caught:
        data.windows()
    assert_one_clear_sentence(caught.value, "changed since they were loaded", "load the data set again")


ONE = dict(observations=np.zeros((3, 3)), actions=np.zeros((2, 2)), rewards=np.zeros(2), terminated=False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(observations=np.zeros((2, 3))), ["'observations'", "final one"]),
        (dict(observations={"x": np.zeros((3, 3))}), ["'observations' is missing in episode 0"]),
        (dict(actions=np.zeros((2, 3))), ["Actions in episode 0 have the shape"]),
        (dict(rewards=np.array([0, np.nan])), ["'rewards' is NaN", "episode 0, row 1"]),
        (dict(observations=np.full((3, 3), np.inf)), ["'observations' is NaN or infinite"]),
        (dict(task=1), ["There are 1 tasks"]),
    ],
)
def test_wrong_episodes_are_refused_and_leave_nothing(tmp_path: Path, wrong: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        written(tmp_path / "data", [{**ONE, **wrong}], SPACES["box"])
    assert_one_clear_sentence(caught.value, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    written(tmp_path / "data", [ONE, ONE], SPACES["box"])
    with pytest.raises(FileExistsError) as caught:
        written(tmp_path / "data", [ONE], SPACES["box"])
    assert_one_clear_sentence(caught.value, "already")
    with pytest.raises(ValueError, match="NaN"):  # the old one stays until the new one is complete
        written(tmp_path / "data", [dict(ONE, rewards=np.full(2, np.nan))], SPACES["box"], overwrite=True)
    assert Dataset.load(tmp_path / "data").rows == 4
    assert written(tmp_path / "data", [ONE], SPACES["box"], overwrite=True).rows == 2
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError):  # nobody's other folder is removed
        written(tmp_path / "notes", [ONE], SPACES["box"], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "notes"]


@pytest.mark.parametrize(
    ("space", "box", "words"),
    [
        (SPACES["box"], spaces.Discrete(3), ["continuous actions"]),
        (spaces.Dict(a=spaces.Dict(b=spaces.Box(-1, 1))), ACTIONS, ["nested"]),
        (spaces.Text(3), ACTIONS, ["cannot be written"]),
    ],
)
def test_spaces_that_cannot_be_learned_from(tmp_path: Path, space: Any, box: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught, DatasetWriter(tmp_path / "data", space, box):
        pass
    assert_one_clear_sentence(caught.value, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(actions=np.zeros((4, 1))), ["4 actions, but 3 rewards"]),
        (dict(terminated=np.array([0, 1, 0])), ["next_observations"]),
        (dict(terminated=np.zeros(2)), ["2 terminated"]),
    ],
)
def test_arrays_that_do_not_agree(arguments: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Dataset.from_arrays(
            **{"observations": np.zeros((3, 2)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3), **arguments}
        )
    assert_one_clear_sentence(caught.value, *words)


def test_rules_of_sampling(tmp_path: Path) -> None:
    data = written(tmp_path / "data", [ONE], SPACES["box"])
    with pytest.raises(ValueError, match="sampling='rows' is unknown"):
        data.windows(2, "rows")
    with pytest.raises(ValueError, match="No episode of .* has 3 transitions"):
        data.windows(3, "episodes")


def test_the_environment_of_a_data_set_cannot_be_stepped(tmp_path: Path) -> None:
    env = written(tmp_path / "data", [ONE], SPACES["box"]).as_env()
    assert env.observation_space == SPACES["box"] and env.get_wrapper_attr("_max_episode_steps") == 2
    with pytest.raises(RuntimeError, match="set_env"):
        env.reset()
    assert PointEnv().observation_space != env.observation_space


def task_writer(path: Path, count: int = 3, **kwargs: Any) -> DatasetWriter:
    space = spaces.Dict(obs=spaces.Box(-1, 1, (2,), np.float32), task=spaces.Discrete(count))
    return DatasetWriter(path, space, spaces.Box(-1, 1, (2,), np.float32), **kwargs)


def test_tasks_of_which_nothing_is_known(tmp_path: Path) -> None:
    """Without an episode, or with zero actions alone, a task has all actions; without an episode no known length."""
    with task_writer(tmp_path / "data") as writer:
        for task, actions in ((0, np.ones((4, 2)) * [1, 0]), (1, np.zeros((4, 2)))):
            observations = dict(obs=np.zeros((5, 2)), task=np.full(5, task))
            writer.add(observations, actions, np.zeros(4), terminated=False)
    data = Dataset.load(tmp_path / "data")
    assert [task.action_dim for task in data.tasks] == [1, 2, 2]
    assert [task.episode_length for task in data.tasks] == [4, 4, None]
    assert data.policy_kwargs["gammas"][2] == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(tasks=["a", "a", "b"]), "must be different names"),
        (dict(tasks=[0, 1, 2]), "must be a list of names"),
        (dict(tasks="abc"), "must be a list of names"),
        (dict(episode_lengths=[5, 0, 5]), "must be at least 1"),
        (dict(count=200_000), "more than 10000"),
    ],
    ids=str,
)
def test_wrong_tasks(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task_writer(tmp_path / "data", **wrong)


@pytest.mark.parametrize("fraction", [-0.5, 1.5, float("nan")])
def test_split_by_a_wrong_fraction(tmp_path: Path, fraction: float) -> None:
    data = Dataset.from_arrays(np.zeros((8, 2)), np.zeros((8, 1)), np.zeros(8), path=tmp_path / "data")
    with pytest.raises(ValueError, match="fraction"):
        data.split(fraction)


def test_tasks_of_a_replay_buffer(tmp_path: Path) -> None:
    """The environment tells what its transitions do not: names, numbers of actions and lengths of the tasks."""
    env = make_multitask(["Pendulum-v1", "MountainCarContinuous-v0"])
    model = make_agent(TDMPC2, env, "MultitaskPolicy", dict(task_dim=4), learning_starts=10, seed=0)
    model.learn(8)
    data = Dataset.from_replay_buffer(model.replay_buffer, tmp_path / "data", model.env)
    assert data.tasks == [("Pendulum-v1", 1, 200), ("MountainCarContinuous-v0", 1, 999)]
    single = make_agent(TDMPC2, "Pendulum-v1", learning_starts=10, seed=0)
    single.learn(8)
    for known in (single.env, gym.make("Pendulum-v1")):
        data = Dataset.from_replay_buffer(single.replay_buffer, env=known)
        assert data.tasks == [("Pendulum-v1", 1, 200)]


def test_environments_in_other_processes_tell_what_they_can() -> None:
    """Their spec is not asked for: a worker would die of one that cannot be pickled."""
    env = SubprocVecEnv([unpicklable_spec])
    assert tasks_of(env) == dict(tasks=None, episode_lengths=[6])
    env.close()


def unpicklable_spec() -> gym.Env:
    env = gym.wrappers.TimeLimit(PointEnv(6), 6)
    env.unwrapped.spec = EnvSpec("Point-v0", entry_point=lambda: PointEnv(6))
    return env


def test_sets_of_one_task_have_the_same_spaces(tmp_path: Path) -> None:
    sets = [
        Dataset.from_arrays(np.zeros((8, width)), np.zeros((8, 1)), np.zeros(8), path=tmp_path / str(i))
        for i, width in enumerate((3, 5, 4))
    ]
    with pytest.raises(ValueError, match="different spaces and one task, 'a'"):
        merge(sets, tmp_path / "all", ["a", "a", "b"])
