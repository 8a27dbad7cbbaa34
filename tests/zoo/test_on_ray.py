"""The queue of a benchmark on a Ray cluster of two nodes, of which one dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")
from ray._private import services
from ray.cluster_utils import Cluster

from sb3_mpc.zoo import on_ray, queue
from sb3_mpc.zoo.queue import Run

pytestmark = pytest.mark.slow
RUNS = 6


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """:return: a head without processors, to which nodes can be added"""
    once = services.get_node

    def patiently(*args: object) -> object:
        end = time.monotonic() + 300
        while True:
            try:
                return once(*args)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    # A busy core needs more time than Ray gives
    monkeypatch.setattr(services, "get_node", patiently)
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_nothing_is_lost_and_nothing_done_twice_when_a_node_dies(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    for index in range(RUNS):
        queue.add(tmp_path, f"run{index}", dict(seed=0, order=index, threads=1, device="cpu"))
    runs = queue.runs_of(tmp_path)

    def work(folder: str, nice: int) -> int:  # within the process of the task, which dies with its node
        with open(f"{folder}/lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 75
            with open(f"{folder}/starts", "a") as file:
                file.write(f"{os.environ.get('RAY_RAYLET_PID', '')} {os.getppid()}\n")
            while not os.path.exists(f"{folder}/../../go"):
                time.sleep(0.01)
            for name, text in (("rows.csv", "seed,frames,return\n0,10,1.0\n"), ("result.json", "{}")):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(text)
        return 0

    events: list[tuple[str, str]] = []

    def report(run: Run, event: str) -> None:
        events.append((run.name, event))
        if event == "lost":
            (tmp_path / "go").touch()

    def begin(run: Run) -> on_ray.Task:
        if len(events) == RUNS - 1:  # all but this one are in the cluster, two of them at work
            end = time.monotonic() + 60
            while sum(run.held for run in runs) < 2:
                assert time.monotonic() < end, "the tasks do not begin"
                time.sleep(0.05)
            cluster.remove_node(nodes[1], allow_graceful=False)
        return on_ray.Task(run, function=work)

    assert queue.work(tmp_path, RUNS, begin, report) == []
    assert all(run.finished for run in runs)
    counts = [len((run.folder / "starts").read_text().splitlines()) for run in runs]
    lost = {name for name, event in events if event == "lost"}
    # The run that was at work on the node that has died was started again, all others were started once
    assert len(lost) == 1 and counts == [2 if run.name in lost else 1 for run in runs]
    assert (tmp_path / "results.csv").read_text().count("\n") == 1 + RUNS
