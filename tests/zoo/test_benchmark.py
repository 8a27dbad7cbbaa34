"""``bench`` measures plans, updates and whole runs, and says on what machine."""

import json
import sys
from pathlib import Path

import pytest

from sb3_mpc.zoo import __main__ as command_line


@pytest.mark.slow
def test_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench --model-size 1 --obs 3 --act 2 --n-envs 1 2 --modes eager --repeats 1 --device cpu --output"
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments.split(), str(tmp_path / "bench.json")])
    command_line.main()
    report = json.loads((tmp_path / "bench.json").read_text())
    (result,) = report["results"]
    assert report["machine"]["torch"] and report["settings"]["model_size"] == 1
    assert result["mode"] == "eager" and set(result["plan"]) == {"1", "2"}
    assert result["plan"]["1"]["median_ms"] > 0 < result["update"]["median_ms"]
    assert result["decisions_per_s"]["zero-cost"] > 0 and result["peak_rss_mb"] > 100
    output = capsys.readouterr().out
    assert "plan, 2 environments (median / p95)" in output and "decisions/s" in output
