"""
Speed beside the official implementations, in turn (A B A B) on one machine: ``python -m sb3_mpc.zoo.studies.official``.

    git clone https://github.com/nicklashansen/tdmpc2 /tmp/official
    python -m venv /tmp/own && /tmp/own/bin/pip install "torch==2.7.1" "tensordict==0.8.3" pyyaml "numpy<2" hydra-core
    python -m sb3_mpc.zoo.studies.official --python /tmp/own/bin/python --source tdmpc2=/tmp/official --output FILE

The official code runs in an environment of its own, eager and compiled; what is faster counts. Stop other programs.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_mpc import BMPC, MBDPO, TDMPC2
from sb3_mpc.zoo import bench
from sb3_mpc.zoo.studies.official_worker import EPISODE_STEPS, LAYOUTS, REANALYZE_INTERVAL

METHODS: dict[str, Any] = dict(tdmpc2=TDMPC2, bmpc=BMPC, mbdpo=MBDPO)
# Ours: the bit-for-bit reference, and what compile="auto" becomes in a run of 50,000 decisions
OUR_MODES = ("eager", "default")
FILLED = 2 * EPISODE_STEPS
QUANTITIES = ("plan_ms", "update_ms", "update_with_replan_ms", "decision_ms", "beyond_start_mb")
WORKER = Path(__file__).with_name("official_worker.py")


def ours(method: str, mode: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param method: key of ``METHODS``
    :param mode: one of ``OUR_MODES``
    :param size: millions of parameters, as the official code counts them
    :param args: command line
    :return: times in ms and memory in MB, as the worker of the official code measures them
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # libraries alone
    th.set_num_threads(args.threads)
    env = bench.IdleEnv(args.obs, args.act)
    model = METHODS[method](
        "MlpPolicy", env, learning_starts=FILLED, pretrain_gradient_steps=0, compile=mode == "default", seed=0,
        device="cpu", policy_kwargs=dict(model_size=size),
    ).learn(FILLED)  # fmt: skip
    started = time.perf_counter()
    observation = env.reset()[0]
    model.predict(observation)
    model.train(REANALYZE_INTERVAL, model.batch_size)
    model.learn(3, reset_num_timesteps=False)
    result: dict[str, Any] = dict(first_call_s=round(time.perf_counter() - started, 1))
    result["plan_ms"] = bench.timed(lambda: model.predict(observation, deterministic=True), model.device, args.repeats)
    if method == "bmpc":  # ten updates, the last of which plans 60 states again
        times = bench.timed(lambda: model.train(REANALYZE_INTERVAL, model.batch_size), model.device, args.repeats // 3)
        result["update_with_replan_ms"] = [t / REANALYZE_INTERVAL for t in times]
    else:
        result["update_ms"] = bench.timed(lambda: model.train(1, model.batch_size), model.device, args.repeats)
    started = time.perf_counter()
    model.learn(args.repeats, reset_num_timesteps=False)
    result["decision_ms"] = [1e3 * (time.perf_counter() - started) / args.repeats]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.update(peak_rss_mb=round(peak / 1024), beyond_start_mb=round((peak - before) / 1024))
    result.update(threads=args.threads, torch=str(th.__version__), execution=model.policy.acceleration.describe())
    if method == "tdmpc2":
        for n_envs in args.n_envs:
            many = np.repeat(observation[None], n_envs, 0)
            times = bench.timed(partial(model.policy.predict, many, deterministic=True), model.device, 3)
            result[f"plan_{n_envs}_ms"] = times
    return result


def official(method: str, mode: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param method: key of ``LAYOUTS``
    :param mode: ``eager`` or ``compiled``
    :param size: millions of parameters
    :param args: command line
    :return: what the worker measured, or why it failed
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [args.python, str(WORKER), "--source", args.sources[method], "--method", method, "--mode", mode]
        command += ["--output", str(output)]
        for name, value in dict(
            size=size, obs=args.obs, act=args.act, threads=args.threads, repeats=args.repeats
        ).items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=args.timeout)
        if done.returncode:
            return dict(failed=done.stderr.strip().splitlines()[-1][:300])
        result: dict[str, Any] = json.loads(output.read_text())
    if method == "bmpc":
        mean = float(np.median(result["update_ms"])) + float(np.median(result["replan_ms"])) / REANALYZE_INTERVAL
        result["update_with_replan_ms"] = [mean]
    return result


def medians(result: dict[str, Any]) -> dict[str, Any]:
    """
    :param result: measurements
    :return: the same with medians in place of lists
    """
    return {k: round(float(np.median(v)), 2) if isinstance(v, list) else v for k, v in result.items()}


def ratios(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    :param runs: medians of all runs
    :return: for each method, size and quantity the official code in its fastest mode, ours, and their ratio: mean over
        the turns, with the smallest and largest ratio of one turn
    """
    rows = []
    cases = dict.fromkeys((run["method"], run["size"]) for run in runs)
    for method, size in cases:
        case = [run for run in runs if (run["method"], run["size"]) == (method, size)]
        for name in QUANTITIES:
            found: dict[str, dict[str, list[float]]] = {}
            for run in case:
                if name in run:
                    found.setdefault(run["code"], {}).setdefault(run["mode"], []).append(run[name])
            if len(found) < 2:
                continue
            modes = {code: min(times, key=lambda mode: float(np.mean(times[mode]))) for code, times in found.items()}
            theirs, best = found["official"][modes["official"]], found["sb3_mpc"][modes["sb3_mpc"]]
            each = [a / b for a, b in zip(theirs, best, strict=False)]
            rows.append(dict(
                method=method, size=size, quantity=name, official=round(float(np.mean(theirs)), 1),
                official_mode=modes["official"], ours=round(float(np.mean(best)), 1), our_mode=modes["sb3_mpc"],
                ratio=round(float(np.mean(theirs) / np.mean(best)), 2), ratios=[round(r, 2) for r in each],
            ))  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: from :func:`ratios`
    :return: the same in Markdown
    """
    lines = ["| | official (mode) | sb3-mpc (mode) | ratio |", "|---|---|---|---|"]
    for row in rows:
        name, unit = row["quantity"].rsplit("_", 1)
        cells = [
            f"{row['method']} {row['size']}M, {name.replace('_', ' ')}, {unit}",
            f"{row['official']} ({row['official_mode']})",
            f"{row['ours']} ({row['our_mode']})",
            f"{row['ratio']} ({', '.join(map(str, row['ratios']))})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """
    :param runs: medians of all runs
    :param path: picture to write: a panel for each method and size, a bar for each code and mode, the mean of the turns
    """
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((run["method"], run["size"]) for run in runs))
    figure = Figure(figsize=(3.6 * len(cases) + 0.6, 3.2), layout="constrained")
    for panel, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        own = [run for run in runs if (run["method"], run["size"]) == case and "failed" not in run]
        names = [name for name in QUANTITIES if name.endswith("_ms") and any(name in run for run in own)]
        kinds = list(dict.fromkeys((run["code"], run["mode"]) for run in own))
        for i, kind in enumerate(kinds):
            times = [[run[name] for run in own if (run["code"], run["mode"]) == kind and name in run] for name in names]
            heights = [float(np.mean(some)) if some else 0.0 for some in times]
            color = ("#bbbbbb", "#888888")[i % 2] if kind[0] == "official" else ("#77aadd", "#004488")[i % 2]
            at = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
            bars = panel.bar(at, heights, 0.8 / len(kinds), color=color, label=" ".join(kind).replace("_", "-"))
            panel.bar_label(bars, fmt="%.0f", fontsize=7)
        panel.set_xticks(range(len(names)), [name.removesuffix("_ms").replace("_", " ") for name in names])
        panel.set_title(f"{case[0]}, {case[1]}M", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print a table, and write everything after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of the official code's environment")
    parser.add_argument(
        "--source", nargs="+", required=True, metavar="METHOD=FOLDER", help="checkouts of the official code"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 1], help="millions of parameters")
    parser.add_argument("--obs", type=int, default=24, help="size of the observations")
    parser.add_argument("--act", type=int, default=6, help="size of the actions")
    parser.add_argument("--n-envs", type=int, nargs="*", default=[], help="environments planned together, ours alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--official-modes", nargs="+", default=["eager", "compiled"], choices=("eager", "compiled"))
    parser.add_argument("--our-modes", nargs="+", default=list(OUR_MODES), choices=OUR_MODES)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one run of the official code")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.sources = dict(pair.split("=", 1) for pair in args.source)
    if unknown := set(args.sources) - set(LAYOUTS):
        parser.error(f"unknown methods {sorted(unknown)}: use {', '.join(LAYOUTS)}")
    context = multiprocessing.get_context("spawn")
    settings = {
        name: str(value) if name == "output" else value for name, value in vars(args).items() if name != "python"
    }
    report: dict[str, Any] = dict(machine=bench.machine("cpu"), settings=settings, runs=[])
    for method in args.sources:
        commit = subprocess.run(
            ["git", "-C", args.sources[method], "rev-parse", "HEAD"], capture_output=True, text=True
        )
        report.setdefault("official", {})[method] = commit.stdout.strip()
        for size in args.sizes:
            for turn in range(args.turns):
                for code, modes in (("official", args.official_modes), ("sb3_mpc", args.our_modes)):
                    for mode in modes:
                        print(f"{method} {size}M, turn {turn + 1}: {code}, {mode}", flush=True)
                        if code == "official":
                            result = official(method, mode, size, args)
                        else:
                            with context.Pool(1) as pool:
                                result = pool.apply(ours, (method, mode, size, args))
                        result = dict(method=method, size=size, turn=turn, code=code, mode=mode, **medians(result))
                        print(
                            "   ",
                            {k: v for k, v in result.items() if k.endswith(("_ms", "_mb", "_s", "failed"))},
                            flush=True,
                        )
                        report["runs"].append(result)
                        report["ratios"] = ratios(report["runs"])
                        args.output.parent.mkdir(parents=True, exist_ok=True)
                        args.output.write_text(json.dumps(report, indent=1) + "\n")
    draw(report["runs"], args.output.with_suffix(".png"))
    print(f"\n{report['machine']['cpu']}, {args.threads} threads\n" + table(report["ratios"]))


if __name__ == "__main__":
    main()
