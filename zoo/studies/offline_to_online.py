"""
One task, first from the data of a finished training alone, then by acting, with half of each batch from those data.

    python -m sb3_mpc.zoo.studies.offline_to_online train --buffer dmc32/runs/RUN/replay_buffer.npz --algo mbdpo
    python -m sb3_mpc.zoo.studies.offline_to_online train --algo mbdpo           # from scratch
    python -m sb3_mpc.zoo.studies.offline_to_online plot

``train`` appends to ``results/offline-to-online.csv``: returns after the updates without acting (0 decisions) and every
2,500 decisions from there on. The preset is "small"; the buffer is that of a run of `benchmark --save-data`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.env_util import make_vec_env

from sb3_mpc.agents.training_files import read_buffer
from sb3_mpc.common.policies.multitask import short_name
from sb3_mpc.offline import Dataset
from sb3_mpc.zoo.multitask import Evaluations
from sb3_mpc.zoo.plot import pyplot
from sb3_mpc.zoo.studies.comparison import EPISODES, METHODS, RESULTS, make
from sb3_mpc.zoo.studies.factored import read
from sb3_mpc.zoo.studies.pretraining import append

UPDATES, DECISIONS, EVERY, FRACTION = 20_000, 10_000, 2_500, 0.5
FILE = "offline-to-online.csv"


def train(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    model, _ = make(args.algo, args.task, args.seed)
    data = None if args.buffer is None else Dataset.from_replay_buffer(read_buffer(args.buffer), env=model.env)
    mixed: dict[str, Any] = {} if data is None else dict(offline_data=data, offline_fraction=FRACTION)
    started = time.process_time()
    if data is not None:
        model.learn_offline(data, args.updates)
    path = args.folder / f".{args.algo}-{short_name(args.task)}-{args.seed}.csv"  # of a run in progress
    evaluations = Evaluations(make_vec_env(args.task, EPISODES), EVERY, EPISODES, path, seed=1_000)
    model.learn(args.decisions, evaluations, **mixed)
    run = dict(
        algo=args.algo, task=args.task, seed=args.seed, cpu_minutes=round((time.process_time() - started) / 60, 1)
    )
    run |= dict(transitions=0, updates=0) if data is None else dict(transitions=data.rows, updates=args.updates)
    rows = [
        dict(run, decisions=row.decisions, frames=2 * row.decisions)
        | {"return": round(row.mean, 1), "std": round(row.std, 1)}
        for row in evaluations.found
    ]
    append(rows, args.folder / FILE)
    path.unlink()


def plot(args: argparse.Namespace) -> None:
    """
    :param args: command line; writes ``offline-to-online.png``
    """
    runs: dict[tuple[str, str, str, str], list[dict[str, str]]] = {}
    for row in read(args.folder / FILE):
        runs.setdefault((row["task"], row["algo"], row["transitions"], row["seed"]), []).append(row)
    tasks = sorted({task for task, *_ in runs})
    plt = pyplot()
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 3.4), squeeze=False)
    for (task, algo, transitions, _), rows in sorted(runs.items()):
        start = f"{int(transitions) // 1000}k recorded transitions" if int(transitions) else "scratch"
        axis = axes[0, tasks.index(task)]
        returns = [float(row["return"]) for row in rows]
        axis.plot(
            [int(row["frames"]) for row in rows],
            returns,
            marker=".",
            linestyle="-" if int(transitions) else "--",
            label=f"{METHODS[algo].__name__}, from {start}",
        )
        axis.set(title=short_name(task), xlabel="frames of acting", ylabel="return")
    for axis in axes[0]:  # once all lines are there
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.folder / "offline-to-online.png", dpi=110)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("train", "plot"))
    parser.add_argument("--algo", default="tdmpc2", help="method, such as tdmpc2 or mbdpo")
    parser.add_argument("--task", default="dmc/walker-run-v0", help="the task")
    parser.add_argument("--buffer", type=Path, help="replay buffer with the data; from scratch without")
    parser.add_argument("--updates", type=int, default=UPDATES, help="before acting")
    parser.add_argument("--decisions", type=int, default=DECISIONS, help="of acting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the CSV file and the picture go")
    args = parser.parse_args()
    dict(train=train, plot=plot)[args.study](args)


if __name__ == "__main__":
    main()
