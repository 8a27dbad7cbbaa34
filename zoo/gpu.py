"""
Verify and measure everything on a GPU: ``make gpu``, or ``python -m sb3_mpc.zoo gpu``.

Each part runs in a process of its own, with a limit of time, and its results are written as they come: one that fails
takes nothing else along. What is verified and measured is in :mod:`sb3_mpc.zoo.gpu_checks`.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_mpc import METHODS
from sb3_mpc.zoo import gpu_checks
from sb3_mpc.zoo.gpu_checks import MODES, ROOT, Facts, Work, Write

# Relative differences between modes up to which they count as equal: after eight updates, rounding has spread
TOLERANCE = {"losses": 0.01, "returns": 0.01}
MINUTES = dict(about=5, equal=20, speed=30, training=360, tests=180)  # after which a part is ended


class Part(NamedTuple):
    """
    A part of the report.

    :param title: its name
    :param check: function of :mod:`sb3_mpc.zoo.gpu_checks`
    :param work: what it does
    """

    title: str
    check: Callable[[Work, Write], None]
    work: Work


def plan_parts(work: Work) -> list[Part]:
    """
    :param work: device, folder and size
    :return: all parts, the quick ones first
    """
    gpus = th.cuda.device_count() if work.device.startswith("cuda") and th.cuda.is_available() else 0
    parts = [Part("machine", gpu_checks.about, work)]
    for method in METHODS.values():
        for mode in MODES:
            one = work._replace(method=method, mode=mode)
            parts.append(Part(f"equal, {method}, {mode}", gpu_checks.equal, one))
    if gpus > 1:
        for mode in ("eager", "compiled graph"):
            second = work._replace(device=f"cuda:{gpus - 1}", mode=mode, folder=work.folder / f"cuda-{gpus - 1}")
            parts.append(Part(f"equal on cuda:{gpus - 1}, TDMPC2, {mode}", gpu_checks.equal, second))
    for method in METHODS.values():
        for mode in MODES if method == "TDMPC2" else ("eager", "auto", "compiled graph"):
            parts.append(Part(f"speed, {method}, {mode}", gpu_checks.speed, work._replace(method=method, mode=mode)))
    for mode in ("eager", "auto", "compiled graph"):
        parts.append(Part(f"speed of images, TDMPC2, {mode}", gpu_checks.speed, work._replace(mode=mode, images=True)))
    return [*parts, Part("training", gpu_checks.training, work), Part("tests", gpu_checks.tests, work)]


def do(part: Part, file: str) -> None:
    """
    Run a part, and write to the file what it has found so far; its error, if it fails.

    :param part: the part
    :param file: JSON file
    """
    found: Facts = {}

    def write(facts: Facts) -> None:
        found.update(facts)
        Path(file).write_text(json.dumps(found, default=str))

    try:
        part.check(part.work, write)
    except Exception as error:
        write(dict(error=" ".join(f"{type(error).__name__}: {error}".split())[:500]))


def do_apart(part: Part, file: str, minutes: float) -> None:
    """As :func:`do`, in a process of its own, which may crash, and is ended after so many minutes."""
    process = multiprocessing.get_context("spawn").Process(target=do, args=(part, file))
    process.start()
    process.join(60 * minutes)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    if late or process.exitcode:
        path = Path(file)
        found = json.loads(path.read_text()) if path.exists() else {}
        ended = f"ended after {minutes} minutes" if late else f"the process ended with status {process.exitcode}"
        path.write_text(json.dumps({**found, "error": ended}))


def differences(folder: Path, method: str, mode: str) -> Facts:
    """
    :param folder: where the results of :func:`sb3_mpc.zoo.gpu_checks.equal` are
    :param method: name of the class
    :param mode: mode of execution
    :return: largest differences to the eager mode, relative to the largest eager value, and whether they are small
    """
    eager, other = (folder / f"{method}-{name.replace(' ', '-')}.npz" for name in ("eager", mode))
    if not (eager.exists() and other.exists()):
        return {}
    with np.load(eager) as expected, np.load(other) as given:
        found: Facts = {
            name: float(np.abs(given[name] - expected[name]).max() / max(1e-9, np.abs(expected[name]).max()))
            for name in expected.files
            if expected[name].shape == given[name].shape
        }
    equal = all(found.get(name, np.inf) <= limit for name, limit in TOLERANCE.items())
    return dict(differences={name: float(f"{value:.2g}") for name, value in found.items()}, equal=equal)


def cell(found: Facts, *names: str) -> str:
    """
    :param found: results of a part
    :param names: path to one of them
    :return: it in a cell of a table
    """
    value: Any = found
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return "-" if value is None else str(value)


def page(report: Facts) -> str:
    """
    :param report: all results so far
    :return: page with their tables, in Markdown
    """
    machine, results = report.get("machine", {}), report["results"]
    name = machine.get("gpu") or machine.get("device", "")
    lines = [f"# {name}", "", "Written by `python -m sb3_mpc.zoo gpu`.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "## Equal to the eager mode", ""]
    lines += ["| | equal | losses | returns | recordings |", "|---|---|---|---|---|"]
    for title, found in results.items():
        if title.startswith("equal"):
            parts = [("equal",), ("differences", "losses"), ("differences", "returns"), ("recordings",)]
            lines.append(f"| {title[6:].strip()} | {' | '.join(cell(found, *path) for path in parts)} |")
    lines += ["", "## Speed", "", "Medians in ms.", ""]
    lines += ["| | update | plan of 1 | 16 | 64 | 1024 | decisions/s | MB on the GPU |", "|---" * 8 + "|"]
    for title, found in results.items():
        if title.startswith("speed"):
            paths = [("update", "median_ms"), *((f"plan of {n}", "median_ms") for n in (1, 16, 64, 1024))]
            cells = [cell(found, *path) for path in [*paths, ("decisions_per_s",), ("peak_cuda_mb",)]]
            lines.append(f"| {title[5:].lstrip(' ,')} | {' | '.join(cells)} |")
    lines += ["", verdict(results)]
    training = results.get("training", {})
    lines += ["", "## Training", "", f"{cell(training, 'env')}, {cell(training, 'seconds')} s:", ""]
    lines += ["| decisions | mean return | s |", "|---|---|---|"]
    lines += [f"| {p['decisions']} | {p['mean_return']} | {p['seconds']} |" for p in training.get("curve", [])]
    tests = results.get("tests", {})
    lines += ["", "## Tests", "", f"{cell(tests, 'tests')} tests, {len(tests.get('failed', []))} failed:", ""]
    lines += [f"- {name}" for name in tests.get("failed", [])]
    failures = [f"- {title}: {found['error']}" for title, found in results.items() if "error" in found]
    lines += ["", "## Parts that did not come through", "", *(failures or ["None."])]
    return "\n".join(lines) + "\n"


def verdict(results: Facts) -> str:
    """
    :param results: all results
    :return: what follows for our own recordings, which are worth their code only if PyTorch's are slower
    """
    ours, pytorchs = (results.get(f"speed, TDMPC2, {mode}", {}) for mode in ("compiled graph", "reduce-overhead"))
    ratios = [
        f"{name} {pytorchs[name]['median_ms'] / ours[name]['median_ms']:.2f}"
        for name in ("update", "plan of 1", "plan of 64")
        if name in ours and name in pytorchs
    ]
    if not ratios:
        return 'Our own graphs and those of `torch.compile(mode="reduce-overhead")` could not be compared.'
    return 'Time of `torch.compile(mode="reduce-overhead")` relative to our own graphs: ' + ", ".join(ratios) + "."


def draw(curve: list[Facts], file: Path) -> None:
    """
    :param curve: points of the training
    :param file: picture to write
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["decisions"] for point in curve], [point["mean_return"] for point in curve], marker="o")
    axes.set(xlabel="decisions", ylabel="mean return")
    figure.savefig(file, dpi=120)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of the command
    """
    parser.epilog = (
        "FOLDER/gpu.json and gpu.md are written after each part, so that nothing is lost by Ctrl-C; started again,\n"
        "the command does what is missing and what has failed. `--device cpu --small` tries it without a GPU."
    )
    parser.add_argument("--device", default="cuda", help="device to verify (default: cuda)")
    parser.add_argument("--folder", type=Path, help="where the report goes (default: zoo/benchmarks/NAME-OF-THE-GPU)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only parts whose titles contain one of these words")
    parser.add_argument("--small", action="store_true", help="tiny networks in this process, nothing compiled")
    parser.add_argument("--dry-run", action="store_true", help="print the parts")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    :raises ValueError: if there is no such device
    """
    device = th.device(args.device)
    if device.type == "cuda" and not th.cuda.is_available() and not args.dry_run:
        raise ValueError(
            f"This build of PyTorch ({th.__version__}) finds no GPU: install one for CUDA, or try the program with "
            "--device cpu --small."
        )
    name = th.cuda.get_device_name(device) if device.type == "cuda" and th.cuda.is_available() else args.device
    base = ROOT / "zoo" / "benchmarks" if (ROOT / "zoo" / "benchmarks").is_dir() else Path()
    folder = args.folder or base / "-".join(name.lower().split())
    parts = plan_parts(Work(args.device, folder, args.small))
    parts = [part for part in parts if not args.only or any(word in part.title for word in args.only)]
    if args.dry_run:
        limits = {part.title: MINUTES[part.check.__name__] for part in parts}
        print("\n".join(f"{title} (at most {minutes} minutes)" for title, minutes in limits.items()))
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "gpu.json"
    report: Facts = json.loads(file.read_text()) if file.exists() else {}
    report = dict(machine=report.get("machine", {}), results=report.get("results", {}))
    for part in parts:
        if "error" not in report["results"].get(part.title, {"error": "not done yet"}):
            continue
        print(f"{part.title} ...", flush=True)
        found = one(part, folder, apart=not args.small)
        report["results"][part.title] = found
        report["machine"] |= found if part.title == "machine" else {}
        file.write_text(json.dumps(report, indent=1) + "\n")
        (folder / "gpu.md").write_text(page(report))
        print(f"  {json.dumps({key: value for key, value in found.items() if key != 'curve'})[:300]}", flush=True)
    print(f"\n{verdict(report['results'])}\nThe report: {folder / 'gpu.md'}")


def one(part: Part, folder: Path, apart: bool) -> Facts:
    """
    :param part: part to do
    :param folder: where its files go
    :param apart: whether in a process of its own
    :return: its results
    """
    file = folder / "part.json"
    file.unlink(missing_ok=True)
    if apart:
        do_apart(part, str(file), MINUTES[part.check.__name__])
    else:
        do(part, str(file))
    found: Facts = json.loads(file.read_text()) if file.exists() else dict(error="it has found nothing")
    file.unlink(missing_ok=True)
    if part.check is gpu_checks.equal:
        found |= differences(part.work.folder, part.work.method, part.work.mode)
    if "curve" in found and find_spec("matplotlib") is not None:
        draw(found["curve"], folder / "curve.png")
    return found
