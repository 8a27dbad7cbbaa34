"""
Returns of runs as a table ``method, task, frames, return, seed``.

That is also what CSV files hold: ``curves/published.csv`` (see ``curves/README.md``) and those of users. Frames are
simulator frames, decisions times the action repeat of the environment.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Where there are no evaluations: training episodes that make one point
WINDOW = 10


class Row(NamedTuple):
    """
    One evaluation of one seed.

    :param method: label of the curve
    :param task: id of the environment
    :param frames: simulator frames of training
    :param value: mean return of the evaluation, or success in percent
    :param seed: seed of the run; empty for a mean over seeds
    """

    method: str
    task: str
    frames: int
    value: float
    seed: str


def action_repeat(env_id: str, kwargs: dict[str, Any]) -> int:
    """
    :param env_id: id of an environment
    :param kwargs: arguments that it was made with
    :return: simulator frames of a decision
    """
    import inspect

    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    import sb3_mpc.envs  # noqa: F401

    spec = gym.registry.get(env_id)
    if spec is None or not str(spec.entry_point).startswith("sb3_mpc.envs"):
        return 1
    default = inspect.signature(load_env_creator(str(spec.entry_point))).parameters["action_repeat"].default
    return int({"action_repeat": default, **spec.kwargs, **kwargs}["action_repeat"])


def read_csv(path: Path) -> list[Row]:
    """
    :param path: table with the columns of :class:`Row`
    :return: its rows
    :raises ValueError: if columns are missing
    """
    with path.open() as file:
        reader = csv.DictReader(file)
        missing = {"method", "task", "frames", "return", "seed"} - set(reader.fieldnames or [])
        if missing:
            raise ValueError(f"{path} is no table of returns: it has no column {', '.join(sorted(missing))}.")
        return [Row(r["method"], r["task"], int(r["frames"]), float(r["return"]), r["seed"]) for r in reader]


def label_of(settings: Path) -> tuple[Row, int]:
    """
    :param settings: the file ``args.yml`` of a run
    :return: a row with method, task and seed of the run, and its simulator frames per decision
    """
    import yaml

    own = settings.parents[1] / "train.json"
    with settings.open() as file:
        arguments = yaml.load(file, Loader=yaml.UnsafeLoader)  # as rl_zoo3 has written it
    preset = json.loads(own.read_text()).get("preset") if own.exists() else None
    method = arguments["algo"] + (f" ({preset})" if preset else "")
    repeat = action_repeat(arguments["env"], arguments["env_kwargs"] or {})
    return Row(method, arguments["env"], 0, 0.0, str(arguments["seed"])), repeat


def read_run(settings: Path, success: bool) -> list[Row]:
    """
    :param settings: the file ``args.yml`` of a run
    :param success: successes in percent instead of returns
    :return: its evaluations; without any, means of ten training episodes
    """
    run = settings.parents[1]
    label, repeat = label_of(settings)
    if (run / "evaluations.npz").exists():
        found = np.load(run / "evaluations.npz")
        if success and "successes" not in found:
            raise ValueError(f"{run} has no successes: leave out --success.")
        values = 100 * found["successes"] if success else found["results"]
        points = list(zip(found["timesteps"].tolist(), values.mean(1).tolist(), strict=True))
    elif success:
        raise ValueError(f"{run} has no evaluations yet, and so no successes: leave out --success.")
    else:
        points = list(_windows(episodes_of(run)))
    return [label._replace(frames=repeat * steps, value=value) for steps, value in points]


def episodes_of(run: Path) -> list[tuple[float, float, int]]:
    """
    :param run: folder of a run
    :return: time, return and length of its training episodes, in order
    """
    episodes = []
    for path in run.glob("*.monitor.csv"):
        with path.open() as file:
            file.readline()
            episodes += [(float(row["t"]), float(row["r"]), int(row["l"])) for row in csv.DictReader(file)]
    return sorted(episodes)


def _windows(episodes: list[tuple[float, float, int]]) -> Iterator[tuple[int, float]]:
    steps = np.cumsum([length for *_, length in episodes])
    for end in range(WINDOW, len(episodes) + 1, WINDOW):
        yield int(steps[end - 1]), float(np.mean([value for _, value, _ in episodes[end - WINDOW : end]]))


def read(sources: Iterable[Path], success: bool) -> list[Row]:
    """
    :param sources: folders that hold runs at any depth, and CSV files
    :param success: successes in percent instead of returns
    :return: all that is in them
    """
    rows: list[Row] = []
    for source in sources:
        if source.is_file():
            rows += read_csv(source)
            continue
        runs = sorted(source.rglob("args.yml"))
        if not runs:
            raise FileNotFoundError(f"{source} is neither a CSV file nor a folder with runs.")
        rows += [row for settings in runs for row in read_run(settings, success)]
    if not rows:
        raise ValueError("There is nothing to draw yet: the runs have neither evaluations nor ten episodes.")
    return rows


def read_episodes(sources: Iterable[Path]) -> list[Row]:
    """
    :param sources: folders that hold runs at any depth, and CSV files, which may have ``<name>.train.csv`` beside them
    :return: every training episode
    """
    rows: list[Row] = []
    for source in sources:
        if source.is_file():
            beside, first = source.with_suffix(".train.csv"), read_csv(source)[0]
            if beside.exists():
                with beside.open() as file:
                    found = [(0.0, float(row["return"]), int(row["length"])) for row in csv.DictReader(file)]
                rows += _episode_rows(first, found, action_repeat(first.task, {}))
            continue
        for settings in source.rglob("args.yml"):
            label, repeat = label_of(settings)
            rows += _episode_rows(label, episodes_of(settings.parents[1]), repeat)
    return rows


def _episode_rows(label: Row, episodes: list[tuple[float, float, int]], repeat: int) -> list[Row]:
    steps = np.cumsum([length for *_, length in episodes])
    return [
        label._replace(frames=repeat * int(end), value=value)
        for end, (_, value, _) in zip(steps, episodes, strict=True)
    ]
