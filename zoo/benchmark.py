"""Command ``benchmark``: methods on sets of tasks, by the queue of :mod:`sb3_mpc.zoo.queue`."""

import argparse
import functools
import itertools
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_mpc import METHODS
from sb3_mpc.zoo import queue
from sb3_mpc.zoo.queue import Run
from sb3_mpc.zoo.run_folder import plain
from sb3_mpc.zoo.tasks import SUITES

# Decisions of a run that is only measured
REHEARSAL = 1_000


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    if args.run is not None:
        work_alone(args.run, args.nice)
    elif args.status:
        print_status(args.folder, args.jobs or 1)
    else:
        from sb3_mpc.zoo.train import check_options

        check_options(args, seeds=1, first_seed=0, frames=1, eval_frames=1, episodes=1, jobs=1, threads=1, nice=0)
        planned = plan(args)
        if args.dry_run:
            print_plan(args.folder, planned, args.jobs or 1)
        else:
            for name, settings in planned.items():
                queue.add(args.folder, name, settings)
            work(args)


def runs_in(folder: Path) -> list[Run]:
    """
    :param folder: the queue
    :return: its runs
    :raises ValueError: if there are none
    """
    runs = queue.runs_of(folder)
    if not runs:
        raise ValueError(f"There are no runs in {folder}: which tasks? --suite dmc32, for example.")
    return runs


def work(args: argparse.Namespace) -> None:
    """
    Work on the queue until nothing is left to do.

    :param args: command line
    :raises RuntimeError: if runs have failed
    """
    runs, jobs = runs_in(args.folder), args.jobs or 1
    begin: Any = functools.partial(queue.start, nice=args.nice)
    if args.launcher == "ray":
        from sb3_mpc.zoo import on_ray

        on_ray.connect()
        # All at once: Ray begins as many as it has processors for
        jobs, begin = args.jobs or len(runs), functools.partial(on_ray.Task, nice=args.nice)
    print(f"{sum(run.finished for run in runs)} of {len(runs)} runs are finished; --status tells more", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = queue.work(args.folder, jobs, begin, tell)
    except KeyboardInterrupt:
        print("Stopped: the runs have saved, and the same command continues.")
        sys.exit(128 + signal.SIGINT)
    held = sum(not run.finished and run.held for run in runs)
    print(f"{args.folder / 'results.csv'}" + (f"; in work elsewhere: {held}" if held else ""))
    if failed:
        names = ", ".join(run.name for run in failed)
        raise RuntimeError(f"{names} failed {queue.ATTEMPTS} times: see log.txt in {args.folder / 'runs'}.")


def tell(run: Run, event: str) -> None:
    """
    Print what happens to a run.

    :param run: the run
    :param event: see :func:`sb3_mpc.zoo.queue.work`
    """
    found = f": return {run.rows[-1]['return']}" if event == "finished" else ""
    where = f", see {run.folder / 'log.txt'}" if event == "failed" else ""
    print(f"{time.strftime('%H:%M:%S')} {run.name} {event}{found}{where}", flush=True)


def work_alone(folder: Path, nice: int) -> None:
    """
    Do one run in this process.

    :param folder: its folder
    :param nice: increase of the niceness of this process
    :raises FileNotFoundError: if there is no such run
    """
    begin, run = time.monotonic(), Run(folder)
    if not (folder / "run.json").exists():
        raise FileNotFoundError(f"{folder} is no run of a queue: there is no run.json.")
    with queue.holding(folder / "lock") as free:
        if not free:
            sys.exit(queue.HELD)
        if not run.finished:
            queue.be_polite(nice, run.settings["threads"])
            from sb3_mpc.zoo.trial import execute

            execute(run, begin)


def plan(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """
    :param args: command line
    :return: settings of the runs that it names, by their names
    :raises ValueError: if there is no such method, preset or task
    """
    tasks = {task: suite for suite in args.suite for task in SUITES[suite]}
    for task in args.tasks:
        tasks.setdefault(task, task.partition("/")[0] if "/" in task else "gymnasium")
    if not tasks:
        return {}
    from sb3_mpc.zoo.presets import load_preset
    from sb3_mpc.zoo.rl_zoo import find_environment
    from sb3_mpc.zoo.trial import settings_of

    for algo in args.algo:
        if algo not in [*METHODS, "sac"]:
            raise ValueError(f'There is no method "{algo}": there are {", ".join(METHODS)}, and "sac".')
    check_changes(args.hyperparams, args.label)
    names = ("frames", "eval_frames", "episodes", "threads", "device", "save_data", "label")
    common = {name: getattr(args, name) for name in names}
    common |= dict(hyperparams=args.hyperparams) if args.hyperparams else {}
    found = {}
    for order, ((task, suite), algo) in enumerate(itertools.product(tasks.items(), args.algo)):
        find_environment(task)
        preset = "" if algo == "sac" else args.preset
        load_preset(algo, task, preset or None)
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            name = "-".join(filter(None, [algo, preset, args.label, re.sub("[/:]", "-", task), str(seed)]))
            found[name] = settings_of(suite, algo, preset, task, seed, order=order, **common)
    return dict(sorted(found.items(), key=lambda item: (item[1]["seed"], item[1]["order"])))


def check_changes(hyperparams: Sequence[str] | None, label: str) -> None:
    """
    :param hyperparams: items ``name:value`` that change the preset, if any
    :param label: name of the changes
    :raises ValueError: if an item cannot be understood, or one of the two is missing
    """
    from sb3_mpc.zoo.train import check_setting

    for item in hyperparams or []:
        check_setting(item)
        plain(item.partition(":")[2])
    if bool(hyperparams) != bool(label) or not re.fullmatch(r"[A-Za-z0-9_.+-]*", label):
        raise ValueError(
            "What is changed by -params needs a name in the results, of letters, digits and any of . + - _, and "
            "nothing else has one: give -params NAME:VALUE together with --label NAME."
        )


def rates_of(runs: Sequence[Run]) -> dict[str, float]:
    """
    :param runs: runs
    :return: seconds of training and evaluation per simulator frame, of each method that has been evaluated: the median
        over its runs
    """
    known: dict[str, list[float]] = {}
    for run in runs:
        rows = run.rows
        if rows:
            seconds = float(rows[-1]["train_wall_s"]) + float(rows[-1]["eval_wall_s"])
            known.setdefault(rows[-1]["method"], []).append(seconds / int(rows[-1]["frames"]))
    return {method: statistics.median(rates) for method, rates in known.items()}


def rehearse(settings: dict[str, Any]) -> float:
    """
    Measure how long a run would take, by the first decisions of one that is thrown away; without the distillation of
    Fac-TDMPC, whose updates do not depend on the decisions.

    :param settings: settings of the run
    :return: seconds per simulator frame
    :raises RuntimeError: if it fails
    """
    distils = settings["algo"] == "fac_tdmpc"
    left_out = ", and its distillation is not counted" if distils else ""
    print(f"Measuring {settings['method']} on {settings['task']}: a minute or more{left_out}", flush=True)
    short = {**settings, "decisions": REHEARSAL, "eval_decisions": REHEARSAL // 2, "save_data": False}
    if settings["algo"] != "sac":
        short["hyperparams"] = [
            *settings.get("hyperparams", []),
            f"learning_starts:{REHEARSAL // 5}",
            "pretrain_gradient_steps:1",
            *(["distill_steps:0"] if distils else []),
        ]
    with tempfile.TemporaryDirectory() as folder:
        run = queue.add(Path(folder), "rehearsal", short)
        process = queue.start(run)
        try:
            process.wait()
        finally:  # Ctrl-C does not reach it
            queue.stop([process])
        if not run.finished:
            log = (run.folder / "log.txt").read_text().strip().splitlines()
            raise RuntimeError(f"A run of {settings['method']} on {settings['task']} fails: {log[-1] if log else ''}")
        (train, evaluate), (train_2, evaluate_2) = (
            [float(row[name]) for name in ("train_wall_s", "eval_wall_s")] for row in run.rows
        )
    # Both have compiled before the first evaluation ends. The updates at the end of seeding are as many as would have
    # come with the seeded decisions
    of_decision, of_evaluation = (train_2 - train) / (REHEARSAL / 2), evaluate_2 - evaluate
    once = train + evaluate - of_decision * REHEARSAL / 2 - of_evaluation
    evaluations = -(-settings["decisions"] // settings["eval_decisions"])
    total = once + of_decision * settings["decisions"] + of_evaluation * evaluations
    return max(0.0, total) / settings["frames"]


def forecast(rates: Mapping[str, float], left: Sequence[dict[str, Any]], jobs: int) -> str:
    """
    :param rates: seconds per frame of each method
    :param left: settings of runs to do, of which ``done`` frames are done
    :param jobs: runs at the same time
    :return: time left, in words
    """
    known = [settings for settings in left if settings["method"] in rates]
    seconds = sum(rates[settings["method"]] * (settings["frames"] - settings.get("done", 0)) for settings in known)
    text = f"{len(left)} runs left, about {seconds / jobs / 3600:.1f} hours with {jobs} at the same time"
    unknown = sorted({settings["method"] for settings in left} - rates.keys())
    return text + (f", without {', '.join(unknown)}: no run has been evaluated yet" if unknown else "")


def print_plan(folder: Path, planned: dict[str, dict[str, Any]], jobs: int) -> None:
    """
    Print what would be done, and how long it would take.

    :param folder: the queue
    :param planned: settings of runs by their names
    :param jobs: runs at the same time
    """
    runs = queue.runs_of(folder)
    planned = {run.name: run.settings for run in runs} | planned
    finished = {run.name for run in runs if run.finished}
    for name in planned:
        print(f"{name}{', finished' if name in finished else ''}")
    left, rates = [settings for name, settings in planned.items() if name not in finished], rates_of(runs)
    for settings in left:
        if settings["method"] not in rates:
            rates[settings["method"]] = rehearse(settings)
    print(forecast(rates, left, jobs))


def print_status(folder: Path, jobs: int) -> None:
    """
    Print each run with its last evaluation, and the time left.

    :param folder: the queue
    :param jobs: runs at the same time
    """
    runs, left = runs_in(folder), []
    width = max(len(run.name) for run in runs)
    counts = dict.fromkeys(("finished", "running", "interrupted", "waiting"), 0)
    for run in runs:
        rows, settings = run.rows, run.settings
        begun = any(run.folder.glob("train/*/*"))
        state = "finished" if run.finished else "running" if run.held else "interrupted" if begun else "waiting"
        counts[state] += 1
        done = int(rows[-1]["frames"]) if rows else 0
        if not run.finished:
            left.append({**settings, "done": done})
        evaluated = f"  {done:>9,} frames  return {float(rows[-1]['return']):8.1f}" if rows else ""
        print(f"{run.name:<{width}}  {state:<11}{evaluated}".rstrip())
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    print(forecast(rates_of(runs), left, max(jobs, counts["running"])))
