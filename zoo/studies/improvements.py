"""
What improvements of later papers give TDMPC2 with the preset "small", one at a time, on the development tasks.

    python -m sb3_mpc.zoo.studies.improvements run --folder improvements --only small pessimistic --seeds 2
    python -m sb3_mpc.zoo.studies.improvements table improvements zoo/benchmarks/dmc32/results.csv

``run`` is the command ``benchmark``, once for each candidate: it may be killed, and continues. ``table`` compares each
candidate with "small" on the tasks and seeds that both have, and writes ``results/improvements.csv`` and ``.png``.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

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
    :param changes: items of ``-params``
    :param algo: method, whose difference to TDMPC2 may be the candidate
    """

    source: str
    changes: tuple[str, ...] = ()
    algo: str = "tdmpc2"


def of_planner(source: str, arguments: str) -> Candidate:
    """:return: a candidate by arguments of :class:`sb3_mpc.common.planning.improved.ImprovedPlanner`"""
    kwargs = f"planner_class='ImprovedPlanner', planner_kwargs=dict({arguments})"
    return Candidate(source, (f"policy_kwargs:dict({kwargs})",))


CANDIDATES = {
    BASELINE: Candidate("TD-MPC2"),
    "pessimistic": of_planner("MRS.Q", "pessimistic=True"),
    "average-depths": of_planner("EfficientTDMPC", "average_depths=True"),
    "correlated-noise": of_planner("iCEM", "noise_correlation=0.5"),
    "kept-elites": of_planner("iCEM", "kept_elites=0.5"),
    "policy-start": of_planner("Newt", "policy_start=0.5"),
    "three-steps": Candidate("FlashSAC", ("n_steps:3",)),
    "normalised": Candidate("SimbaV2", ("normalize:dict(norm_obs=True, norm_reward=False)",)),
    "larger-batches": Candidate("TD-MPC2", ("batch_size:128",)),
    "more-updates": Candidate("EfficientTDMPC", ("gradient_steps:20",)),
    "constrained-policy": Candidate("TD-M(PC)2", algo="tdmpc_square"),
    "imitating-policy": Candidate("BMPC", algo="bmpc"),
}


def method_of(name: str) -> str:
    """:return: label of a candidate's runs in the results"""
    candidate = CANDIDATES[name]
    return f"{candidate.algo} (small, {name})" if candidate.changes else f"{candidate.algo} (small)"


def run(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    for name in args.only or CANDIDATES:
        candidate = CANDIDATES[name]
        options = ["--algo", candidate.algo, "--preset", "small", "--seeds", args.seeds, "--folder", args.folder]
        options += ["--tasks", *args.tasks, "--eval-frames", 25_000, "--jobs", args.jobs]
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
    for name in CANDIDATES:
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
                CANDIDATES[name].source,
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
    axis.set_xlabel('return minus that of "small", a dot for each task; the line is their mean')
    figure.tight_layout()
    figure.savefig(args.output / "improvements.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run", help="train the candidates")
    of_run.add_argument("--folder", type=Path, default=Path("improvements"), help="the queue")
    of_run.add_argument("--only", nargs="+", choices=list(CANDIDATES), metavar="NAME", help=", ".join(CANDIDATES))
    of_run.add_argument("--tasks", nargs="+", default=TASKS, metavar="ID", help="development tasks (default: all)")
    of_run.add_argument("--seeds", type=int, default=2)
    of_run.add_argument("--jobs", type=int, default=1)
    of_table = commands.add_parser("table", help="compare them")
    of_table.add_argument("sources", nargs="+", type=Path, help="folders of `benchmark`, or results.csv")
    of_table.add_argument("--output", type=Path, default=RESULTS, help="where the table and the picture go")
    args = parser.parse_args()
    dict(run=run, table=write_table)[args.command](args)


if __name__ == "__main__":
    main()
