"""
Aggregates over tasks and seeds, as Agarwal et al. (2021, https://arxiv.org/abs/2108.13264) recommend: interquartile
means and performance profiles with stratified bootstrap intervals.
"""

import csv
from pathlib import Path

import numpy as np

from sb3_mpc.zoo.plot import RESAMPLES, Curve, pyplot

# Thresholds of the performance profiles
THRESHOLDS = np.linspace(0, 1, 101)


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


def comparable(found: dict[str, dict[str, Curve]]) -> tuple[list[str], int]:
    """
    :param found: curves by task and method
    :return: methods that have all tasks, and the frames that all their seeds have reached
    :raises ValueError: if there is no such method
    """
    methods = list(dict.fromkeys(method for of_task in found.values() for method in of_task))
    complete = [method for method in methods if all(method in of_task for of_task in found.values())]
    if not complete:
        raise ValueError(
            f"No method has runs on all of {', '.join(found)}: aggregates compare methods on the same tasks."
        )
    reached = [
        one.frames[~np.isnan(values)].max()
        for of_task in found.values()
        for method, one in of_task.items()
        if method in complete
        for values in one.values
    ]
    return complete, int(min(reached))


def report(found: dict[str, dict[str, Curve]], full: float, picture: Path) -> None:
    """
    :param found: curves by task and method
    :param full: value that counts as 1
    :param picture: PNG file to write; the CSV file goes beside it
    """
    methods, frames = comparable(found)
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 3))
    table = []
    for index, method in enumerate(methods):
        own = [of_task[method] for of_task in found.values()]
        scores = [np.array([np.interp(frames, one.frames, v) for v in one.values]) / full for one in own]
        flat, drawn = np.concatenate(scores), resampled(scores)
        middle, (low, high) = interquartile_mean(flat), np.percentile(interquartile_mean(drawn), [2.5, 97.5])
        left.barh(method, middle, color=f"C{index % 10}", alpha=0.8)
        left.plot([low, high], [method, method], color="black")
        right.step(THRESHOLDS, profile(flat), where="post", color=f"C{index % 10}", label=method)
        right.fill_between(
            THRESHOLDS,
            *np.percentile(profile(drawn), [2.5, 97.5], axis=0),
            step="post",
            color=f"C{index % 10}",
            alpha=0.2,
            linewidth=0,
        )
        table.append([method, round(float(middle), 4), round(low, 4), round(high, 4), len(own), len(flat), frames])
    left.invert_yaxis()
    left.set(xlabel=f"interquartile mean, return / {full:g}", xlim=(0, 1), title=f"{len(found)} tasks")
    right.set(xlabel="score", ylabel="share of runs above", ylim=(0, 1.02), title=f"after {frames:,} frames")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    with picture.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "iqm", "low", "high", "tasks", "runs", "frames"])
        writer.writerows(table)
