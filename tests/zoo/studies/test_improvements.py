"""The study on improvements: every candidate is what it says, and is compared with runs of its own tasks and seeds."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
import sb3_mpc
from sb3_mpc.zoo.benchmark import check_changes
from sb3_mpc.zoo.queue import COLUMNS, write_rows
from sb3_mpc.zoo.run_folder import plain
from sb3_mpc.zoo.studies import improvements
from sb3_mpc.zoo.studies.improvements import BASELINE, CANDIDATES, TASKS, method_of


@pytest.mark.parametrize("name", [name for name in CANDIDATES if name != BASELINE])
def test_candidate_changes_the_agent(name: str) -> None:
    candidate = CANDIDATES[name]
    check_changes(list(candidate.changes), name if candidate.changes else "")
    changes = {item.partition(":")[0]: plain(item.partition(":")[2]) for item in candidate.changes}
    changes.pop("normalize", None)  # of the environment
    make: Any = sb3_mpc.ALGORITHMS[candidate.algo]
    model = make("MlpPolicy", "Pendulum-v1", preset="small", device="cpu", **changes)
    assert all(getattr(model, key) == value for key, value in changes.items() if key != "policy_kwargs")
    assert model.policy.world_model.latent_dim == 64
    planner = model.policy.planner
    for key, value in changes.get("policy_kwargs", {}).get("planner_kwargs", {}).items():
        assert planner.num_kept == 6 if key == "kept_elites" else getattr(planner, key) == value


def test_runs_are_those_of_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(improvements, "zoo", lambda arguments: called.append(arguments) or 0)
    command = f"x run --folder {tmp_path} --only small three-steps constrained-policy --seeds 1 --tasks Hopper-v5"
    monkeypatch.setattr(sys, "argv", command.split())
    improvements.main()
    assert [call[call.index("--algo") + 1] for call in called] == ["tdmpc2", "tdmpc2", "tdmpc_square"]
    assert ["-params" in call for call in called] == [False, True, False]
    assert called[1][-4:] == ["--label", "three-steps", "-params", "n_steps:3"]


def rows(name: str, task: str, seed: int, last: float) -> list[dict[str, Any]]:
    """:return: two evaluations of a run"""
    label = dict(dict.fromkeys(COLUMNS, ""), suite="dmc6", method=method_of(name), task=task, seed=seed, success="")
    return [{**label, "frames": n, "return": last * n / 100, "train_cpu_s": 0.6 * n} for n in (50, 100)]


def test_only_what_both_have_is_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = TASKS[:3]
    found = [*rows(BASELINE, first, 0, 100), *rows(BASELINE, first, 1, 900), *rows(BASELINE, second, 0, 10)]
    found += [*rows("three-steps", first, 0, 150), *rows("three-steps", second, 0, 5)]
    found += [*rows("three-steps", third, 0, 999), *rows("constrained-policy", third, 0, 999)]
    write_rows(tmp_path / "results.csv", found)
    monkeypatch.setattr(sys, "argv", ["x", "table", str(tmp_path / "results.csv"), "--output", str(tmp_path / "out")])
    improvements.main()
    table = pd.read_csv(tmp_path / "out" / "improvements.csv")
    assert table[["candidate", "task", "seeds"]].to_numpy().tolist() == [
        ["three-steps", first, 1],
        ["three-steps", second, 1],
    ]
    assert table["difference"].tolist() == [50, -5] and table["minutes"].tolist() == [1, 1]
    assert "| three-steps | FlashSAC | 78 | 55 | +50 | -5 | 1.0 (1.0) | 1 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "improvements.png").exists()
    write_rows(tmp_path / "results.csv", rows(BASELINE, first, 0, 100))
    with pytest.raises(ValueError, match="No candidate has runs"):
        improvements.main()
