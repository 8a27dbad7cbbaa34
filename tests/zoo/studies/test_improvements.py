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
from sb3_mpc.zoo.studies.improvements import BASELINE, CANDIDATES, SCREENED, SCREENING, TASKS, candidate_of, method_of


@pytest.mark.parametrize("name", [name for name in [*CANDIDATES, *SCREENING] if name != BASELINE])
def test_candidate_changes_the_agent(name: str) -> None:
    candidate = candidate_of(name)
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


def test_unknown_candidate() -> None:
    with pytest.raises(ValueError, match='There is no candidate "five-steps": use small, pessimistic'):
        candidate_of("three-steps+five-steps")


def test_screening_is_balanced() -> None:
    on = [[name in combination.split("+") for name in SCREENED] for combination in SCREENING]
    columns = list(zip(*on, strict=True))
    assert [sum(column) for column in columns] == [4] * 7
    pairs = [(a, b) for i, a in enumerate(columns) for b in columns[:i]]
    assert [sum(x == y for x, y in zip(a, b, strict=True)) for a, b in pairs] == [4] * 21
    assert SCREENING[0] == BASELINE


def test_share_of_a_candidate_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = dict(zip(SCREENED, (40, 0, 0, -20, 0, 0, 0), strict=True))
    returns = {name: 100 + sum(gains.get(part, 0) for part in name.split("+")) for name in SCREENING}
    found = [row for name, value in returns.items() for row in rows(name, TASKS[0], 0, value)]
    write_rows(tmp_path / "results.csv", [*found, *rows(BASELINE, TASKS[1], 0, 1)])
    monkeypatch.setattr(sys, "argv", ["x", "effects", str(tmp_path / "results.csv"), "--output", str(tmp_path)])
    improvements.main()
    table = pd.read_csv(tmp_path / "screening.csv")
    assert table["candidate"].tolist() == SCREENED and set(table["task"]) == {TASKS[0]}
    assert (table["with"] - table["without"]).tolist() == list(gains.values())
    assert "| pessimistic | MRS.Q | +36% | +36.4% |" in capsys.readouterr().out


def test_only_what_both_have_is_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = TASKS[:3]
    found = [*rows(BASELINE, first, 0, 100), *rows(BASELINE, first, 1, 900), *rows(BASELINE, second, 0, 10)]
    found += [*rows("three-steps", first, 0, 150), *rows("three-steps", second, 0, 5)]
    found += [*rows("three-steps", third, 0, 999), *rows("constrained-policy", third, 0, 999)]
    found += rows("three-steps+normalised", first, 1, 890)
    write_rows(tmp_path / "results.csv", found)
    monkeypatch.setattr(sys, "argv", ["x", "table", str(tmp_path / "results.csv"), "--output", str(tmp_path / "out")])
    improvements.main()
    table = pd.read_csv(tmp_path / "out" / "improvements.csv")
    assert table[["candidate", "task", "seeds"]].to_numpy().tolist() == [
        ["three-steps", first, 1],
        ["three-steps", second, 1],
        ["three-steps+normalised", first, 1],
    ]
    assert table["difference"].tolist() == [50, -5, -10] and table["minutes"].tolist() == [1, 1, 1]
    assert "| three-steps | FlashSAC | 78 | 55 | +50 | -5 | 1.0 (1.0) | 1 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "improvements.png").exists()
    write_rows(tmp_path / "results.csv", rows(BASELINE, first, 0, 100))
    with pytest.raises(ValueError, match="No candidate has runs"):
        improvements.main()
