"""Command ``plot``: learning curves of runs beside published ones, and aggregates over tasks."""

import argparse
import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_mpc.zoo.returns import Row, read, read_csv, read_episodes

PUBLISHED = Path(__file__).parent / "curves" / "published.csv"
PUBLISHED_SUCCESS = PUBLISHED.with_stem("published-success")
LABELS = {"tdmpc2": "TD-MPC2, published", "bmpc": "BMPC, published mean", "sac": "SAC, published"}
RESAMPLES = 2_000
# The return that counts as 1 in aggregates
FULL_RETURN = 1_000.0
DRAWN_POINTS = 200


class Curve(NamedTuple):
    """
    Mean over seeds and its 95 % confidence band.

    :param frames: ``[T]``
    :param values: of each seed, NaN where it has none ``[S, T]``
    :param mean: ``[T]``
    :param low: lower end of the band ``[T]``, the mean for a single seed
    :param high: upper end ``[T]``
    """

    frames: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(rows: Iterable[Row]) -> Curve:
    """
    :param rows: of one method and task
    :return: mean and band; between its points a seed is interpolated, beyond them it does not count
    """
    rows, rng = list(rows), np.random.default_rng(0)
    frames = np.unique([row.frames for row in rows])
    if len(frames) > DRAWN_POINTS:
        frames = np.linspace(frames[0], frames[-1], DRAWN_POINTS)
    seeds = [sorted((r.frames, r.value) for r in rows if r.seed == seed) for seed in sorted({r.seed for r in rows})]
    tables = [np.array(points, dtype=np.float64) for points in seeds]
    values = np.stack([np.interp(frames, t[:, 0], t[:, 1], left=np.nan, right=np.nan) for t in tables])
    mean = np.nanmean(values, 0)
    if len(seeds) == 1:
        return Curve(frames, values, mean, mean, mean)
    drawn = values[rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))]  # [R, S, T]
    count = (~np.isnan(drawn)).sum(1)
    means = np.where(count > 0, np.nansum(drawn, 1) / np.maximum(count, 1), mean)
    return Curve(frames, values, mean, *np.percentile(means, [2.5, 97.5], axis=0))


def curves(rows: Iterable[Row]) -> dict[str, dict[str, Curve]]:
    """
    :param rows: a table
    :return: curves by task and method, in the order of the table
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.task, {}).setdefault(row.method, []).append(row)
    return {task: {method: curve(own) for method, own in methods.items()} for task, methods in groups.items()}


def published(rows: Iterable[Row], success: bool = False) -> list[Row]:
    """
    :param rows: a table
    :param success: successes in percent instead of returns
    :return: what was published of its tasks
    """
    tasks, source = {row.task for row in rows}, PUBLISHED_SUCCESS if success else PUBLISHED
    return [row._replace(method=LABELS[row.method]) for row in read_csv(source) if row.task in tasks]


def draw(found: dict[str, dict[str, Curve]], output: Path, label: str, episodes: Iterable[Row] = ()) -> None:
    """
    :param found: curves by task and method; published ones are dashed
    :param output: picture to write
    :param label: what is measured
    :param episodes: training episodes, drawn as dots
    """
    plt = pyplot()
    columns = len(found) if len(found) <= 3 else math.ceil(math.sqrt(len(found)))
    lines = -(-len(found) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    colors = _colors(found)
    for axis, (task, methods) in zip(axes.flat, found.items(), strict=False):
        own = max((one.frames[-1] for method, one in methods.items() if "published" not in method), default=0)
        # As far as the next published point: the line that leads there is no measurement
        points = [one.frames[one.frames >= own] for method, one in methods.items() if "published" in method]
        end = max([own, *(after[0] for after in points if own and len(after))])
        for method, one in methods.items():
            published = "published" in method
            style = dict(linestyle="--" if published else "-", color=colors[method], linewidth=1.5)
            marker = "o" if len(one.frames) < 30 else None
            axis.plot(one.frames, one.mean, marker=marker, markersize=3, label=_label(method, one), **style)
            if len(one.values) > 1:
                axis.fill_between(one.frames, one.low, one.high, color=colors[method], alpha=0.2, linewidth=0)
        for row in (row for row in episodes if row.task == task):
            axis.plot(row.frames, row.value, ".", color=colors[row.method], alpha=0.3, markersize=4)
        axis.set(title=task, xlabel="simulator frames", ylabel=label)
        if own:
            axis.set_xlim(0, 1.05 * end)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def pyplot() -> Any:
    """:return: ``matplotlib.pyplot``, which draws into files"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _colors(found: dict[str, dict[str, Curve]]) -> dict[str, str]:
    methods = list(dict.fromkeys(method for of_task in found.values() for method in of_task))
    return {method: f"C{i % 10}" for i, method in enumerate(methods)}


def _label(method: str, one: Curve) -> str:
    return f"{method}, {len(one.values)} seeds" if len(one.values) > 1 else method


def write_csv(found: dict[str, dict[str, Curve]], output: Path) -> None:
    """
    :param found: curves by task and method
    :param output: CSV file to write
    """
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "task", "frames", "mean", "low", "high", "seeds"])
        for task, methods in found.items():
            for method, one in methods.items():
                counts = (~np.isnan(one.values)).sum(0)
                for frames, mean, low, high, count in zip(one.frames, one.mean, one.low, one.high, counts, strict=True):
                    writer.writerow([method, task, int(frames), round(mean, 3), round(low, 3), round(high, 3), count])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``plot``
    """
    parser.epilog = (
        "Bands are 95 % bootstrap intervals of the mean over seeds. Published curves (dashed) are points 100,000\n"
        "frames apart, joined by straight lines: returns for DMControl and HumanoidBench, successes for Meta-World\n"
        "and MyoSuite. Beside PICTURE.png there will be PICTURE.csv;\n"
        "--aggregate adds PICTURE-aggregate.png and .csv with interquartile means and performance profiles.\n\n"
        "example: python -m sb3_mpc.zoo plot logs --output curves.png --aggregate"
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="folders with runs, and CSV files")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (default: curves.png)")
    parser.add_argument("--success", action="store_true", help="draw success rates instead of returns")
    parser.add_argument("--episodes", action="store_true", help="draw the single training episodes, too, as dots")
    parser.add_argument("--no-published", action="store_true", help="leave the published curves out")
    parser.add_argument("--aggregate", action="store_true", help="aggregate over tasks and seeds, too")
    parser.add_argument("--full-return", type=float, default=FULL_RETURN, help="return that aggregates count as 1")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import aggregate

    rows = read(args.sources, args.success)
    if not args.no_published:
        rows += published(rows, args.success)
    found = curves(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    episodes = read_episodes(args.sources) if args.episodes else []
    draw(found, args.output, "success [%]" if args.success else "return", episodes)
    write_csv(found, args.output.with_suffix(".csv"))
    print(f"{args.output}\n{args.output.with_suffix('.csv')}")
    if args.aggregate:
        picture = args.output.with_name(f"{args.output.stem}-aggregate.png")
        full = 100.0 if args.success else args.full_return
        seeded = curves(row for row in rows if row.seed)  # a mean over seeds is no run
        aggregate.report(seeded, full, picture)
        print(f"{picture}\n{picture.with_suffix('.csv')}")
