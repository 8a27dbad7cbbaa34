"""A data set on disk, what is in it, and how it is made from other data."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.discount import DEFAULT_GAMMA, discount_from_episode_length
from sb3_mpc.offline import sources
from sb3_mpc.offline.layout import (
    DESCRIPTION,
    EPISODE,
    TASK,
    RowReader,
    observation_columns,
    open_column,
    read_description,
    tells_task,
)
from sb3_mpc.offline.spaces_env import SpacesEnv
from sb3_mpc.offline.windows import Windows
from sb3_mpc.offline.writer import DatasetWriter

ROWS_AT_ONCE = 100_000  # transitions that are copied at once


class Task(NamedTuple):
    """
    A task of a data set.

    :param name: its name
    :param action_dim: number of its action dimensions, the first ones of A
    :param episode_length: decisions after which a time limit ends an episode, None if there is no limit
    """

    name: str
    action_dim: int
    episode_length: int | None


class Dataset:
    """
    Recorded transitions on disk, mapped into memory; :meth:`load`, the methods ``from_...`` and
    ``sb3_mpc.offline.merge`` make one. It cannot be changed::

        data = Dataset.load("data/walker")
        print(data.describe())
        model = TDMPC2("MlpPolicy", data.as_env())
        model.learn_offline(data, gradient_steps=100_000)

    :param path: folder of the data set
    :param verify: whether to read all of it and compare checksums; without, sizes and samples are compared
    :raises FileNotFoundError: if there is none
    :raises ValueError: if a column is missing, truncated, changed or damaged, or the format is unknown
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self.path = Path(path)
        about = read_description(self.path)
        self.observation_space: spaces.Space = about["observation_space"]
        self.action_space: spaces.Space = about["action_space"]
        self.source = str(about.get("source", ""))
        self.tasks = [Task(task["name"], int(task["action_dim"]), task["episode_length"]) for task in about["tasks"]]
        # Rows of the columns by their names; an observation is in the row of its transition plus its episode's number
        self.columns = {
            name: open_column(self.path, name, row, about["columns"].get(name), verify)
            for name, row in about["rows"].items()
        }
        self.episodes = np.array(self.columns.pop("episodes"))  # as EPISODE of sb3_mpc.offline.layout
        self.readers = {name: RowReader(self.path / f"{name}.npy", column) for name, column in self.columns.items()}
        self.numbers = np.arange(len(self.episodes))  # of these episodes on disk
        self._stamp = self._stat()
        self._digest = hashlib.sha256((self.path / DESCRIPTION).read_bytes()).hexdigest()
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._check_index()

    def _check_index(self) -> None:
        index, rows = self.episodes, len(self.columns["rewards"])
        ends = np.cumsum(index["length"])
        sound = len(index) > 0 and (index["length"] > 0).all() and ends[-1] == rows == len(self.columns["actions"])
        sound = sound and np.array_equal(index["start"], ends - index["length"])
        sound = sound and (index["task"] >= 0).all() and (index["task"] < len(self.tasks)).all()
        names = [name for name, _ in observation_columns(self.observation_space).values()]
        sound = sound and all(len(self.columns[name]) == rows + len(index) for name in names)
        if "plans" in self.columns:
            sound = sound and rows == len(self.columns["plans"]) == len(self.columns["planned"])
        if not sound:
            raise ValueError(f"The episodes of {self.path} do not fit its columns: copy or convert the data set again.")

    def _stat(self) -> list[tuple[int, int, int]]:
        files = [self.path / f"{name}.npy" for name in sorted(self.columns)]
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, files)]

    @classmethod
    def load(cls, path: str | Path, verify: bool = False) -> "Dataset":
        """
        :param path: folder of the data set
        :param verify: whether to read all of it and compare checksums
        :return: the data set
        """
        return cls(path, verify)

    # -- What is in it -------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """:return: number of transitions"""
        return int(self.episodes["length"].sum())

    def __len__(self) -> int:
        return self.rows

    @property
    def terminates(self) -> bool:
        """:return: whether an episode ended by termination"""
        return bool(self.episodes["terminated"].any())

    @property
    def fingerprint(self) -> str:
        """:return: what only this data set has, and this selection of its episodes"""
        return hashlib.sha256(self._digest.encode() + self.numbers.tobytes()).hexdigest()

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """:return: arguments of ``MultitaskPolicy`` that follow from the tasks; nothing if observations tell no task"""
        if not tells_task(self.observation_space):
            return {}
        lengths = [task.episode_length for task in self.tasks]
        gammas = [DEFAULT_GAMMA if length is None else discount_from_episode_length(length) for length in lengths]
        env: Any = self.as_env()
        return dict(task_names=env.task_names, action_dims=env.action_dims, gammas=gammas)

    def returns(self) -> np.ndarray:
        """:return: sum of the rewards of each episode ``[N]``"""
        result = np.zeros(len(self.episodes))
        for part in self._groups():
            starts, lengths = self.episodes["start"][part], self.episodes["length"][part]
            rewards = self.columns["rewards"][rows_of(starts, lengths)].astype(np.float64)
            result[part] = np.add.reduceat(rewards, np.cumsum(lengths) - lengths)
        return result

    def _groups(self) -> Iterable[np.ndarray]:
        """:return: numbers of episodes that are looked at together"""
        group = np.cumsum(self.episodes["length"]) // ROWS_AT_ONCE
        return np.split(np.arange(len(self.episodes)), np.flatnonzero(np.diff(group)) + 1)

    def episode(self, number: int) -> dict[str, Any]:
        """
        :param number: number of an episode, from 0 on
        :return: ``observations`` ``[T + 1, *shape]`` or a dict of them, ``actions`` in [-1, 1] ``[T, A]``, ``rewards``
            ``[T]``, ``terminated``, ``truncated`` and ``task``; copies
        """
        found = self._gather(np.array([number]))
        names = ("actions", "rewards")
        flags = {name: found[name][0].item() for name in ("terminated", "truncated", "task")}
        return dict(observations=found["observations"], **{name: found[name] for name in names}, **flags)

    def _gather(self, chosen: np.ndarray) -> dict[str, Any]:
        """
        :param chosen: numbers of episodes ``[N]``
        :return: arguments of :meth:`DatasetWriter.add`
        """
        index = self.episodes[chosen]
        rows = rows_of(index["start"], index["length"])
        of_observations = rows_of(index["start"] + self.numbers[chosen], index["length"] + 1)
        stored = observation_columns(self.observation_space)
        parts: Any = {key: self.columns[name][of_observations] for key, (name, _) in stored.items()}
        if tells_task(self.observation_space):
            parts[TASK] = np.repeat(index["task"], index["length"] + 1).astype(np.int64)
        found = dict(observations=parts if isinstance(self.observation_space, spaces.Dict) else parts[""])
        found |= {
            name: self.columns[name][rows]
            for name in ("actions", "rewards", "plans", "planned")
            if name in self.columns
        }
        return (
            found | {name: index[name] for name in ("terminated", "truncated", "task")} | dict(lengths=index["length"])
        )

    def parts(self) -> Iterator[dict[str, Any]]:
        """:return: all episodes, some at a time, as arguments of :meth:`sb3_mpc.offline.writer.DatasetWriter.add`"""
        for chosen in self._groups():
            yield self._gather(chosen)

    def describe(self, picture: str | Path | None = None) -> str:
        """
        :param picture: where to draw the returns, in PNG for example; None for no picture (needs matplotlib)
        :return: what is in the data set, as text
        """
        from sb3_mpc.offline.description import description, draw

        if picture is not None:
            draw(self, Path(picture))
        return description(self)

    # -- Learning from it ----------------------------------------------------------------------------------------------

    def windows(
        self,
        horizon: int = 3,
        sampling: str = "transitions",
        observation_space: spaces.Space | None = None,
        device: th.device | str = "cpu",
        plans: bool = False,
        seed: int | None = None,
    ) -> Windows:
        """
        :param horizon: number H of transitions in a window
        :param sampling: rule by which they are drawn, see :class:`sb3_mpc.offline.windows.Windows`
        :param observation_space: space whose types observations get; that of the data if None
        :param device: device of the sampled tensors
        :param plans: whether batches have plans
        :param seed: seed of the sampling, taken from the operating system if None
        :return: what draws windows
        :raises ValueError: if the files have changed since the data set was loaded
        """
        if self._stat() != self._stamp:
            raise ValueError(f"The files of {self.path} have changed since they were loaded: load the data set again.")
        return Windows(self, horizon, sampling, observation_space, device, plans, seed)

    def as_env(self) -> gym.Env:
        """
        :return: an environment that has the spaces of the data, and says how long episodes are, for agents that never
            act; it cannot be stepped
        """
        return SpacesEnv(self.observation_space, self.action_space, self.tasks)

    # -- Parts of it ---------------------------------------------------------------------------------------------------

    def select(self, episodes: np.ndarray) -> "Dataset":
        """
        :param episodes: numbers of episodes, or which to take ``[N]``
        :return: a data set of these episodes alone, which shares the files
        :raises ValueError: if there is none
        """
        chosen = np.arange(len(self.episodes))[np.asarray(episodes)]
        if len(chosen) == 0:
            raise ValueError(f"No episode of {self.path} is left: select one at least.")
        part: Dataset = object.__new__(type(self))
        vars(part).update(vars(self))
        part.episodes, part.numbers = self.episodes[chosen], self.numbers[chosen]
        return part

    def of_tasks(self, names: Sequence[str] | str) -> "Dataset":
        """
        :param names: names of tasks, or of one
        :return: a data set of the episodes of these tasks; tasks keep their numbers
        :raises ValueError: if there is no such task
        """
        names, known = [names] if isinstance(names, str) else names, [task.name for task in self.tasks]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{self.path} has no task {unknown[0]!r}: it has {', '.join(known)}.")
        return self.select(np.isin(self.episodes["task"], [known.index(name) for name in names]))

    def split(self, fraction: float = 0.9, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """
        :param fraction: part of the episodes of each task in the first data set
        :param seed: seed of the choice
        :return: two data sets that share the files and have no episode in common
        :raises ValueError: if one would be empty
        """
        check_range("fraction", fraction, 0, 1)
        order = np.random.default_rng(seed).permutation(len(self.episodes))
        first = np.zeros(len(self.episodes), bool)
        for task in np.unique(self.episodes["task"]):
            own = order[self.episodes["task"][order] == task]
            first[own[: round(fraction * len(own))]] = True
        return self.select(first), self.select(~first)

    def save(self, path: str | Path, overwrite: bool = False) -> "Dataset":
        """
        :param path: folder to copy this selection of episodes to
        :param overwrite: whether to replace a data set that is there
        :return: the copy
        """
        names, dims, lengths = zip(*self.tasks, strict=True)
        with DatasetWriter(
            path,
            self.observation_space,
            self.action_space,
            names,
            dims,
            lengths,
            "plans" in self.columns,
            self.source,
            overwrite,
        ) as writer:
            for part in self.parts():
                writer.add(**part, scaled=True)
        return type(self)(path)

    # -- Made from other data ------------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray | dict[str, np.ndarray] | None = None,
        terminated: np.ndarray | None = None,
        truncated: np.ndarray | None = None,
        path: str | Path | None = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Box | None = None,
        **kwargs: Any,
    ) -> "Dataset":
        """
        :param observations: ``[M, *shape]``, or a dict of such arrays
        :param actions: in the action space ``[M, A]``
        :param rewards: ``[M]``
        :param next_observations: observations behind each transition; only those where an episode ends are used. If
            None, the last observation of each episode serves as its final one, and its last action and reward are left
            out
        :param terminated: whether a termination ended the episode there ``[M]``
        :param truncated: whether the episode was cut there ``[M]``; the last transition ends one in any case
        :param path: folder for the data set; None for a temporary one that is deleted with the object
        :param observation_space: space of the observations; by default an unbounded Box of their shape and type, or
            0 to 255 for images
        :param action_space: space of the actions; by default [-1, 1]
        :param kwargs: further arguments of :class:`sb3_mpc.offline.writer.DatasetWriter`
        :return: the data set
        """
        given = dict(observations=observations, actions=actions, rewards=rewards, next_observations=next_observations)
        space = observation_space or sources.space_of(observations)
        box = action_space or spaces.Box(-1, 1, np.asarray(actions).reshape(len(actions), -1).shape[1:], np.float32)
        episodes = sources.of_arrays(**given, terminated=terminated, truncated=truncated)  # type: ignore[arg-type]
        return cls._write(episodes, path, space, box, **{"source": "arrays", **kwargs})

    @classmethod
    def from_replay_buffer(
        cls,
        buffer: SequenceReplayBuffer,
        path: str | Path | None = None,
        env: GymEnv | None = None,
        **kwargs: Any,
    ) -> "Dataset":
        """
        :param buffer: a replay buffer of this package; its plans are taken, too
        :param path: folder for the data set; None for a temporary one that is deleted with the object
        :param env: the environment of the transitions, such as ``model.env``, which tells names, numbers of actions and
            lengths of its tasks; without, the data tell what they can
        :param kwargs: further arguments of :class:`sb3_mpc.offline.writer.DatasetWriter`
        :return: the data set
        """
        plans = any(episode.plans is not None for episode in buffer.episodes())
        settings = {"source": f"a {type(buffer).__name__}", **sources.tasks_of(env), **kwargs}
        space, box = buffer.observation_space, buffer.action_space
        assert isinstance(box, spaces.Box)
        return cls._write(sources.of_buffer(buffer), path, space, box, plans=plans, **settings)

    @classmethod
    def from_minari(
        cls, source: str | Path, path: str | Path | None = None, download: bool = False, **kwargs: Any
    ) -> "Dataset":
        """
        :param source: id of a Minari data set in the local cache (``"mujoco/halfcheetah/medium-v0"``), or its folder
        :param path: folder for the data set; None for a temporary one that is deleted with the object
        :param download: whether Minari may download it if it is not in the cache
        :param kwargs: further arguments of :class:`sb3_mpc.offline.writer.DatasetWriter`
        :return: the data set
        :raises ImportError: if minari is not installed
        :raises FileNotFoundError: if there is no such data set
        """
        minari = sources.find_minari(source, download)
        settings = {"source": f"Minari, {minari.spec.dataset_id}", **kwargs}
        if (spec := minari.spec.env_spec) is not None:
            settings = {"tasks": [spec.id], "episode_lengths": [spec.max_episode_steps], **settings}
        if tells_task(minari.observation_space):
            settings = {name: value for name, value in settings.items() if name in ("source", *kwargs)}
        box = minari.action_space
        return cls._write(sources.of_minari(minari), path, minari.observation_space, box, **settings)

    @classmethod
    def from_official(
        cls,
        source: str | Path | Sequence[str | Path],
        path: str | Path | None = None,
        **kwargs: Any,
    ) -> "Dataset":
        """
        Data of the official TD-MPC2 for several tasks (mt30, mt80). Files are read one after the other; nothing but
        tensors is taken from them, and nothing is executed.

        :param source: folder with files ``chunk_*.pt``, or such files
        :param path: folder for the data set; None for a temporary one that is deleted with the object
        :param kwargs: further arguments of :class:`sb3_mpc.offline.writer.DatasetWriter`; the numbers of action
            dimensions and the lengths of episodes of mt30 and mt80 are known
        :return: the data set
        :raises ValueError: if a file is none of these
        """
        from sb3_mpc.offline import official

        files = official.find_chunks(source)
        space, box, lengths = official.infer(files)
        settings = {"source": f"official data, {len(files)} files", "episode_lengths": lengths, **kwargs}
        return cls._write(official.of_chunks(files), path, space, box, **settings)

    @classmethod
    def _write(
        cls,
        episodes: Iterable[dict[str, Any]],
        path: str | Path | None,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        **kwargs: Any,
    ) -> "Dataset":
        temporary = tempfile.TemporaryDirectory(prefix="sb3-mpc-data-") if path is None else None
        folder = Path(temporary.name) / "data" if temporary is not None else Path(str(path))
        with DatasetWriter(folder, observation_space, action_space, **kwargs) as writer:
            for part in episodes:
                writer.add(**part)
        data = cls(folder)
        data._temporary = temporary
        return data


def rows_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    :param starts: first rows ``[N]``
    :param lengths: numbers of rows ``[N]``
    :return: all these rows, one after the other ``[M]``
    """
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


__all__ = ["EPISODE", "Dataset", "Task"]
