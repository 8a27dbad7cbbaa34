"""Two processes that train one agent, connected by gloo: the same as one process with the whole batch."""

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch as th

from sb3_mpc import TDMPC2
from sb3_mpc.common import processes
from tests.support import ROOT
from tests.support.two_processes import METHODS, updated

pytestmark = pytest.mark.slow
# A ranking does not depend on what is added to all scores: the gradient is rounding, which Adam scales up
HEADS = ("reward_head", "q_heads.0", "q_heads.1")
WITHOUT_GRADIENT = [f"student.{head}.layers.1.bias" for head in HEADS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """:return: what the two processes have found, their exit statuses and messages, and their folder"""
    folder = tmp_path_factory.mktemp("run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.two_processes", str(folder)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        messages = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    missing = [rank for rank in range(2) if not (folder / f"{rank}.pt").exists()]
    assert not missing, messages
    found = [th.load(folder / f"{rank}.pt") for rank in range(2)]
    return dict(found=found, status=[process.returncode for process in started], messages=messages, folder=folder)


@pytest.mark.parametrize("algorithm", METHODS)
def test_two_halves_are_the_whole(run: dict[str, Any], algorithm: Any) -> None:
    """Parameters, target networks and all that is estimated from a batch, after twenty updates."""
    alone, (first, second) = updated(algorithm), (one["updated"][algorithm.__name__] for one in run["found"])
    moved = 0.0
    for name, value in alone.items():
        assert th.equal(first[name], second[name]), name
        if name in WITHOUT_GRADIENT:
            continue
        th.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        moved += float((value != 0).sum())
    assert moved > 1000


def test_processes_learn_one_agent(run: dict[str, Any]) -> None:
    """Each in its own environment; the termination that one has seen is predicted by both; the first one reports."""
    first, second = (one["learned"] for one in run["found"])
    assert first["state"].keys() == second["state"].keys()
    assert any("termination_head" in name for name in first["state"])
    for name, value in first["state"].items():
        assert th.equal(value, second["state"][name]), name
    assert (first["first"] != second["first"]).any() and (first["batch"] != second["batch"]).any()
    assert first["calls"] == 24 and second["calls"] == 0
    assert first["logs"] and not second["logs"]
    loaded = TDMPC2.load(run["folder"] / "agent.zip")
    assert all(th.equal(value, first["state"][name]) for name, value in loaded.policy.state_dict().items())


def test_all_processes_go_on_from_the_first_one_s_checkpoint(run: dict[str, Any]) -> None:
    """They learn one agent further, with random numbers of their own."""
    first, second = (one["learned"] for one in run["found"])
    assert first["resumed_updates"] == second["resumed_updates"] == 6
    for name, value in first["resumed"].items():
        assert th.equal(value, second["resumed"][name]), name
    assert any((value != first["state"][name]).any() for name, value in first["resumed"].items())
    assert (first["resumed_rows"] != second["resumed_rows"]).any()


def test_what_does_not_work_together_is_refused(run: dict[str, Any]) -> None:
    for one in run["found"]:
        divided, counted = one["refused"]
        assert "batch_size=5 cannot be divided among 2 processes" in divided
        assert "different numbers of updates, 0 to 1" in counted


def test_a_killed_process_ends_the_run_with_a_sentence(run: dict[str, Any]) -> None:
    assert run["status"] == [1, 9]
    assert "Process 0 of 2 stops, because another one has ended" in run["messages"][0].splitlines()[-1]


def test_one_process_is_not_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # of some other launcher, without a rank
    tensors = [th.ones(2)]
    assert processes.size() == 1 and processes.rank() == 0 and processes.share(7) == processes.part(7) == 7
    assert processes.average(tensors) is tensors and processes.gather(tensors[0]) is tensors[0]
    assert processes.own_seed(5) == 5 and processes.own_seed(None) is None and processes.own_device("auto") == "auto"
