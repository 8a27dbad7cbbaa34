"""``python -m sb3_mpc.zoo gpu``, tried on a CPU: every part comes through, and a failure takes nothing else along."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc.zoo import gpu, gpu_checks
from sb3_mpc.zoo.__main__ import main
from tests.support.zoo_runs import crash

TITLES = ["machine", "equal, BMPC, eager", "equal, BMPC, compiled graph", "speed, TDMPC2, reduce-overhead"]
TITLES += ["speed of images, TDMPC2, auto", "training", "tests"]


def run(folder: Path, *only: str) -> tuple[dict[str, Any], str]:
    """:return: the report as data and as a page"""
    assert main(["gpu", "--device", "cpu", "--small", "--folder", str(folder), "--only", *only]) == 0
    return json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


@pytest.mark.slow
def test_every_kind_of_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "TESTS", ("tests/test_public_files.py",))
    report, page = run(tmp_path, *TITLES)
    results = report["results"]
    assert list(results) == TITLES and not [found for found in results.values() if "error" in found]
    assert report["machine"]["torch"] == th.__version__
    same = results["equal, BMPC, compiled graph"]
    assert same["equal"] and same["differences"]["parameters"] < 1e-5 and same["differences"]["returns"] < 1e-5
    assert results["speed, TDMPC2, reduce-overhead"]["plan of 16"]["median_ms"] > 0
    assert [point["decisions"] for point in results["training"]["curve"]] == list(range(6, 61, 6))
    assert results["tests"]["tests"] > 0 and not results["tests"]["failed"]
    for line in ("| BMPC, compiled graph | True |", "| of images, TDMPC2, auto |", "| 60 |"):
        assert line in page
    assert (tmp_path / "curve.png").exists()


def test_a_part_that_fails_is_said_and_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail(work: Any, write: Any) -> None:
        done.append(work.mode)
        write(dict(plan=1))
        raise RuntimeError("CUDA error:\nan illegal memory access")

    monkeypatch.setattr(gpu_checks, "speed", fail)
    for _ in range(2):
        report, page = run(tmp_path, "machine", "speed, TDMPC2, eager", "speed, TDMPC2, graph")
        assert list(report["results"]) == ["machine", "speed, TDMPC2, eager", "speed, TDMPC2, graph"]
        failed = report["results"]["speed, TDMPC2, graph"]
        assert failed == dict(plan=1, error="RuntimeError: CUDA error: an illegal memory access")
        assert "- speed, TDMPC2, eager: RuntimeError: CUDA error: an illegal memory access" in page
    assert done == ["eager", "graph"] * 2


@pytest.mark.slow
def test_a_process_that_crashes_leaves_what_it_has_found(tmp_path: Path) -> None:
    part = gpu.Part("crash", crash, gpu_checks.Work("cpu", tmp_path))
    gpu.do_apart(part, str(tmp_path / "part.json"), minutes=5)
    found = json.loads((tmp_path / "part.json").read_text())
    assert found == dict(begun=True, error="the process ended with status 3")


def test_dry_run_names_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for method in ("TDMPC2", "TDMPCSquare", "BMPC", "MBDPO", "FacTDMPC"):
        assert [line for line in lines if line.startswith(f"equal, {method}, compiled graph")]
    assert lines[0].startswith("machine") and lines[-1] == "tests (at most 180 minutes)"


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    assert "finds no GPU" in capsys.readouterr().err


def test_differences_are_relative_and_unequal_shapes_are_not_equal(tmp_path: Path) -> None:
    base = dict(losses=np.array([1.0, 2.0]), returns=np.array([10.0]))
    np.savez(tmp_path / "TDMPC2-eager.npz", **base)
    np.savez(tmp_path / "TDMPC2-graph.npz", losses=base["losses"], returns=np.array([11.0]))
    np.savez(tmp_path / "TDMPC2-compiled.npz", losses=np.ones(3), returns=base["returns"])
    assert gpu.differences(tmp_path, "TDMPC2", "graph") == dict(differences=dict(losses=0.0, returns=0.1), equal=False)
    assert not gpu.differences(tmp_path, "TDMPC2", "compiled")["equal"]
    assert gpu.differences(tmp_path, "TDMPC2", "auto") == {}
