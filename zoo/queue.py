"""
A queue of runs that is nothing but files, so that it survives the death of any process, and of the machine::

    FOLDER/results.csv             the evaluations of all finished runs
    FOLDER/runs/NAME/run.json      settings of a run; a run is in the queue once this file is there
                     lock          held by the process that works on the run; the system frees it when that dies
                     rows.csv      evaluations so far
                     train/        folder of the training command, with the checkpoint to resume from
                     log.txt       output of all attempts
                     result.json   a run is finished once this file is there

Files are written under another name and renamed when they are complete. Whoever starts later takes what nobody holds;
any number of processes may work on one folder, also from several machines if its file system supports ``flock``.
"""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sb3_mpc
from sb3_mpc.common.files import holding as holding
from sb3_mpc.common.files import write_text as write_text

# One row for each evaluation; `method`, `task`, `frames`, `return` and `seed` are those of sb3_mpc.zoo.returns
COLUMNS = [
    *("suite", "method", "algo", "preset", "task", "seed", "frames", "decisions", "return", "return_std", "success"),
    *("train_cpu_s", "train_wall_s", "eval_cpu_s", "eval_wall_s", "resumed", "commit", "cpu"),
]
# Settings that only order and label runs, and may differ between the commands that add to a queue
LABELS = {"order", "suite"}
# Exit statuses: the run is held by another process; the machine of the process is lost
HELD, LOST = 75, 76
# Starts of a run that fails, by one process
ATTEMPTS = 3
# Seconds between looks at the running processes, and for them to save when they are stopped
PAUSE, PATIENCE = 0.5, 60.0


@dataclass(frozen=True)
class Run:
    """
    A run in the queue.

    :param folder: its folder
    """

    folder: Path

    @property
    def name(self) -> str:
        """:return: its name, which is that of its folder"""
        return self.folder.name

    @property
    def settings(self) -> dict[str, Any]:
        """:return: its settings"""
        return dict(json.loads((self.folder / "run.json").read_text()))

    @property
    def finished(self) -> bool:
        """:return: whether its result is there"""
        return (self.folder / "result.json").exists()

    @property
    def held(self) -> bool:
        """:return: whether a living process works on it"""
        with holding(self.folder / "lock") as free:
            return not free

    @property
    def rows(self) -> list[dict[str, str]]:
        """:return: its evaluations so far"""
        try:
            return list(csv.DictReader(io.StringIO((self.folder / "rows.csv").read_text())))
        except FileNotFoundError:
            return []


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """
    :param path: CSV file that is replaced only by a complete one
    :param rows: evaluations
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def add(folder: Path, name: str, settings: Mapping[str, Any]) -> Run:
    """
    :param folder: folder of the queue
    :param name: name of the run
    :param settings: its settings
    :return: the run; it may have been there before
    :raises ValueError: if it was, with other settings
    """
    run = Run(folder / "runs" / name)
    if not (run.folder / "run.json").exists():
        write_text(run.folder / "run.json", json.dumps(settings, indent=1) + "\n")
    for key, value in run.settings.items():
        if value != settings.get(key) and key not in LABELS:
            raise ValueError(
                f"{run.folder} was begun with {key} {value}, not {settings.get(key)}: choose another --folder."
            )
    return run


def runs_of(folder: Path) -> list[Run]:
    """
    :param folder: folder of the queue
    :return: its runs, the first seed of every task before the second one
    """
    found = [Run(path.parent) for path in folder.glob("runs/*/run.json")]
    keys = {run: (run.settings["seed"], run.settings["order"], run.name) for run in found}
    return sorted(found, key=keys.__getitem__)


def collect(folder: Path) -> Path:
    """
    :param folder: folder of the queue
    :return: the table of all finished runs, written anew
    """
    path = folder / "results.csv"
    with open(folder / ".results.lock", "a") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)  # the last writer has read all that the others have
        write_rows(path, [row for run in runs_of(folder) if run.finished for row in run.rows])
    return path


class Process(Protocol):
    """What a queue asks of a process that works on a run: a part of :class:`subprocess.Popen`."""

    def poll(self) -> int | None:
        """:return: the exit status, None while it works"""

    def send_signal(self, sig: int, /) -> None:
        """Ask it to save and end."""

    def wait(self, timeout: float | None = None) -> int:
        """:return: the exit status; raises ``subprocess.TimeoutExpired``"""

    def kill(self) -> None:
        """End it now."""


def command(run: Run, nice: int) -> list[str]:
    """
    :param run: a run
    :param nice: increase of the niceness of its process
    :return: command line that works on it
    """
    return [sys.executable, "-m", "sb3_mpc.zoo", "benchmark", "--nice", str(nice), "--run", str(run.folder.resolve())]


def start(run: Run, nice: int = 0) -> "subprocess.Popen[bytes]":
    """
    :param run: a run
    :param nice: increase of the niceness of its process
    :return: a process that works on it. Ctrl-C does not reach it: :func:`stop` asks it to save first
    """
    package = str(Path(sb3_mpc.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with open(run.folder / "log.txt", "a") as log:
        return subprocess.Popen(
            command(run, nice),
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop(processes: Sequence[Process]) -> None:
    """
    :param processes: processes that save a checkpoint and end, or are killed when they take too long
    """
    for process in processes:
        process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a script has started in the background
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def work(
    folder: Path,
    jobs: int,
    begin: Callable[[Run], Process] = start,
    report: Callable[[Run, str], None] = lambda run, event: None,
) -> list[Run]:
    """
    Work on the queue until nothing is left that can be taken.

    :param folder: folder of the queue
    :param jobs: runs at the same time
    :param begin: function that starts the process of a run
    :param report: function that is told what happens to a run: started, finished, failed, held by another process, or
        lost with its machine
    :return: runs that have failed in every attempt
    """
    active: dict[Run, Process] = {}
    attempts: Counter[Run] = Counter()
    lost: set[Run] = set()  # their processes may be alive, and hold them, on a machine that is out of reach

    def free(run: Run) -> bool:
        return run not in active and attempts[run] < ATTEMPTS and not run.finished and not run.held

    try:
        while True:
            for run, process in list(active.items()):
                status = process.poll()
                if status is None:
                    continue
                del active[run]
                event = "finished" if run.finished else {HELD: "held", LOST: "lost"}.get(status, "failed")
                attempts[run] += event == "failed"
                if event == "lost":
                    lost.add(run)
                elif event == "finished":
                    collect(folder)
                report(run, event)
            if len(active) < jobs:
                waiting = sorted(filter(free, runs_of(folder)), key=attempts.__getitem__)
                for run in waiting[: jobs - len(active)]:
                    active[run] = begin(run)
                    report(run, "started")
            if not active and not any(not run.finished and run.held for run in lost):
                break
            time.sleep(PAUSE)
    finally:
        stop(list(active.values()))
        collect(folder)
    return [run for run, count in attempts.items() if count >= ATTEMPTS and not run.finished]


def be_polite(nice: int, threads: int) -> None:
    """
    Prepare this process for a run, before PyTorch is imported.

    :param nice: increase of its niceness
    :param threads: threads of the numerical libraries
    """
    os.nice(nice)
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # so that compiling is counted as time of this process
