"""
What a plan of MBDPO costs and yields, by number of samples and of denoising steps.

    python -m sb3_mpc.zoo.studies.diffusion --env dmc/walker-walk-v0 --episodes 10

One row of ``diffusion.csv`` is one planner of a trained agent: time of a plan in one environment, and return of
deterministic episodes. Elites and proposals are the same fractions of the samples as in training. The limits of the
diffusion schedule stay, so that fewer steps also mean less noise, as in the official code.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import MBDPO
from sb3_mpc.mbdpo.planner import DiffusionPlanner
from sb3_mpc.zoo import load
from sb3_mpc.zoo.evaluate import measure

RESULTS = Path(__file__).parent / "results"


def set_planner(model: MBDPO, samples: int, steps: int) -> None:
    """
    :param model: trained agent, whose planner is replaced
    :param samples: number of sequences in a denoising step
    :param steps: number of denoising steps
    """
    policy, old = model.policy, model.planner
    arguments = dict(policy._init_kwargs["planner_kwargs"])
    for name in ("num_elites", "num_pi_trajs"):
        arguments[name] = max(samples * arguments[name] // arguments["num_samples"], 1)
    arguments |= dict(num_samples=samples, iterations=steps)
    policy.planner = DiffusionPlanner(policy.world_model, **arguments).to(policy.device)
    policy.planner.load_state_dict(old.state_dict())
    policy.to(policy.device)  # forgets what was made for the old planner


def milliseconds(model: MBDPO, env: VecEnv, runs: int) -> float:
    """
    :param model: agent
    :param env: environment
    :param runs: number of plans, after three that do not count
    :return: median time of a plan in one environment
    """
    observation, times = np.asarray(env.reset())[:1], []
    for _ in range(runs + 3):
        started = time.perf_counter()
        model.predict(observation, deterministic=True)
        times.append(1e3 * (time.perf_counter() - started))
    return round(float(np.median(times[3:])), 2)


def study(model: MBDPO, env: VecEnv, args: argparse.Namespace) -> list[dict[str, Any]]:
    """
    :param model: trained agent
    :param env: environments for its episodes
    :param args: command line
    :return: a row for each planner
    """
    rows: list[dict[str, Any]] = []
    settings = dict(model.policy._init_kwargs["planner_kwargs"])
    pairs = [(samples, settings["iterations"]) for samples in args.samples]
    pairs += [(settings["num_samples"], steps) for steps in args.steps]
    for samples, steps in dict.fromkeys(pairs):
        set_planner(model, samples, steps)
        env.seed(1_000)
        found = measure(model, env, args.episodes)
        row = dict(task=args.env, samples=samples, steps=steps, threads=th.get_num_threads())
        row |= dict(ms=milliseconds(model, env, args.runs), episodes=args.episodes)
        rows.append({**row, "return": round(found["mean"], 1), "std": round(found["std"], 1)})
        print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]], output: Path) -> None:
    """
    :param rows: rows of the study
    :param output: picture to write
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    samples = max({row["samples"] for row in rows}, key=[row["samples"] for row in rows].count)
    steps = max({row["steps"] for row in rows}, key=[row["steps"] for row in rows].count)
    panels = (("samples", "steps", steps), ("steps", "samples", samples))
    for left, (name, other, fixed) in zip(figure.subplots(1, 2), panels, strict=True):
        own = sorted((row for row in rows if row[other] == fixed), key=lambda row: row[name])
        x, y = [row[name] for row in own], [row["return"] for row in own]
        left.errorbar(x, y, [row["std"] for row in own], fmt="o-", capsize=3, label="return")
        right = left.twinx()
        right.plot(x, [row["ms"] for row in own], "s:", color="C1", label="time")
        left.set(xlabel=name, ylabel="return", xscale="log", title=f"{own[0]['task']}, {fixed} {other}", ylim=(0, None))
        left.set_xticks(x, map(str, x))
        left.minorticks_off()
        right.set(ylabel="ms for a plan", ylim=(0, None))
        left.grid(alpha=0.3)
        left.legend([*left.get_legend_handles_labels()[0], *right.lines], ["return", "time"], loc="lower right")
    figure.savefig(output, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="dmc/walker-walk-v0")
    parser.add_argument("--samples", type=int, nargs="+", default=[512, 256, 128, 64, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[19, 10, 5, 2])
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--runs", type=int, default=50, help="plans whose time is measured")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "diffusion.csv", help="CSV file; the picture is beside"
    )
    args = parser.parse_args()
    model = load("mbdpo", args.env, device="cpu")
    assert isinstance(model, MBDPO)
    rows = study(model, make_vec_env(args.env, min(args.episodes, 10)), args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
