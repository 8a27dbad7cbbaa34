"""Command ``report``: tables and pictures of what ``benchmark`` has measured, beside what was published."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sb3_mpc.zoo import returns
from sb3_mpc.zoo.aggregate import Aggregate, aggregate_curves, aggregates, curves
from sb3_mpc.zoo.plot import draw, draw_aggregates, pyplot

# Namespaces of ids whose metric is the success rate; the published numbers are rates, too
BY_SUCCESS = {"metaworld", "myosuite", "maniskill"}
# Returns that count as 1; tasks of other suites have no common scale, so that there is no mean over them
FULL_RETURN = {"dmc": 1_000.0}
SECONDS = "train_cpu_s"


class Measured(NamedTuple):
    """
    One set of tasks.

    :param name: its name
    :param table: evaluations with the columns of :mod:`sb3_mpc.zoo.returns` and those of the benchmark; ``return`` is
        the success rate in percent if that is the metric
    :param metric: what ``return`` is
    :param full: value that counts as 1, None if tasks have no common scale
    """

    name: str
    table: pd.DataFrame
    metric: str
    full: float | None

    @property
    def tasks(self) -> list[str]:
        """:return: tasks on which every method has been measured"""
        methods = self.table["method"].nunique()
        counts = self.table.groupby("task", sort=False)["method"].nunique()
        return list(counts.index[counts == methods])


def read(sources: Iterable[Path]) -> pd.DataFrame:
    """
    :param sources: folders of ``benchmark``, or their ``results.csv``
    :return: all evaluations
    :raises FileNotFoundError: if there is no table
    :raises ValueError: if there are no finished runs
    """
    tables = []
    for source in sources:
        path = source / "results.csv" if source.is_dir() else source
        if not path.exists():
            raise FileNotFoundError(f"There is no {path}: `benchmark` writes it.")
        tables.append(pd.read_csv(path, dtype={"seed": str, "preset": str}, keep_default_na=True))
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise ValueError("There is nothing to report yet: no run is finished.")
    return table.drop_duplicates(["method", "task", "seed", "frames"], keep="last")


def measured(table: pd.DataFrame) -> list[Measured]:
    """
    :param table: all evaluations
    :return: by sets of tasks
    """
    found = []
    for name, rows in table.groupby("suite", sort=False):
        namespaces = {task.partition("/")[0] if "/" in task else "" for task in rows["task"]}
        by_success = namespaces <= BY_SUCCESS
        if by_success:
            rows = rows.assign(**{"return": 100 * rows["success"]})
        scales = {100.0 if by_success else FULL_RETURN.get(namespace) for namespace in namespaces}
        full = scales.pop() if len(scales) == 1 else None
        found.append(Measured(str(name), rows, "success [%]" if by_success else "return", full))
    return found


def at(table: pd.DataFrame, x: str, point: float) -> pd.DataFrame:
    """
    :param table: evaluations
    :param x: a column
    :param point: a value of it
    :return: of each run the return there, interpolated between evaluations: ``method, task, seed, return``; NaN outside
        of what the run has measured
    """
    rows = []
    for key, run in table.groupby(["method", "task", "seed"], sort=False):
        run = run.sort_values(x)
        rows.append((*key, np.interp(point, run[x], run["return"], left=np.nan, right=np.nan)))
    return pd.DataFrame(rows, columns=["method", "task", "seed", "return"])


def common_frames(table: pd.DataFrame) -> int:
    """
    :param table: evaluations
    :return: frames that all runs have reached
    """
    return int(table.groupby(["method", "task", "seed"])["frames"].max().min())


def task_table(one: Measured, published: pd.DataFrame) -> pd.DataFrame:
    """
    :param one: a set of tasks
    :param published: what was published of them
    :return: a row for each task and method at the frames that all runs of the task have reached: ``mean``, ``std`` and
        number of ``seeds``, the ``minutes`` of one core that training took, and ``same_minutes``, the mean return after
        as many minutes as the quickest method has needed, empty where a method had not been evaluated by then
    """
    rows = []
    for task, of_task in one.table.groupby("task", sort=False):
        frames = common_frames(of_task)
        until = of_task[of_task["frames"] <= frames]
        used = until.groupby(["method", "seed"], sort=False)[SECONDS].max().groupby("method", sort=False).mean()
        quick = at(of_task, SECONDS, used.min()).groupby("method")["return"].mean()
        others = published[(published["task"] == task) & (published["frames"] > 0)]
        for method, values in at(pd.concat([of_task, others]), "frames", frames).groupby("method", sort=False):
            found = values["return"]
            if found.notna().all():
                row = dict(task=task, method=method, frames=frames, mean=found.mean(), std=found.std(ddof=0))
                row |= dict(seeds=len(found), minutes=used.get(method, np.nan) / 60, same_minutes=quick.get(method))
                rows.append(row)
    return pd.DataFrame(rows)


def evenly_in_time(table: pd.DataFrame) -> pd.DataFrame:
    """
    :param table: evaluations
    :return: the same at equal times for all seeds of a method on a task: ``method, task, frames, return, seed``, where
        ``frames`` are seconds of one core
    """
    rows = []
    for (method, task), of_method in table.groupby(["method", "task"], sort=False):
        runs = {seed: run.sort_values(SECONDS) for seed, run in of_method.groupby("seed")}
        first = max(run[SECONDS].iloc[0] for run in runs.values())
        last = min(run[SECONDS].iloc[-1] for run in runs.values())
        points = np.linspace(first, max(first, last), max(len(run) for run in runs.values()))
        for seed, run in runs.items():
            values = np.interp(points, run[SECONDS], run["return"])
            columns: dict[str, object] = {"frames": points.round(), "return": values}
            rows.append(pd.DataFrame(dict(columns, method=method, task=task, seed=seed)))
    return pd.concat(rows, ignore_index=True)[returns.COLUMNS]


def draw_curves(frames: pd.DataFrame, minutes: pd.DataFrame, metric: str, title: str, output: Path) -> None:
    """
    :param frames: curves over all tasks against frames, see :func:`sb3_mpc.zoo.aggregate.aggregate_curves`
    :param minutes: those against minutes
    :param metric: what they are the means of
    :param title: what the curves are
    :param output: picture to write
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    colors = {method: f"C{i % 10}" for i, method in enumerate(frames["method"].unique())}
    for axis, table, x in zip(axes, (frames, minutes), ("frames", "minutes"), strict=True):
        for method, one in table.groupby("method", sort=False):
            published = "published" in str(method)
            style = dict(color=colors[method], linestyle="--" if published else "-")
            if len(one) == 1:  # a point is no curve
                errors = np.abs(one[["iqm_low", "iqm_high"]].to_numpy().T - one["iqm"].to_numpy())
                axis.errorbar(one[x], one["iqm"], errors, marker="o", capsize=4, label=method, color=colors[method])
                continue
            axis.plot(one[x], one["iqm"], marker="o" if len(one) < 30 else None, markersize=3, label=method, **style)
            axis.fill_between(one[x], one["iqm_low"], one["iqm_high"], color=colors[method], alpha=0.2, linewidth=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="simulator frames", ylabel=f"interquartile mean of {metric}", ylim=(0, 1), title=title)
    axes[1].set(xlabel="minutes of one CPU core, training alone")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def summary(found: list[Aggregate]) -> pd.DataFrame:
    """
    :param found: aggregates
    :return: a row for each method
    """
    rows = [(one.method, *one.mean, *one.iqm, one.tasks, one.runs, one.frames) for one in found]
    names = ["method", "mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high", "tasks", "runs", "frames"]
    return pd.DataFrame(rows, columns=names)


def has_interval(row: pd.Series) -> bool:
    """
    :param row: row of :func:`summary`
    :return: whether the method has several runs of a task, of which alone intervals can be told
    """
    return bool(row["runs"] > row["tasks"])


def with_interval(row: pd.Series, name: str, scale: float = 1.0, digits: int = 3) -> str:
    """
    :param row: row of :func:`summary`
    :param name: a column
    :param scale: factor
    :param digits: digits behind the point
    :return: text, such as ``0.612 (0.580, 0.643)``; without an interval where single runs give none
    """
    middle, low, high = (f"{scale * row[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{middle} ({low}, {high})" if has_interval(row) else middle


def markdown(header: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """
    :param header: names of the columns
    :param rows: cells
    :return: lines of a table
    """
    lines = [header, ["---"] * len(header), *([*row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_tasks(one: Measured, published: pd.DataFrame, folder: Path) -> list[str]:
    """
    Write the table of single tasks and its pictures.

    :param one: a set of tasks
    :param published: what was published of them
    :param folder: where the files go
    :return: lines of the report
    """
    by_task = task_table(one, published)
    by_task.round(3).to_csv(folder / f"{one.name}-tasks.csv", index=False)
    together = pd.concat([one.table[returns.COLUMNS], published], ignore_index=True)
    draw(curves(together), folder / f"{one.name}-frames.png", one.metric)
    against_time = curves(evenly_in_time(one.table))
    draw(against_time, folder / f"{one.name}-time.png", one.metric, against="seconds of one CPU core, training alone")
    own, methods = list(one.table["method"].unique()), list(by_task["method"].unique())
    cells = by_task.set_index(["task", "method"])
    lines = []
    for task in by_task["task"].unique():
        here = cells.loc[task]
        best = here.loc[[method for method in own if method in here.index], "mean"].max()
        texts = []
        for method in methods:
            if method not in here.index:
                texts.append("-")
                continue
            row = here.loc[method]
            text = f"{row['mean']:.0f} ± {row['std']:.0f}" if row["seeds"] > 1 else f"{row['mean']:.0f}"
            texts.append(f"**{text}**" if method in own and row["mean"] == best else text)
        minutes = [f"{here.loc[method, 'minutes']:.1f}" if method in here.index else "-" for method in own]
        lines.append([task, f"{here['frames'].iloc[0]:,}", *texts, *minutes])
    header = ["task", "frames", *methods, *(f"{method}, minutes" for method in own)]
    return [
        *markdown(header, lines),
        "",
        f"Mean {one.metric} ± standard deviation over seeds; the best method that was measured here is bold.",
        "",
        *where_behind(one, by_task),
        f"![Single tasks against frames]({one.name}-frames.png)",
        "",
        f"![Single tasks against time]({one.name}-time.png)",
        "",
    ]


def where_behind(one: Measured, by_task: pd.DataFrame) -> list[str]:
    """
    :param one: a set of tasks
    :param by_task: see :func:`task_table`
    :return: lines that name the tasks where SAC, measured here, is ahead, at equal frames and at equal minutes
    """
    lines = []
    for column, equal in (("mean", "frames"), ("same_minutes", "minutes")):
        values = by_task.pivot_table(column, "task", "method", sort=False)
        for method in one.table["method"].unique():
            if method == "sac" or "sac" not in values or method not in values:
                continue
            both = values[[method, "sac"]].dropna()
            behind = both.index[both["sac"] > both[method]]
            names = f": {', '.join(behind)}" if len(behind) else ""
            lines += [f"SAC is ahead of {method} at equal {equal} on {len(behind)} of {len(both)} tasks{names}.", ""]
    return lines


def write_aggregates(one: Measured, published: pd.DataFrame, folder: Path) -> list[str]:
    """
    Write tables and pictures over all tasks, if these have a common scale.

    :param one: a set of tasks
    :param published: what was published of them
    :param folder: where the files go
    :return: lines of the report
    """
    tasks = one.tasks
    if one.full is None or len(tasks) < 2:
        return []
    own = one.table[one.table["task"].isin(tasks)]
    frames = common_frames(own)
    others = published[published["task"].isin(tasks) & (published["frames"] > 0) & (published["seed"] != "")]
    reached = others.groupby("method")["frames"].transform("min") <= frames
    others = others[reached & (others.groupby("method")["task"].transform("nunique") == len(tasks))]
    found = aggregates(pd.concat([own[returns.COLUMNS], others[others["frames"] <= frames]]), one.full)
    table = summary(found)
    table.round(4).to_csv(folder / f"{one.name}-aggregate.csv", index=False)
    draw_aggregates(found, one.full, folder / f"{one.name}-profiles.png")
    until = pd.concat([own[returns.COLUMNS], others[others["frames"] <= frames]])
    against_frames = aggregate_curves(until, "frames", one.full)
    against_minutes = aggregate_curves(own.assign(minutes=own[SECONDS] / 60), "minutes", one.full)
    pd.concat([against_frames, against_minutes]).round(4).to_csv(folder / f"{one.name}-curves.csv", index=False)
    metric = f"{one.metric} / {one.full:g}"
    draw_curves(against_frames, against_minutes, metric, f"{one.name}, {len(tasks)} tasks", folder / f"{one.name}.png")
    rows = [
        [row["method"], with_interval(row, "mean", one.full, 0), with_interval(row, "iqm"), str(row["runs"])]
        for _, row in table.iterrows()
    ]
    single = "" if table.apply(has_interval, axis=1).all() else ", which single runs of the tasks do not have"
    return [
        f"![Interquartile mean against frames and minutes]({one.name}.png)",
        "",
        *markdown(["method", f"mean {one.metric}", f"interquartile mean of {metric}", "runs"], rows),
        "",
        f"{len(tasks)} tasks after {frames:,} frames, with 95 % stratified bootstrap intervals over seeds{single}. "
        "Published curves begin with their first published point. Against minutes, runs that have ended keep what they "
        "have reached.",
        "",
        f"![Performance profiles]({one.name}-profiles.png)",
        "",
    ]


def conditions(table: pd.DataFrame, sources: Iterable[Path]) -> list[str]:
    """
    :param table: all evaluations
    :param sources: where they are from
    :return: lines of the report: seeds, machine, commit, protocol
    """
    runs = table.drop_duplicates(["method", "task", "seed"])
    seeds = runs.groupby(["method", "task"])["seed"].nunique()
    episodes = {
        json.loads(path.read_text())["episodes"]
        for source in sources
        if source.is_dir()
        for path in source.glob("runs/*/run.json")
    }
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    mean_of = f" Each evaluation is the mean of {' or '.join(map(str, sorted(episodes)))} episodes." if episodes else ""
    cpus, commits = (", ".join(sorted(runs[name].astype(str).unique())) for name in ("cpu", "commit"))
    return [
        f"{len(runs)} runs, seeds of a task: {count}.{mean_of} Processor: {cpus}. Commit of this package: {commits}.",
        "Minutes are those of one core for training alone, with imports and compiling and without evaluations.",
        "",
    ]


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    table = read(args.sources)
    args.output.mkdir(parents=True, exist_ok=True)
    lines = ["# Report", "", *conditions(table, args.sources)]
    for one in measured(table):
        if args.no_published:
            published = returns.read_published().iloc[:0]
        else:
            own = one.table[returns.COLUMNS]
            published = returns.with_published(own, one.metric != "return").iloc[len(own) :]
        lines += [f"## {one.name}", "", *write_aggregates(one, published, args.output)]
        lines += write_tasks(one, published, args.output)
    path = args.output / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(path)
