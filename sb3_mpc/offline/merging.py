"""Data sets put together: more of the same, or several tasks in one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mpc.common.policies.multitask import OBSERVATION
from sb3_mpc.offline.dataset import Dataset
from sb3_mpc.offline.layout import TASK, tells_task
from sb3_mpc.offline.writer import DatasetWriter


def merge(
    datasets: Sequence[Dataset], path: str | Path, tasks: Sequence[str] | None = None, overwrite: bool = False
) -> Dataset:
    """
    Put data sets together. Those of the same tasks and spaces make a larger one. Otherwise, or if ``tasks`` are
    given, the new one has the tasks of all: observations become ``Dict(obs=Box, task=Discrete)``, shorter observations
    and actions are padded with zeros at the end, and actions are in [-1, 1]. Tasks of the same name are one task.

    :param datasets: data sets, of one task or of several
    :param path: folder for the new one
    :param tasks: name of the task of each data set, if each is of one task
    :param overwrite: whether to replace a data set that is there
    :return: the new data set
    :raises ValueError: if they do not fit together
    """
    if not datasets:
        raise ValueError("There is nothing to merge: give two data sets at least.")
    if tasks is not None and len(tasks) != len(datasets):
        raise ValueError(f"{len(datasets)} data sets, but {len(tasks)} names of tasks: give one for each.")
    first = datasets[0]
    known = [[task.name for task in data.tasks] for data in datasets]
    spaces_of = [(data.observation_space, data.action_space) for data in datasets]
    common: dict[str, Any] = dict(
        plans=any("plans" in data.columns for data in datasets),
        source="; ".join(dict.fromkeys(data.source for data in datasets))[:1000],
        overwrite=overwrite,
    )
    if tasks is None and all(pair == spaces_of[0] for pair in spaces_of) and all(names == known[0] for names in known):
        lengths = [longest([data.tasks[i].episode_length for data in datasets]) for i in range(len(first.tasks))]
        dims = [task.action_dim for task in first.tasks]
        with DatasetWriter(path, *spaces_of[0], known[0], dims, lengths, **common) as writer:
            for data in datasets:
                for part in data.parts():
                    writer.add(**part, scaled=True)
        return Dataset(path)
    if tasks is None:
        return _merge_tasks(datasets, path, known, common)
    for data, own in zip(datasets, known, strict=True):
        if len(own) > 1:
            raise ValueError(f"{data.path} has several tasks, {', '.join(own)}: leave out the names of tasks.")
    return _merge_tasks(datasets, path, [[name] for name in tasks], common)


def _merge_tasks(
    datasets: Sequence[Dataset], path: str | Path, names_of: Sequence[Sequence[str]], common: dict[str, Any]
) -> Dataset:
    """
    :param datasets: data sets
    :param path: folder for the new one
    :param names_of: names of the tasks of each data set
    :param common: further arguments of the writer
    :return: the new data set, of all these tasks
    """
    widths = [width_of(data) for data in datasets]
    names = list(dict.fromkeys(name for own in names_of for name in own))
    dims: list[int] = []
    lengths: list[int | None] = []
    for name in names:
        group = [
            (data, width, data.tasks[list(own).index(name)])
            for data, width, own in zip(datasets, widths, names_of, strict=True)
            if name in own
        ]
        # Of several tasks, the observations of each are no wider, how much less is not known
        sizes = {width for data, width, _ in group if not tells_task(data.observation_space)}
        if len(sizes) > 1 or len({task.action_dim for *_, task in group}) > 1:
            raise ValueError(f"The data sets have different spaces and one task, {name!r}: name the tasks.")
        dims.append(group[0][2].action_dim)
        lengths.append(longest([task.episode_length for *_, task in group]))
    width, dim = max(widths), max(spaces.flatdim(data.action_space) for data in datasets)
    space = spaces.Dict(
        {OBSERVATION: spaces.Box(-np.inf, np.inf, (width,), np.float32), TASK: spaces.Discrete(len(names))}
    )
    box = spaces.Box(-1, 1, (dim,), np.float32)
    with DatasetWriter(path, space, box, names, dims, lengths, **common) as writer:
        for data, own in zip(datasets, names_of, strict=True):
            number = np.array([names.index(name) for name in own])
            for part in data.parts():
                given = part["observations"]
                flat = given[OBSERVATION] if isinstance(given, dict) else given
                task = number[part["task"]]
                part["observations"] = {
                    OBSERVATION: pad(flat.astype(np.float32), width),
                    TASK: np.repeat(task, part["lengths"] + 1),
                }
                part |= dict(actions=pad(part["actions"], dim), task=task)
                if "plans" in part:
                    # As the networks have it in dimensions that a task lacks, see `WorldModel.mask_gaussian`
                    mean, std = part["plans"].swapaxes(0, 1)
                    part["plans"] = np.stack([pad(mean, dim), pad(std, dim, 1.0)], axis=1)
                writer.add(**part, scaled=True)
    return Dataset(path)


def width_of(data: Dataset) -> int:
    """
    :param data: a data set
    :return: how many numbers its observations are
    :raises ValueError: if they are of another kind
    """
    space = data.observation_space
    if tells_task(space) and isinstance(space, spaces.Dict) and set(space.spaces) == {OBSERVATION, TASK}:
        space = space.spaces[OBSERVATION]
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{data.path} cannot be padded to the size of others: only flat observations can, its are "
            f"{data.observation_space}."
        )
    return int(space.shape[0])


def pad(array: np.ndarray, width: int, value: float = 0.0) -> np.ndarray:
    """
    :param array: ``[M, D]``
    :param width: number W of columns
    :param value: number to fill up with
    :return: the array with this number at the end ``[M, W]``
    """
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)


def longest(lengths: Sequence[int | None]) -> int | None:
    """
    :param lengths: lengths of episodes, None without limit
    :return: the longest
    """
    known = [length for length in lengths if length is not None]
    return max(known) if len(known) == len(lengths) else None
