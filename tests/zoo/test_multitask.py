"""Commands for agents of several tasks: ``evaluate --tasks`` and ``finetune``."""

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")

from sb3_mpc import TDMPC2
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.envs import make_multitask
from sb3_mpc.zoo import multitask
from sb3_mpc.zoo.__main__ import main
from tests.support.agents import make_agent

TASKS = ["Pendulum-v1", "InvertedPendulum-v5"]  # three and four observations, one action each


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: file of an agent of two tasks"""
    env = make_multitask(TASKS, seed=0)
    path = tmp_path_factory.mktemp("agents") / "agent.safetensors"
    model = make_agent(TDMPC2, env, "MultitaskPolicy", policy_kwargs=dict(task_dim=4), episodic=False).learn(20)
    return save_agent(model, path)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_score_of_each_task(agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "scores.csv"
    options = ["--episodes", "2", "--output", str(output), "--actor"]
    assert main(["evaluate", str(agent), "--tasks", *TASKS[::-1], *options]) == 0
    found = rows(output)
    assert [row["task"] for row in found] == TASKS[::-1] and output.with_suffix(".png").stat().st_size > 1000
    for row in found:
        assert float(row["score"]) == pytest.approx(float(row["mean"]) / 10) and row["success"] == ""
    text = capsys.readouterr().out
    assert "mean score" in text and "Pendulum-v1" in text and text.count("network policy") == 3
    # the index of the task is that in the agent
    model = load_agent(agent)
    (again,) = multitask.evaluate_tasks(model, [TASKS[1]], episodes=2)
    assert again.mean == pytest.approx(float(found[0]["mean"])) and again.network is None
    env = multitask.make_task(model, TASKS[1], 1, 2)
    env.seed(0)
    assert multitask.measure(model.actor, env, 2)["mean"] / 10 == pytest.approx(float(found[0]["network"]))


@pytest.mark.parametrize(
    ("preset", "n_envs", "decisions", "batch"),
    [("finetune", 1, 10_000, 256), ("o2o", 4, 40_000, 256), ("small", 10, 10_000, 64)],
)
def test_presets_of_finetune(agent: Path, preset: str, n_envs: int, decisions: int, batch: int) -> None:
    """Updates for each decision are those of the preset, however many environments there are."""
    model = load_agent(agent)
    multitask.add_task(model, "InvertedDoublePendulum-v5", "InvertedPendulum", n_envs)
    assert multitask.use_preset(model, preset) == decisions
    assert (model.train_freq.frequency, model.gradient_steps, model.batch_size) == (1, n_envs, batch)  # type: ignore[union-attr]


def test_scores_are_of_the_paper_s_scale() -> None:
    assert multitask.score(dict(mean=734.0)) == pytest.approx(73.4)
    assert multitask.score(dict(mean=900.0, success=0.4)) == pytest.approx(40.0)


def test_finetune(agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task with more observations; the file that it writes can be evaluated, and finetuned further."""
    new = "InvertedDoublePendulum-v5"  # nine observations
    options = ["--env", new, "--like", "InvertedPendulum", "-n", "24", "--eval-freq", "12", "--episodes", "1"]
    options += ["--preset", "finetune"]
    assert main(["finetune", str(agent), *options, "--folder", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "observations of 9 numbers in place of 4" in text and f"{new} as task 2" in text
    folder = tmp_path / f"tdmpc2-{new}_0"
    found = rows(folder / "evaluations.csv")
    assert [int(row["decisions"]) for row in found] == [0, 12, 24]
    child, parent = load_agent(folder / "agent"), load_agent(agent)
    assert child.policy.task_names == [*TASKS, new] and child._n_updates == parent._n_updates + 24  # type: ignore[attr-defined]
    assert (
        main(
            [
                "evaluate",
                str(folder / "agent.safetensors"),
                "--tasks",
                new,
                "--episodes",
                "1",
                "--output",
                str(tmp_path / "t.csv"),
            ]
        )
        == 0
    )
    assert main(["finetune", str(folder), "--env", new, "--like", "0"]) == 1
    assert "would not be held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "AGENT", "--tasks", "mt30"], "no task 'dmc/walker-stand-v0'"),
        (["evaluate", "AGENT", "--tasks", "Pendulum-v1", "Pendulum-v1"], "Pendulum-v1 is there twice"),
        (["evaluate", "missing.safetensors", "--tasks", "mt30"], "no file missing.safetensors"),
        (["finetune", "AGENT", "--env", "Pendulum-v1"], "would not be held out"),
        (["finetune", "AGENT", "--env", "InvertedDoublePendulum-v5"], "--like: Pendulum, InvertedPendulum"),
        (["finetune", "AGENT", "--env", "InvertedDoublePendulum-v5", "--like", "walker-walk"], "no task 'walker-walk'"),
        (["finetune", "AGENT", "--env", "dmc/walker-run-v0"], "no task 'dmc/walker-walk-v0'"),
    ],
)
def test_messages(agent: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main([str(agent) if word == "AGENT" else word for word in arguments]) == 1
    assert words in capsys.readouterr().err


def test_agents_of_one_task_have_no_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path: Any = save_agent(make_agent(TDMPC2, "Pendulum-v1"), tmp_path / "one")
    assert main(["evaluate", str(path), "--tasks", "Pendulum-v1"]) == 1
    assert "has one task" in capsys.readouterr().err
