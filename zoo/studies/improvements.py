"""
What improvements of later papers give TDMPC2 with the preset "small", on the development tasks.

    python -m sb3_mpc.zoo.studies.improvements run --folder improvements --only small pessimistic --seeds 2
    python -m sb3_mpc.zoo.studies.improvements table improvements zoo/benchmarks/dmc32/results.csv
    python -m sb3_mpc.zoo.studies.improvements run --folder screening --screening --frames 50000 --seeds 1
    python -m sb3_mpc.zoo.studies.improvements effects screening

``run`` is the command ``benchmark``, once for each candidate: it may be killed, and continues. ``table`` compares each
candidate with "small" on the tasks and seeds that both have, and writes ``results/improvements.csv`` and ``.png``.

``--screening`` runs eight combinations of seven candidates, in which each of them is four times on and four times off,
and any two of them agree as often as they differ (a fractional factorial design): ``effects`` then knows the share of
each from all eight runs, with a quarter of the variance that a comparison of two runs has. What two candidates do only
together is not told apart from what a third one does alone.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_mpc.common.policies.multitask import short_name
from sb3_mpc.zoo.__main__ import main as zoo
from sb3_mpc.zoo.plot import pyplot
from sb3_mpc.zoo.report import SECONDS, at, common_frames, markdown, read
from sb3_mpc.zoo.studies.comparison import RESULTS
from sb3_mpc.zoo.tasks import SUITES

BASELINE, TASKS = "small", [*SUITES["dmc6"], "Hopper-v5"]


class Candidate(NamedTuple):
    """
    :param source: who proposes it
    :param arguments: constructor arguments and rl_zoo3's own keys
    :param planner: arguments of :class:`sb3_mpc.common.planning.improved.ImprovedPlanner`
    :param algo: method, whose difference to TDMPC2 may be the candidate
    """

    source: str
    arguments: dict[str, Any] = {}
    planner: dict[str, Any] = {}
    algo: str = "tdmpc2"

    @property
    def changes(self) -> list[str]:
        """Items of ``-params``."""
        items = [f"{name}:{value!r}" for name, value in self.arguments.items()]
        if self.planner:
            items.append(f"policy_kwargs:{dict(planner_class='ImprovedPlanner', planner_kwargs=self.planner)!r}")
        return items


CANDIDATES = {
    BASELINE: Candidate("TD-MPC2"),
    "pessimistic": Candidate("MRS.Q", planner=dict(pessimistic=True)),
    "average-depths": Candidate("EfficientTDMPC", planner=dict(average_depths=True)),
    "correlated-noise": Candidate("iCEM", planner=dict(noise_correlation=0.5)),
    "kept-elites": Candidate("iCEM", planner=dict(kept_elites=0.5)),
    "policy-start": Candidate("Newt", planner=dict(policy_start=0.5)),
    "three-steps": Candidate("FlashSAC", dict(n_steps=3)),
    "normalised": Candidate("SimbaV2", dict(normalize=dict(norm_obs=True, norm_reward=False))),
    "larger-batches": Candidate("TD-MPC2", dict(batch_size=128)),
    "more-updates": Candidate("EfficientTDMPC", dict(gradient_steps=20)),
    "constrained-policy": Candidate("TD-M(PC)2", algo="tdmpc_square"),
    "imitating-policy": Candidate("BMPC", algo="bmpc"),
}
#: Those that cost hardly any time, and can all be combined
SCREENED = [
    "pessimistic",
    "average-depths",
    "kept-elites",
    "policy-start",
    "three-steps",
    "normalised",
    "correlated-noise",
]
#: Run i has the candidate j (from 1) if the bits that both numbers have are odd in number
SCREENING = ["+".join(n for j, n in enumerate(SCREENED, 1) if (i & j).bit_count() % 2) or BASELINE for i in range(8)]


def candidate_of(name: str) -> Candidate:
    """
    :param name: a candidate, or several of them joined by "+"
    :return: it, or all of them together
    :raises ValueError: if there is no such candidate
    """
    for unknown in set(name.split("+")) - CANDIDATES.keys():
        raise ValueError(f'There is no candidate "{unknown}": use {", ".join(CANDIDATES)}, or several joined by "+".')
    arguments: dict[str, Any] = {}
    planner: dict[str, Any] = {}
    algo, parts = "tdmpc2", [CANDIDATES[part] for part in name.split("+")]
    for part in parts:
        arguments, planner = arguments | part.arguments, planner | part.planner
        algo = part.algo if part.algo != "tdmpc2" else algo
    return Candidate(", ".join(part.source for part in parts), arguments, planner, algo)


def method_of(name: str) -> str:
    """:return: label of a candidate's runs in the results"""
    candidate = candidate_of(name)
    return f"{candidate.algo} (small, {name})" if candidate.changes else f"{candidate.algo} (small)"


def run(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    for name in args.only or (SCREENING if args.screening else CANDIDATES):
        candidate = candidate_of(name)
        options = ["--algo", candidate.algo, "--preset", "small", "--seeds", args.seeds, "--folder", args.folder]
        options += ["--tasks", *args.tasks, "--jobs", args.jobs]
        options += ["--frames", args.frames, "--eval-frames", args.frames // 4]
        options += ["--label", name, "-params", *candidate.changes] if candidate.changes else []
        if zoo(["benchmark", *map(str, options)]) != 0:
            raise SystemExit(1)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """
    :param table: all evaluations, as of :func:`sb3_mpc.zoo.report.read`
    :return: a row for each candidate and task that have runs of the same seeds as the baseline: ``candidate``,
        ``task``, ``seeds``, mean ``return`` at the frames that all these runs have reached, that of the baseline
        (``small``), their ``difference``, and ``minutes`` of training of both
    """
    rows = []
    labels = [method.partition(", ")[2].rstrip(")") for method in table["method"].unique()]
    combined = [label for label in labels if "+" in label and set(label.split("+")) <= set(CANDIDATES)]
    for name in [*CANDIDATES, *combined]:
        for task in TASKS if name != BASELINE else []:
            of_task = table[(table["task"] == task) & table["method"].isin([method_of(name), method_of(BASELINE)])]
            seeds = of_task.groupby("method")["seed"].unique()
            both = set(seeds.get(method_of(name), [])) & set(seeds.get(method_of(BASELINE), []))
            if not both:
                continue
            of_task = of_task[of_task["seed"].isin(both)]
            frames = common_frames(of_task)
            found = at(of_task, "frames", frames).groupby("method")["return"].mean()
            used = of_task[of_task["frames"] <= frames].groupby(["method", "seed"])[SECONDS].max() / 60
            used = used.groupby("method").mean()
            mine, base = found[method_of(name)], found[method_of(BASELINE)]
            row = dict(candidate=name, task=task, seeds=len(both), frames=frames)
            row |= {"return": mine, "small": base, "difference": mine - base}
            rows.append(row | dict(minutes=used[method_of(name)], minutes_of_small=used[method_of(BASELINE)]))
    return pd.DataFrame(rows)


def write_table(args: argparse.Namespace) -> None:
    """
    :param args: command line
    :raises ValueError: if no candidate has been run beside the baseline
    """
    found = differences(read(args.sources))
    if found.empty:
        raise ValueError(f'No candidate has runs of the same tasks and seeds as "{BASELINE}" in {args.sources}.')
    args.output.mkdir(parents=True, exist_ok=True)
    found.round(2).to_csv(args.output / "improvements.csv", index=False)
    tasks = [task for task in TASKS if task in set(found["task"])]
    cells = found.pivot_table("difference", "candidate", "task", sort=False)
    lines = markdown(
        ["candidate", "from", "return", "that of small", *map(short_name, tasks), "minutes", "seeds"],
        [
            [
                name,
                candidate_of(name).source,
                *(f"{of[key].mean():.0f}" for key in ("return", "small")),
                *(f"{cells.loc[name].get(task, np.nan):+.0f}".replace("+nan", "-") for task in tasks),
                f"{of['minutes'].mean():.1f} ({of['minutes_of_small'].mean():.1f})",
                str(of["seeds"].min()),
            ]
            for name, of in found.groupby("candidate", sort=False)
        ],
    )
    print("\n".join(lines))
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 1 + 0.45 * len(cells)))
    for position, (_, of) in enumerate(found.groupby("candidate", sort=False)):
        axis.plot(of["difference"], [position] * len(of), "o", color="tab:blue", alpha=0.5)
        axis.plot(of["difference"].mean(), position, "k|", markersize=14)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(cells)), list(cells.index))
    axis.invert_yaxis()
    axis.set_xlabel('return minus that of "small": tasks, and their mean')
    figure.tight_layout()
    figure.savefig(args.output / "improvements.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """
    :param table: all evaluations of the screening, as of :func:`sb3_mpc.zoo.report.read`
    :return: a row for each candidate and task on which all eight combinations have run: ``candidate``, ``task``,
        ``seeds``, mean ``return`` of the second half of the evaluations ``with`` it and ``without``, ``share`` (their
        difference, as a part of the mean of both), and ``minutes`` of training with and without
    """
    late = table[table["frames"] > table["frames"].max() / 2]
    ended = late.groupby(["method", "task", "seed"])["frames"].transform("max") == table["frames"].max()
    runs = late[ended].groupby(["method", "task", "seed"]).agg({"return": "mean", SECONDS: "max"}).reset_index()
    names = {method_of(name): name.split("+") for name in SCREENING}
    runs = runs[runs["method"].isin(names)]
    complete = runs.groupby(["task", "seed"]).filter(lambda of: len(of) == len(SCREENING))
    rows = []
    for name in SCREENED:
        for task, of in complete.groupby("task", sort=False):
            has = of["method"].isin([method for method, parts in names.items() if name in parts])
            mine, base = of[has].mean(numeric_only=True), of[~has].mean(numeric_only=True)
            row = dict(candidate=name, task=task, seeds=of["seed"].nunique(), frames=int(late["frames"].max()))
            row |= {"with": mine["return"], "without": base["return"]}
            row["share"] = 2 * (mine["return"] - base["return"]) / (mine["return"] + base["return"])
            rows.append(row | dict(minutes=mine[SECONDS] / 60, minutes_without=base[SECONDS] / 60))
    return pd.DataFrame(rows)


def write_effects(args: argparse.Namespace) -> None:
    """
    :param args: command line
    :raises ValueError: if no task has all eight combinations
    """
    found = shares(read(args.sources))
    if found.empty:
        raise ValueError(f"No task has been run with all eight combinations of the screening in {args.sources}.")
    args.output.mkdir(parents=True, exist_ok=True)
    found.round(3).to_csv(args.output / "screening.csv", index=False)
    tasks = list(found["task"].unique())
    cells = found.pivot_table("share", "candidate", "task", sort=False)
    lines = markdown(
        ["candidate", "from", *map(short_name, tasks), "mean", "standard error", "minutes", "without it"],
        [
            [
                name,
                CANDIDATES[name].source,
                *(f"{cells.loc[name, task]:+.0%}" for task in tasks),
                f"{of['share'].mean():+.1%}",
                f"{of['share'].sem():.1%}".replace("nan%", "-"),
                *(f"{of[key].mean():.1f}" for key in ("minutes", "minutes_without")),
            ]
            for name, of in found.groupby("candidate", sort=False)
        ],
    )
    print("\n".join(lines))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run", help="train the candidates")
    of_run.add_argument("--folder", type=Path, default=Path("improvements"), help="the queue")
    of_run.add_argument("--only", nargs="+", metavar="NAME", help=f"{', '.join(CANDIDATES)}, or several joined by +")
    of_run.add_argument("--tasks", nargs="+", default=TASKS, metavar="ID", help="development tasks (default: all)")
    of_run.add_argument("--screening", action="store_true", help="run the eight combinations instead")
    of_run.add_argument("--seeds", type=int, default=2)
    of_run.add_argument("--frames", type=int, default=100_000)
    of_run.add_argument("--jobs", type=int, default=1)
    for name, text in (("table", "compare them with small"), ("effects", "share of each in the screening")):
        of_table = commands.add_parser(name, help=text)
        of_table.add_argument("sources", nargs="+", type=Path, help="folders of `benchmark`, or results.csv")
        of_table.add_argument("--output", type=Path, default=RESULTS, help="where tables and pictures go")
    args = parser.parse_args()
    dict(run=run, table=write_table, effects=write_effects)[args.command](args)


if __name__ == "__main__":
    main()
