"""Command `report`: what is told of measured runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra extra")
from sb3_mpc.zoo import queue
from sb3_mpc.zoo.__main__ import main
from sb3_mpc.zoo.aggregate import aggregate_curves
from tests.support.zoo_runs import run


def evaluations(method: str, task: str, seed: int, last: float, seconds: float, suite: str = "dmc32") -> list[dict]:
    """:return: ten evaluations of a run whose return grows evenly"""
    label = dict(suite=suite, method=method, task=task, seed=seed, success=last / 1000, commit="c0ffee", cpu="a CPU")
    return [
        {**label, "frames": 10_000 * i, "return": last * i / 10, "train_cpu_s": seconds * i / 10} for i in range(1, 11)
    ]


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for seed in (0, 1):
        rows += evaluations("tdmpc2 (small)", "dmc/walker-walk-v0", seed, 900 + 20 * seed, 600)
        rows += evaluations("tdmpc2 (small)", "dmc/cheetah-run-v0", seed, 400, 600)
        rows += evaluations("sac", "dmc/walker-walk-v0", seed, 600, 300)
        rows += evaluations("sac", "dmc/cheetah-run-v0", seed, 300, 300)
    rows += evaluations("tdmpc2 (small)", "dmc/cup-catch-v0", 0, 100, 600)  # SAC is not there yet
    rows += evaluations("sac", "metaworld/reach-v3", 0, 300, 300, "metaworld10")
    rows += evaluations("sac", "Hopper-v5", 0, 300, 300, "gym6") + evaluations("bmpc", "Hopper-v5", 0, 200, 300, "gym6")
    queue.write_rows(tmp_path / "results.csv", rows)
    output = tmp_path / "report"
    run("report", tmp_path, "--output", output)
    assert capsys.readouterr().out == f"{output / 'report.md'}\n"
    text = (output / "report.md").read_text()
    assert (
        "13 runs" not in text and "12 runs, seeds of a task: 1 to 2." in text and "a CPU" in text and "c0ffee" in text
    )
    assert "| dmc/walker-walk-v0 | 100,000 | **910 ± 10** | 600 ± 0 | 962 ± 10 | 708 ± 167 | 962 | 10.0 | 5.0 |" in text
    assert "| sac | 450 (450, 450) | 0.450 (0.450, 0.450) | 4 |" in text and "single runs" not in text
    # After five minutes the agents have half of their return
    assert "SAC is ahead of tdmpc2 (small) at equal frames on 0 of 2 tasks.\n" in text
    assert "at equal minutes on 2 of 2 tasks: dmc/walker-walk-v0, dmc/cheetah-run-v0.\n" in text
    assert "SAC is ahead of bmpc at equal frames on 1 of 1 tasks: Hopper-v5." in text
    assert "| metaworld/reach-v3 | 100,000 | **30** |" in text
    (ours, sac, *published) = pd.read_csv(output / "dmc32-aggregate.csv").to_dict("records")
    assert (ours["method"], ours["tasks"], ours["runs"], ours["mean"]) == ("tdmpc2 (small)", 2, 4, 0.655)
    assert (
        sac["mean"] == 0.45
        and [row["method"] for row in published]
        == [
            "TD-MPC2, published",
            "SAC, published",
            "BMPC, published mean",
        ][: len(published)]
    )
    for row in (ours, sac, *published):
        assert row["mean_low"] <= row["mean"] <= row["mean_high"]
    curves = pd.read_csv(output / "dmc32-curves.csv")
    assert set(curves["frames"][curves["method"].str.contains("published")]) == {100_000}  # no line from zero
    minutes = curves[(curves["method"] == "sac") & curves["minutes"].notna()]["minutes"]
    assert (minutes.min(), minutes.max()) == (0.5, 5.0)
    assert "gym6" in text and not (output / "gym6-aggregate.csv").exists()  # no common scale
    for name in ("dmc32.png", "dmc32-profiles.png", "dmc32-frames.png", "dmc32-time.png", "gym6-frames.png"):
        assert (output / name).stat().st_size > 5_000 and f"({name})" in text


def test_report_without_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "results.csv" in capsys.readouterr().err
    queue.collect(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "no run is finished" in capsys.readouterr().err


def test_curves_over_tasks_begin_and_end_with_all_runs() -> None:
    rows = [
        dict(method="a", task=task, seed=str(seed), minutes=start + i, **{"return": 100.0 * task_return})
        for task, task_return in (("t", 1), ("u", 3))
        for seed, start in ((0, 1.0), (1, 1.5))
        for i in range(4)
    ]
    table = pd.DataFrame(rows)
    found = aggregate_curves(table, "minutes", 1_000.0)
    # Quicker runs keep what they have
    assert (found["minutes"].min(), found["minutes"].max()) == (1.5, 4.5)
    np.testing.assert_allclose(found[["iqm", "mean", "mean_low", "mean_high"]], 0.2)
    found = aggregate_curves(table.rename(columns=dict(minutes="frames")), "frames", 1_000.0)
    assert found["frames"].max() == 4.0  # what the others would reach is not known


def test_single_runs_have_no_interval(tmp_path: Path) -> None:
    rows = [
        *evaluations("sac", "dmc/walker-walk-v0", 0, 600, 300),
        *evaluations("sac", "dmc/cup-catch-v0", 0, 300, 300),
    ]
    queue.write_rows(tmp_path / "results.csv", rows)
    run("report", tmp_path, "--output", tmp_path, "--no-published")
    text = (tmp_path / "report.md").read_text()
    assert (
        "| sac | 450 | 0.450 | 2 |" in text
        and "intervals over seeds, which single runs of the tasks do not have." in text
    )
