"""
Learning curves, and aggregates over tasks and seeds as Agarwal et al. (2021, https://arxiv.org/abs/2108.13264)
recommend: interquartile means and performance profiles with stratified bootstrap intervals.

Tables of returns are those of :mod:`sb3_mpc.zoo.returns`.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

# Bootstrap samples
RESAMPLES = 2_000
# Points of a curve
MAX_POINTS = 200
# Points of a curve over all tasks
MAX_CURVE = 40
# Thresholds of the performance profiles
THRESHOLDS = np.linspace(0, 1, 101)


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """
    :param table: returns of runs
    :return: points of the curves by task and method, in the order of the table: ``frames``, the ``mean`` over seeds,
        the ends ``low`` and ``high`` of its 95 % confidence band, and the number of ``seeds``
    """
    columns = ["method", "task", "frames", "mean", "low", "high", "seeds"]
    found = [
        curve(rows).assign(task=task, method=method)
        for task, of_task in table.groupby("task", sort=False)
        for method, rows in of_task.groupby("method", sort=False)
    ]
    return pd.concat(found, ignore_index=True)[columns]


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """
    :param table: returns of one method on one task
    :return: as :func:`curves`; between its points a seed is interpolated, outside them it does not count
    """
    seeds = table.pivot_table("return", "frames", "seed")
    frames = seeds.index.to_numpy()
    if len(frames) > MAX_POINTS:
        frames = np.linspace(frames[0], frames[-1], MAX_POINTS)
    points = [seeds[name].dropna() for name in seeds]
    values = np.stack([np.interp(frames, own.index, own, left=np.nan, right=np.nan) for own in points])  # [S, T]
    mean = np.nanmean(values, 0)
    low = high = mean
    if len(values) > 1:
        drawn = values[np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))]  # [R, S, T]
        count = (~np.isnan(drawn)).sum(1)
        means = np.where(count > 0, np.nansum(drawn, 1) / np.maximum(count, 1), mean)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return pd.DataFrame(
        dict(frames=frames.astype(int), mean=mean, low=low, high=high, seeds=(~np.isnan(values)).sum(0))
    )


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    :param scores: ``[..., N]``
    :return: mean of the middle half ``[...]``
    """
    cut, ordered = scores.shape[-1] // 4, np.sort(scores, axis=-1)
    return np.asarray(ordered[..., cut : scores.shape[-1] - cut].mean(-1))


def profile(scores: np.ndarray) -> np.ndarray:
    """
    :param scores: ``[..., N]``
    :return: share of scores above each threshold ``[..., 101]``
    """
    return np.asarray((scores[..., None] > THRESHOLDS).mean(-2))


def resampled(scores: list[np.ndarray]) -> np.ndarray:
    """
    :param scores: of the seeds of each task ``[S]``
    :return: bootstrap samples that keep the number of seeds of each task ``[R, N]``
    """
    rng = np.random.default_rng(0)
    return np.concatenate([own[rng.integers(len(own), size=(RESAMPLES, len(own)))] for own in scores], axis=1)


def comparable(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """
    :param table: returns of runs
    :return: the rows of those methods that were run on all tasks, and the frames that all these runs have reached
    :raises ValueError: if there is no such method
    """
    tasks = table["task"].unique()
    table = table[table.groupby("method")["task"].transform("nunique") == len(tasks)]
    if table.empty:
        raise ValueError(
            f"No method has runs on all of {', '.join(tasks)}: aggregates compare methods on the same tasks."
        )
    return table, int(table.groupby(["method", "task", "seed"])["frames"].max().min())


class Aggregate(NamedTuple):
    """
    A method over all tasks and seeds.

    :param method: its label
    :param iqm: interquartile mean, and the ends of its 95 % interval
    :param mean: mean, and the ends of its 95 % interval
    :param profile: performance profile ``[101]``, and its band ``[2, 101]``
    :param tasks: number of tasks
    :param runs: number of runs
    :param frames: simulator frames at which the runs were compared
    """

    method: str
    iqm: tuple[float, float, float]
    mean: tuple[float, float, float]
    profile: tuple[np.ndarray, np.ndarray]
    tasks: int
    runs: int
    frames: int


def aggregates(table: pd.DataFrame, full: float) -> list[Aggregate]:
    """
    :param table: returns of runs
    :param full: return that counts as 1
    :return: of each method that was run on all tasks
    """
    table, frames = comparable(table[table["seed"] != ""])  # a mean over seeds is no run
    seeds = table.pivot_table("return", "frames", ["method", "task", "seed"])
    scores = seeds.apply(lambda run: np.interp(frames, run.dropna().index, run.dropna())) / full
    found = []
    for method in table["method"].unique():
        by_task = [scores[method, task].to_numpy() for task in table["task"].unique()]
        flat, drawn = np.concatenate(by_task), resampled(by_task)
        band = np.percentile(profile(drawn), [2.5, 97.5], axis=0)
        iqm = (float(interquartile_mean(flat)), *interval(interquartile_mean(drawn)))
        mean = (float(flat.mean()), *interval(drawn.mean(-1)))
        found.append(Aggregate(method, iqm, mean, (profile(flat), band), len(by_task), len(flat), frames))
    return found


def interval(samples: np.ndarray) -> tuple[float, float]:
    """
    :param samples: bootstrap samples ``[R]``
    :return: ends of the 95 % interval
    """
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def aggregate_curves(table: pd.DataFrame, x: str, full: float) -> pd.DataFrame:
    """
    :param table: returns of runs, with the column ``x``
    :param x: what the curves are drawn against, such as ``"frames"``
    :param full: return that counts as 1
    :return: points of the curve of each method over all tasks and seeds: ``method``, ``x``, the interquartile mean
        ``iqm`` with the ends ``iqm_low`` and ``iqm_high`` of its 95 % interval, and ``mean`` likewise. A curve begins
        where the last run has been evaluated for the first time, and ends where the last run does, for runs that have
        ended keep what they have reached; against frames it ends where the first run ends
    """
    found = []
    for method, rows in table.groupby("method", sort=False):
        runs = {key: run.sort_values(x) for key, run in rows.groupby(["task", "seed"])}
        first = max(run[x].iloc[0] for run in runs.values())
        last = (min if x == "frames" else max)(run[x].iloc[-1] for run in runs.values())
        points = np.unique(rows[x][rows[x].between(first, last)])
        if len(points) > MAX_CURVE:
            points = np.linspace(first, last, MAX_CURVE)
        scores = {key: np.interp(points, run[x], run["return"]) / full for key, run in runs.items()}
        by_task = [np.stack([scores[key] for key in scores if key[0] == task]) for task in rows["task"].unique()]
        for column, point in enumerate(points):
            own = [values[:, column] for values in by_task]
            flat, drawn = np.concatenate(own), resampled(own)
            iqm = (float(interquartile_mean(flat)), *interval(interquartile_mean(drawn)))
            found.append((method, point, *iqm, float(flat.mean()), *interval(drawn.mean(-1))))
    return pd.DataFrame(found, columns=["method", x, "iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high"])
