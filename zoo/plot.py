"""Command ``plot``: learning curves of runs beside published ones, and aggregates over tasks."""

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_mpc.zoo import returns
from sb3_mpc.zoo.aggregate import THRESHOLDS, Aggregate, aggregates, curves


def draw(
    found: pd.DataFrame,
    output: Path,
    label: str,
    episodes: pd.DataFrame | None = None,
    against: str = "simulator frames",
) -> None:
    """
    :param found: curves, see :func:`sb3_mpc.zoo.aggregate.curves`; published ones are dashed
    :param output: picture to write
    :param label: what is measured
    :param episodes: training episodes, drawn as dots
    :param against: what the column ``frames`` holds
    """
    plt = pyplot()
    tasks = found["task"].nunique()
    columns = tasks if tasks <= 3 else math.ceil(math.sqrt(tasks))
    lines = -(-tasks // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    colors = {method: f"C{i % 10}" for i, method in enumerate(found["method"].unique())}
    for axis, (task, of_task) in zip(axes.flat, found.groupby("task", sort=False), strict=False):
        published = of_task["method"].str.contains("published")
        own = of_task["frames"][~published].max() if not published.all() else 0
        # As far as the next published point: the line that leads there is no measurement
        later = of_task[published & (of_task["frames"] >= own)].groupby("method")["frames"].min()
        end = max([own, *later]) if own else 0
        # Nor is one from untrained agents to the first published point
        of_task = of_task[~published | (of_task["frames"] > 0)]
        for method, one in of_task.groupby("method", sort=False):
            seeds = one["seeds"].max()
            style = dict(linestyle="--" if "published" in method else "-", color=colors[method], linewidth=1.5)
            name = f"{method}, {seeds} seeds" if seeds > 1 else method
            marker = "o" if len(one) < 30 else None
            axis.plot(one["frames"], one["mean"], marker=marker, markersize=4, label=name, **style)
            if seeds > 1:
                axis.fill_between(one["frames"], one["low"], one["high"], color=style["color"], alpha=0.2, linewidth=0)
        if episodes is not None:
            for method, dots in episodes[episodes["task"] == task].groupby("method"):
                axis.plot(
                    dots["frames"], dots["return"], ".", color=colors.get(method, "gray"), alpha=0.3, markersize=4
                )
        axis.set(title=task, xlabel=against, ylabel=label)
        if own:
            axis.set_xlim(0, 1.05 * end)
        if (of_task["mean"] >= 0).all():
            top = axis.get_ylim()[1]  # beyond the data by a share of their range, which can be next to nothing
            axis.set_ylim(-0.03 * top, 1.03 * top)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes.flat[tasks:]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def draw_aggregates(found: list[Aggregate], full: float, output: Path) -> None:
    """
    :param found: one for each method
    :param full: return that counts as 1
    :param output: picture to write
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 3))
    for index, one in enumerate(found):
        color, (middle, *interval), (profile, band) = f"C{index % 10}", one.iqm, one.profile
        left.barh(one.method, middle, color=color, alpha=0.8)
        left.plot(interval, [one.method, one.method], color="black")
        right.step(THRESHOLDS, profile, where="post", color=color, label=one.method)
        right.fill_between(THRESHOLDS, *band, step="post", color=color, alpha=0.2, linewidth=0)
    left.invert_yaxis()
    left.set(xlabel=f"interquartile mean, return / {full:g}", xlim=(0, 1), title=f"{found[0].tasks} tasks")
    right.set(xlabel="score", ylabel="share of runs above", ylim=(0, 1.02), title=f"after {found[0].frames:,} frames")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def pyplot() -> Any:
    """:return: ``matplotlib.pyplot``, which draws into files"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    table = returns.read(args.sources, args.success)
    if not args.no_published:
        table = returns.with_published(table, args.success)
    found, data = curves(table), args.output.with_suffix(".csv")
    if data.resolve() in [source.resolve() for source in args.sources]:
        raise ValueError(f"{data} is read and would be overwritten by the table of the picture: give another --output.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    episodes = returns.read_episodes(args.sources) if args.episodes else None
    draw(found, args.output, "success [%]" if args.success else "return", episodes)
    found.round(3).to_csv(data, index=False)
    print(f"{args.output}\n{data}")
    if args.aggregate:
        picture = args.output.with_name(f"{args.output.stem}-aggregate.png")
        full = 100.0 if args.success else args.full_return
        methods = aggregates(table, full)
        draw_aggregates(methods, full, picture)
        rows = [(one.method, *one.iqm, one.tasks, one.runs, one.frames) for one in methods]
        columns = ["method", "iqm", "low", "high", "tasks", "runs", "frames"]
        pd.DataFrame(rows, columns=columns).round(4).to_csv(picture.with_suffix(".csv"), index=False)
        print(f"{picture}\n{picture.with_suffix('.csv')}")
