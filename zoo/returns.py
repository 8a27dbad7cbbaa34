"""
Returns of runs as tables (:class:`pandas.DataFrame`) with the columns ``method, task, frames, return, seed``.

Each row is one evaluation of one seed. That is also what CSV files hold: ``curves/published.csv`` (see
``curves/README.md``) and those of users. Frames are simulator frames, decisions times the action repeat of the
environment; ``return`` may be a success rate in percent; ``seed`` is text, and empty for a mean over seeds.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

import sb3_mpc.envs  # noqa: F401

COLUMNS = ["method", "task", "frames", "return", "seed"]
PUBLISHED = Path(__file__).parent / "curves" / "published.csv"
PUBLISHED_SUCCESS = PUBLISHED.with_stem("published-success")
LABELS = {"tdmpc2": "TD-MPC2, published", "bmpc": "BMPC, published mean", "sac": "SAC, published"}
# Where there are no evaluations: training episodes that make one point
WINDOW = 10


def action_repeat(env_id: str, kwargs: dict[str, Any]) -> int:
    """
    :param env_id: id of an environment
    :param kwargs: arguments that it was made with
    :return: simulator frames of a decision
    """
    spec = gym.registry.get(env_id)
    if spec is None or not str(spec.entry_point).startswith("sb3_mpc.envs"):
        return 1
    default = inspect.signature(load_env_creator(str(spec.entry_point))).parameters["action_repeat"].default
    return int({"action_repeat": default, **spec.kwargs, **kwargs}["action_repeat"])


def read_csv(path: Path) -> pd.DataFrame:
    """
    :param path: CSV file with at least the columns ``method, task, frames, return, seed``
    :return: its table
    :raises ValueError: if it is no such file
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        return table[COLUMNS].astype({"frames": int, "return": float})
    except ValueError as error:
        raise ValueError(f"{path} is no table of returns: {error}.") from error


def read_published(success: bool = False) -> pd.DataFrame:
    """
    :param success: success rates in percent instead of returns
    :return: what was published
    """
    return read_csv(PUBLISHED_SUCCESS if success else PUBLISHED)


def with_published(table: pd.DataFrame, success: bool = False) -> pd.DataFrame:
    """
    :param table: returns of runs
    :param success: success rates in percent instead of returns
    :return: the same, followed by what was published of their tasks
    """
    published = read_published(success)
    own = published[published["task"].isin(table["task"])]
    return pd.concat([table, own.assign(method=own["method"].map(LABELS))], ignore_index=True)


def label_of(settings: Path) -> tuple[dict[str, str], int]:
    """
    :param settings: the file ``args.yml`` of a run
    :return: method, task and seed of the run, and its simulator frames per decision
    """
    from sb3_mpc.zoo.run_folder import RUN_FILE, read_arguments, read_start

    run = settings.parents[1]
    arguments = read_arguments(settings)
    preset = read_start(run)["preset"] if (run / RUN_FILE).exists() else None
    method = arguments["algo"] + (f" ({preset})" if preset else "")
    repeat = action_repeat(arguments["env"], arguments["env_kwargs"] or {})
    return dict(method=method, task=arguments["env"], seed=str(arguments["seed"])), repeat


def read_run(settings: Path, success: bool = False) -> pd.DataFrame:
    """
    :param settings: the file ``args.yml`` of a run
    :param success: success rates in percent instead of returns
    :return: its evaluations; without any, means of ten training episodes
    :raises ValueError: if success rates are asked for and there are none
    """
    run = settings.parents[1]
    label, repeat = label_of(settings)
    if (run / "evaluations.npz").exists():
        found = read_evaluations(run / "evaluations.npz")
        if success and "successes" not in found:
            raise ValueError(f"{run} has no successes: leave out --success.")
        values = 100 * found["successes"] if success else found["results"]
        points = pd.DataFrame({"frames": repeat * found["timesteps"], "return": values.mean(1)})
    elif success:
        raise ValueError(f"{run} has no evaluations yet, and so no successes: leave out --success.")
    else:
        episodes = episodes_of(run, repeat)
        episodes = episodes[: len(episodes) // WINDOW * WINDOW]
        windows = episodes.groupby(np.arange(len(episodes)) // WINDOW)
        points = windows.agg({"frames": "last", "return": "mean"})
    return points.assign(**label)[COLUMNS]


def read_evaluations(path: Path) -> dict[str, np.ndarray]:
    """
    :param path: file that an ``EvalCallback`` has written
    :return: its arrays by name
    :raises ValueError: if it is damaged, or no such file
    """
    try:
        with np.load(path) as file:  # no pickles
            found = {name: np.asarray(file[name]) for name in ("timesteps", "results", "successes") if name in file}
        shapes = {len(found[name]) for name in found}
        if (
            found["results"].ndim != 2
            or len(shapes) != 1
            or any(part.dtype.kind not in "biuf" for part in found.values())
        ):
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # whatever an unchecked file causes
        raise ValueError(f"{path} is damaged, or no file of evaluations: {error}.") from error
    return found


def episodes_of(run: Path, repeat: int) -> pd.DataFrame:
    """
    :param run: folder of a run
    :param repeat: simulator frames per decision
    :return: ``frames`` at the end of each training episode, and its ``return``
    """
    try:
        monitor = load_results(str(run))
    except LoadMonitorResultsError:  # no episode has begun
        monitor = pd.DataFrame({"r": [], "l": []}).astype({"l": int})
    return pd.DataFrame({"frames": repeat * monitor["l"].cumsum(), "return": monitor["r"]})


def read(sources: Iterable[Path], success: bool = False) -> pd.DataFrame:
    """
    :param sources: folders that hold runs at any depth, and CSV files
    :param success: success rates in percent instead of returns
    :return: all that is in them
    :raises FileNotFoundError: if a source is neither
    :raises ValueError: if there is nothing in them
    """
    tables = []
    for source in sources:
        if source.is_file():
            tables.append(read_csv(source))
            continue
        runs = sorted(source.rglob("args.yml"))
        if not runs:
            raise FileNotFoundError(f"{source} is neither a CSV file nor a folder with runs.")
        tables += [read_run(settings, success) for settings in runs]
    table = _joined(tables)
    if table.empty:
        raise ValueError("There is nothing to draw yet: the runs have neither evaluations nor ten episodes.")
    return table


def read_episodes(sources: Iterable[Path]) -> pd.DataFrame:
    """
    :param sources: folders that hold runs at any depth, and CSV files, which may have ``<name>.train.csv`` beside them
    :return: every training episode
    """
    tables = []
    for source in sources:
        if source.is_dir():
            for settings in source.rglob("args.yml"):
                label, repeat = label_of(settings)
                tables.append(episodes_of(settings.parents[1], repeat).assign(**label))
        elif (beside := source.with_suffix(".train.csv")).exists():
            first, episodes = read_csv(source).iloc[0], pd.read_csv(beside)
            frames = action_repeat(first["task"], {}) * episodes["length"].cumsum()
            tables.append(episodes.assign(frames=frames, **first[["method", "task", "seed"]]))
    return _joined(tables)


def _joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """
    :param tables: tables, of which empty ones have no types
    :return: one table
    """
    full = [table[COLUMNS] for table in tables if len(table)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=COLUMNS)
