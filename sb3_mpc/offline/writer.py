"""Writing data sets, episode by episode, so that they may be larger than the memory."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mpc.agents.space_json import space_to_json
from sb3_mpc.common.checks.arguments import check_action_space
from sb3_mpc.offline.layout import (
    DESCRIPTION,
    EPISODE,
    TASK,
    ColumnFile,
    columns,
    default_names,
    describe,
    observation_columns,
    tells_task,
)

MOST_TASKS = 10_000  # an index beyond is an error, and would make as many entries
TOLERANCE = 1e-3  # of actions beyond [-1, 1], before it is said that they are cut


class DatasetWriter:
    """
    Writes a data set into a temporary folder beside ``path``, which is renamed when it is complete::

        with DatasetWriter("data/walker", observation_space, action_space) as writer:
            writer.add(observations, actions, rewards, terminated=False)

    :param path: folder of the data set
    :param observation_space: space of the observations: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them
    :param action_space: space of the actions, a bounded Box
    :param tasks: names of the tasks; by default one, or as many as the observations tell
    :param action_dims: number of action dimensions of each task; by default those that are not always zero
    :param episode_lengths: decisions after which a time limit ends an episode of each task; by default the most in the
        data
    :param plans: whether plans are recorded, too
    :param source: where the data come from, in words
    :param overwrite: whether to replace a data set that is there
    :raises FileExistsError: if something is there
    :raises ValueError: if the spaces are of another kind
    """

    def __init__(
        self,
        path: str | Path,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        tasks: Sequence[str] | None = None,
        action_dims: Sequence[int] | None = None,
        episode_lengths: Sequence[int | None] | None = None,
        plans: bool = False,
        source: str = "",
        overwrite: bool = False,
    ) -> None:
        self.path, self.overwrite, self.source = Path(path), overwrite, source
        if self.path.exists() and not (overwrite and (self.path / DESCRIPTION).exists()):
            advice = "give another folder" if not (self.path / DESCRIPTION).exists() else "or let it be overwritten"
            raise FileExistsError(f"There is something at {self.path} already: remove it, {advice}.")
        check_action_space(action_space, "A data set")
        assert isinstance(action_space, spaces.Box)
        nested = isinstance(observation_space, spaces.Dict) and any(
            isinstance(sub, (spaces.Dict, spaces.Tuple)) for sub in observation_space.spaces.values()
        )
        if nested or isinstance(observation_space, spaces.Tuple):
            raise ValueError(
                f"The observations {observation_space} are nested: flatten them to arrays or a dict of them."
            )
        space_to_json(observation_space)  # raises for those that no file can hold
        self.observation_space, self.action_space = observation_space, action_space
        count = len(tasks or ["task"])
        if tells_task(observation_space):
            assert isinstance(observation_space, spaces.Dict)
            count = int(observation_space.spaces[TASK].n)  # type: ignore[attr-defined]
        if count > MOST_TASKS:
            raise ValueError(f"There are {count} tasks, more than {MOST_TASKS}: is {TASK!r} the index of one?")
        self.names = list(tasks or default_names(count))
        if isinstance(tasks, str) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"tasks={tasks!r:.200} must be a list of names.")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"tasks={self.names!r:.200} must be different names, one for each task.")
        for name, values in (("tasks", self.names), ("action_dims", action_dims), ("episode_lengths", episode_lengths)):
            if values is not None and len(values) != count:
                raise ValueError(f"There are {count} tasks, but {len(values)} {name}: give one for each task.")
        if any(length is not None and not length >= 1 for length in episode_lengths or []):
            raise ValueError(f"{episode_lengths=} must be at least 1, or None without limit.")
        self._dims, self._lengths = action_dims, episode_lengths
        self._used, self._longest = np.zeros((count, spaces.flatdim(action_space)), bool), np.zeros(count, np.int64)
        self._parts = observation_columns(observation_space)
        self._rows = columns(observation_space, action_space, plans)
        self._plans, self._episodes, self._cut = plans, 0, 0

    def __enter__(self) -> "DatasetWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent))
        os.chmod(self._folder, 0o755)
        self._files = {
            name: ColumnFile(self._folder / f"{name}.npy", row)
            for name, row in dict(self._rows, episodes=EPISODE).items()
        }
        return self

    def add(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool | np.ndarray,
        truncated: bool | np.ndarray = False,
        lengths: Sequence[int] | np.ndarray | None = None,
        task: int | np.ndarray | None = None,
        plans: np.ndarray | None = None,
        planned: np.ndarray | None = None,
        scaled: bool = False,
    ) -> None:
        """
        Add one episode, or N episodes one after the other with M transitions in all.

        :param observations: with the final one of each episode ``[M + N, *shape]``, or a dict of them
        :param actions: in the action space ``[M, A]``
        :param rewards: ``[M]``
        :param terminated: whether the episodes ended by termination ``[N]``
        :param truncated: whether they ended by a time limit ``[N]``
        :param lengths: number of transitions of each episode ``[N]``; None for one episode
        :param task: index of the task of each episode ``[N]``; by default what the observations tell, or 0
        :param plans: mean and standard deviation of the planned actions ``[M, 2, A]``
        :param planned: whether there is a plan ``[M]``
        :param scaled: whether actions are in [-1, 1] already
        :raises ValueError: if shapes do not agree, or a number is NaN or infinite
        """
        rewards = np.asarray(rewards, np.float32).reshape(-1)
        lengths = np.atleast_1d(np.asarray([len(rewards)] if lengths is None else lengths, np.int64))
        where = f"in the episodes from {self._episodes} on" if len(lengths) > 1 else f"in episode {self._episodes}"
        if not lengths.all() or lengths.sum() != len(rewards):
            raise ValueError(f"There are {len(rewards)} rewards for {lengths.sum()} transitions {where}.")
        parts = self._split(observations, len(rewards), len(lengths), where)
        actions = np.asarray(actions, np.float32).reshape(len(actions), -1)
        dim = spaces.flatdim(self.action_space)
        if actions.shape != (len(rewards), dim):
            raise ValueError(f"Actions {where} have the shape {actions.shape}, not {(len(rewards), dim)}.")
        values = {self._parts[key][0]: part for key, part in parts.items()}
        values |= dict(actions=self._scaled(actions, scaled), rewards=rewards)
        for name, array in values.items():
            check_finite(name, array, where)
        if self._plans:
            planned = np.zeros(len(rewards), bool) if planned is None else np.asarray(planned, bool).reshape(-1)
            values["planned"] = planned
            values["plans"] = np.full((len(rewards), 2, dim), np.nan, np.float32) if plans is None else plans
        index = np.zeros(len(lengths), EPISODE)
        index["length"], index["start"] = lengths, self._files["rewards"].rows + np.cumsum(lengths) - lengths
        index["terminated"], index["truncated"] = terminated, truncated
        index["task"] = self._tasks(observations, task, lengths, where)
        for name, array in dict(values, episodes=index).items():
            self._files[name].append(array)
        self._episodes += len(lengths)
        np.maximum.at(self._longest, index["task"], lengths)
        steps = np.repeat(index["task"], lengths)
        for task_index in np.unique(index["task"]):
            self._used[task_index] |= values["actions"][steps == task_index].any(axis=0)

    def _split(
        self, observations: np.ndarray | dict[str, np.ndarray], steps: int, episodes: int, where: str
    ) -> dict[str, np.ndarray]:
        given = observations if isinstance(observations, dict) else {"": observations}
        parts = {}
        for key, (name, space) in self._parts.items():
            if key not in given:
                raise ValueError(
                    f"The column {name!r} is missing {where}: give observations of {self.observation_space}."
                )
            part, shape = np.asarray(given[key]), (steps + episodes, *(space.shape or ()))
            if part.size != np.prod(shape, dtype=np.int64) or len(part) != shape[0]:
                raise ValueError(
                    f"The column {name!r} has the shape {part.shape} {where}, not {shape}: one observation for each "
                    "transition, and the final one of each episode."
                )
            parts[key] = part.reshape(shape).astype(space.dtype, copy=False)
        return parts

    def _tasks(self, observations: Any, task: int | np.ndarray | None, lengths: np.ndarray, where: str) -> np.ndarray:
        tasks = np.zeros(len(lengths), np.int32) if task is None else np.broadcast_to(task, len(lengths))
        if task is None and tells_task(self.observation_space):
            if TASK not in observations:
                raise ValueError(f"The column {TASK!r} is missing {where}: observations have the index of the task.")
            told = np.asarray(observations[TASK]).reshape(-1)
            first = np.cumsum(lengths + 1) - lengths - 1
            tasks = told[first]
            if not np.array_equal(told, np.repeat(tasks, lengths + 1)):
                raise ValueError(
                    f"The observation {TASK!r} changes {where}, but it names the task: give it another key."
                )
        if (np.asarray(tasks) < 0).any() or (np.asarray(tasks) >= len(self.names)).any():
            raise ValueError(f"There are {len(self.names)} tasks, but {where} the task is {int(np.max(tasks))}.")
        return np.asarray(tasks)

    def _scaled(self, actions: np.ndarray, scaled: bool) -> np.ndarray:
        """:return: actions in [-1, 1]; what is beyond is cut"""
        low, high = self.action_space.low.reshape(-1), self.action_space.high.reshape(-1)
        if not scaled and not ((low == -1) & (high == 1)).all():
            actions = (2.0 * ((actions - low) / (high - low)) - 1.0).astype(np.float32)
        self._cut += int((np.abs(actions) > 1 + TOLERANCE).any(axis=1).sum())
        return np.clip(actions, -1, 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.file.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if self._episodes == 0:
            raise ValueError(f"There is no transition to write to {self.path}: give data, or collect some.")
        if self._cut:
            warnings.warn(
                f"{self._cut} actions are outside of the action space {self.action_space} and were cut to it: check "
                "the bounds, and whether the environment cuts them, too.",
                stacklevel=4,
            )
        for file in self._files.values():
            file.close()
        width = self._used.shape[1]
        # Where all actions are zero, nothing tells how many a task has
        dims = self._dims or [int(np.max(np.flatnonzero(used), initial=-1)) + 1 or width for used in self._used]
        if len(self.names) == 1 and self._dims is None:
            dims = [width]
        lengths = self._lengths or [length or None for length in self._longest.tolist()]
        tasks = [
            dict(name=name, action_dim=int(dim), episode_length=None if length is None else int(length))
            for name, dim, length in zip(self.names, dims, lengths, strict=True)
        ]
        text = describe(self.observation_space, self.action_space, tasks, self.source, self._files)
        with open(self._folder / DESCRIPTION, "w") as description:
            description.write(text)
            description.flush()
            os.fsync(description.fileno())
        old = self._folder.with_suffix(".old")
        if self.path.exists():
            os.rename(self.path, old)
        os.rename(self._folder, self.path)
        shutil.rmtree(old, ignore_errors=True)


def check_finite(name: str, array: np.ndarray, where: str) -> None:
    """
    :param name: name of the column, for the message
    :param array: its values
    :param where: where they are, for the message
    :raises ValueError: if one is NaN or infinite
    """
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(
            f"The column {name!r} is NaN or infinite {where}, row {row}: leave such episodes out, or mend the "
            "recording."
        )
