"""The queue of a benchmark: nothing is lost and nothing is done twice, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sb3_mpc.zoo import queue
from sb3_mpc.zoo.queue import Run
from tests.support import ROOT

# Stands in for `benchmark --run FOLDER`: claims, notes that it has started, works until there is a file of the name
# given (at once without a name), and leaves a row and a result
WORKER = """
import fcntl, json, os, sys, time
folder, signal = sys.argv[1:]
lock = open(f"{folder}/lock", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)
if os.path.exists(f"{folder}/result.json"):  # another one has finished it since the queue looked
    sys.exit(0)
open(f"{folder}/starts", "a").write("x")
while signal and not os.path.exists(signal):
    time.sleep(0.01)
if os.path.exists(f"{folder}/fail"):
    sys.exit(1)
open(f"{folder}/rows.csv", "w").write("task,seed,frames,return\\nT,0,10,1.5\\n")
open(f"{folder}/result.json", "w").write("{}")
"""

# A whole queue in a process of its own, with such workers
QUEUE = """
import subprocess, sys
from pathlib import Path
from sb3_mpc.zoo import queue
queue.PAUSE = 0.01
begin = lambda run: subprocess.Popen([sys.executable, "-c", sys.argv[3], str(run.folder), sys.argv[4]])
queue.work(Path(sys.argv[1]), int(sys.argv[2]), begin)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PAUSE", 0.01)


def worker(until: Path | str = ""):
    """:return: function that begins a run, which ends when there is a file of this name"""
    return lambda run: subprocess.Popen([sys.executable, "-c", WORKER, str(run.folder), str(until)])


def queue_process(folder: Path, until: Path | str = "", jobs: int = 2) -> subprocess.Popen:
    """:return: a process that works on a queue"""
    command = [sys.executable, "-c", QUEUE, str(folder), str(jobs), WORKER, str(until)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)


def filled(folder: Path, tasks: int = 3, seeds: int = 2) -> list[Run]:
    """:return: runs of a new queue"""
    for seed in reversed(range(seeds)):
        for task in range(tasks):
            queue.add(folder, f"task{task}-{seed}", dict(seed=seed, order=task, frames=10))
    return queue.runs_of(folder)


def starts(runs: list[Run]) -> list[int]:
    return [len((run.folder / "starts").read_text()) for run in runs]


def wait_until(true) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


def test_first_seed_of_all_tasks_comes_first(tmp_path: Path) -> None:
    runs, begun = filled(tmp_path), []
    queue.work(tmp_path, 1, worker(), lambda run, event: begun.append(run.name) if event == "started" else None)
    assert begun == ["task0-0", "task1-0", "task2-0", "task0-1", "task1-1", "task2-1"]
    assert starts(runs) == [1] * 6
    table = (tmp_path / "results.csv").read_text().splitlines()
    assert table[0].split(",") == queue.COLUMNS and len(table) == 7


def test_finished_runs_are_not_repeated_and_new_ones_are_added(tmp_path: Path) -> None:
    queue.work(tmp_path, 2, worker()) if filled(tmp_path, seeds=1) else None
    runs = filled(tmp_path, seeds=2)
    queue.work(tmp_path, 2, worker())
    assert all(run.finished for run in runs) and starts(runs) == [1] * 6


def test_other_settings_are_refused(tmp_path: Path) -> None:
    queue.add(tmp_path, "run", dict(seed=0, order=0, frames=10))
    queue.add(tmp_path, "run", dict(seed=0, order=5, frames=10))
    with pytest.raises(ValueError, match="frames 10, not 20"):
        queue.add(tmp_path, "run", dict(seed=0, order=0, frames=20))


def test_two_queues_share_the_runs(tmp_path: Path) -> None:
    runs = filled(tmp_path)
    processes = [queue_process(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert all(run.finished for run in runs) and starts(runs) == [1] * 6
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 7


def test_killed_queue_leaves_its_runs_working_and_another_goes_on(tmp_path: Path) -> None:
    runs = filled(tmp_path)
    process = queue_process(tmp_path, tmp_path / "go")
    wait_until(lambda: runs[0].held and runs[1].held)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert queue.work(tmp_path, 2, worker()) == []
    assert [run.finished for run in runs] == [False] * 2 + [True] * 4
    (tmp_path / "go").touch()
    wait_until(lambda: all(run.finished for run in runs))
    assert starts(runs) == [1] * 6
    assert queue.collect(tmp_path).read_text().count("\n") == 7


def test_killed_run_is_free_again_at_once(tmp_path: Path) -> None:
    (run,) = filled(tmp_path, 1, 1)
    process = worker("never")(run)
    wait_until(lambda: run.held)
    process.kill()
    process.wait()
    assert not run.held
    assert queue.work(tmp_path, 1, worker()) == [] and starts([run]) == [2]


def test_failing_run_does_not_keep_the_others(tmp_path: Path) -> None:
    runs = filled(tmp_path)
    (runs[0].folder / "fail").touch()
    events: list[str] = []
    assert queue.work(tmp_path, 1, worker(), lambda run, event: events.append(event)) == [runs[0]]
    assert starts(runs) == [queue.ATTEMPTS, 1, 1, 1, 1, 1]
    assert events.count("failed") == queue.ATTEMPTS and events.count("finished") == 5
    assert (tmp_path / "results.csv").read_text().count("\n") == 6


def test_interrupted_queue_asks_its_runs_to_stop(tmp_path: Path) -> None:
    (run,) = filled(tmp_path, 1, 1)

    def interrupt(run: Run, event: str) -> None:
        wait_until(lambda: run.held)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.work(tmp_path, 1, worker("never"), interrupt)
    assert not run.held and not run.finished


def test_settings_are_read_back(tmp_path: Path) -> None:
    run = queue.add(tmp_path, "run", dict(seed=0, order=0))
    assert run.settings == json.loads((run.folder / "run.json").read_text()) == dict(seed=0, order=0)
    assert run.rows == [] and not run.finished


def test_stop_reaches_a_run_that_ignores_ctrl_c() -> None:
    """As those do whose queue a script has started in the background."""
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    queue.stop([process])
    assert process.returncode == -signal.SIGTERM
