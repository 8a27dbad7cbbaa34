"""``doctor`` reports what there is and what follows, and comes through where things are missing."""

import json
import os
import shutil
import warnings
from typing import Any

import gymnasium as gym
import pytest
import torch as th

from sb3_mpc.common.execution import acceleration
from sb3_mpc.envs import SUITES
from sb3_mpc.zoo import doctor
from sb3_mpc.zoo.__main__ import main

PARTS = ["Software", "Processor", "Compiler", "GPU", "Memory", "OpenGL"]


def report_of(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """:return: the report, which is all that the command prints"""
    assert main(["doctor", "--json", *options]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of two plans and updates, no compiler tried."""
    monkeypatch.setattr(doctor, "seconds_of", lambda function, limit: function() and None or 0.5)
    monkeypatch.setattr(acceleration, "has_compiler", lambda: False)


def test_quick_report_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [*PARTS, "Suites"]
    assert f"  torch: {th.__version__}" in lines and "  threads of pytorch: 1" in lines
    assert not [line for line in lines if "error" in line]


def test_quick_report_says_how_to_install_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    found = report_of(capsys, "--quick")["Suites"]
    for suite in SUITES.values():
        assert found[suite.title] == (suite.version or f"not installed: {suite.install}")
    assert 'pip install -e ".[myosuite]" in your clone' in SUITES["myosuite"].install


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_expected_times(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SUITES", {})
    report = report_of(capsys, "--device", "cpu")
    best, small, cpu, paper = (report[f"100,000 decisions with {name}"] for name in doctor.MEASURED.values())
    assert not [part for part in report.values() if "error" in part]
    assert (small["environments"], small["updates"], small["seconds"]) == (10, 100_000, 55_000)
    assert (cpu["environments"], cpu["updates"], cpu["seconds"]) == (1, 100_000, 100_000)
    assert small["time"].startswith("about 15 hours, not compiled, without")
    millions = [round(part["parameters"] / 1e6, 1) for part in (best, small, cpu, paper)]
    assert millions == [0.2, 0.2, 1.2, 5.0]
    assert small["chosen_for_a_run_of_this_length"] == "plans in float32, updates in float32, not compiled, 1 thread"


@pytest.mark.slow
def test_suites_are_tried(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURED", {})
    monkeypatch.setattr(acceleration, "has_compiler", lambda: True)
    found = report_of(capsys)["Suites"]["DMControl"]
    suite = SUITES["dmc"]
    assert found == f"not installed: {suite.install}" if suite.version is None else "decisions/s" in found


def test_nothing_that_is_missing_stops_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("there is\nno such file")

    for name in ("sched_getaffinity", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(th.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    monkeypatch.setattr(doctor, "set_headless_backend", fail)
    monkeypatch.setattr(doctor, "package_versions", fail)
    monkeypatch.setattr(doctor, "TDMPC2", fail)
    monkeypatch.setattr(acceleration, "has_compiler", lambda: warnings.warn("it\nfails", stacklevel=1))
    monkeypatch.setattr(gym, "make", fail)
    report = report_of(capsys)
    assert list(report) == [*PARTS, *(f"100,000 decisions with {name}" for name in doctor.MEASURED.values()), "Suites"]
    assert report["Software"] == report["OpenGL"] == {"error": "OSError: there is no such file"}
    assert report["Processor"]["cores"] > 0 and report["Processor"]["units"] == []
    assert "not found" in report["Compiler"]["path"] and report["Compiler"]["warnings"] == ["it fails"]
    assert report["Memory"]["available_GB"] is None and "GB" in report["Memory"]["default_buffer_of_24_numbers"]
    assert all("error" in report[f"100,000 decisions with {name}"] for name in doctor.MEASURED.values())


def test_busy_machine_and_small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1_000.0, 0.0, 0.0), raising=False)
    assert "OMP_NUM_THREADS=1" in doctor.processor()["advice"]
    monkeypatch.setattr(doctor, "available_memory", lambda: 10**9)
    images = doctor.memory()["default_buffer_of_three_64x64_images"]
    assert "too much, buffer_size=21," in images


def test_gpus_are_named_with_what_was_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    about = type("Properties", (), dict(name="A GPU", major=8, minor=6, total_memory=24 * 10**9))
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(th.cuda, "get_device_properties", lambda index: about)
    found = doctor.gpu()
    assert found["cuda:0"] == "A GPU, 24 GB, compute capability 8.6" and "stand-in" in found["verified"]


def test_values_in_words() -> None:
    values: list[Any] = [1, True, None, [], ["a", False], dict(a=1)]
    assert [doctor.text(value) for value in values] == ["1", "yes", "unknown", "none", "a, no", "a 1"]


def test_measured_calls_without_the_first() -> None:
    calls: list[int] = []
    assert doctor.seconds_of(lambda: calls.append(1), 0.0) >= 0 and len(calls) == 2
