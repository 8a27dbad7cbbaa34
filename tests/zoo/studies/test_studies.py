"""The studies run from end to end: learning runs that can be interrupted, comparisons, their tables and figures."""

import csv
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from sb3_mpc import MBDPO, TDMPC2
from sb3_mpc.agents.agent_files import read_card
from sb3_mpc.agents.training_files import save_buffer
from sb3_mpc.zoo import queue
from sb3_mpc.zoo.studies import (
    comparison,
    diffusion,
    factored,
    factored_times,
    imitation,
    learning,
    offline_to_online,
    precision,
    pretraining,
    staggered,
)
from tests.support.agents import SMALL, SMALL_POLICY, make_agent

pytest.importorskip("dm_control")
pytestmark = pytest.mark.slow
TASK = "cartpole-swingup"
ID = f"dmc/{TASK}-v0"
UNUSED = ("policy", "n_timesteps", "n_envs")  # in a preset, by an agent without environment


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_learning_run_goes_on_and_is_evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gym.spec(f"dmc/{TASK}-v0"), "max_episode_steps", 10)
    settings: dict[str, Any] = {**SMALL, "learning_starts": 10, "policy_kwargs": SMALL_POLICY}
    monkeypatch.setattr(learning, "SETTINGS", settings)
    runs, output = tmp_path / "runs", tmp_path / "curve.csv"
    learning.train(TASK, 1, 20, 20, runs, compile=False)
    learning.train(TASK, 1, 40, 20, runs, compile=False)  # resumed
    assert sorted(learning.checkpoints(runs)) == [20, 40]
    # Of the 30 updates after the random steps, those that follow a checkpoint's last transition are not in it
    assert learning.TDMPC2.load(learning.checkpoints(runs)[40])._n_updates == 28
    for _ in range(2):  # the second time there is nothing left to do
        learning.evaluate(TASK, 1, runs, output, episodes=2)
    rows = read(output)
    assert [(row["task"], row["frames"], row["episodes"]) for row in rows] == [
        (f"dmc/{TASK}-v0", "40", "2"),
        (f"dmc/{TASK}-v0", "80", "2"),
    ]
    assert [int(row["length"]) for row in read(output.with_suffix(".train.csv"))] == [10] * 4


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """:return: settings for a run of 30 decisions in two environments, whose episodes end after ten"""
    for task in (TASK, "walker-walk"):
        monkeypatch.setattr(gym.spec(f"dmc/{task}-v0"), "max_episode_steps", 10)
    settings: dict[str, Any] = {**SMALL, "learning_starts": 10, "policy_kwargs": SMALL_POLICY, "gradient_steps": 1}
    return {**settings, "n_envs": 2, "n_timesteps": 30, "pretrain_gradient_steps": 2}


@pytest.mark.parametrize("method", comparison.METHODS)
def test_comparison(method: str, briefly: dict[str, Any], tmp_path: Path) -> None:
    model = comparison.train(method, ID, 1, 15, tmp_path / "comparison.csv", **briefly)
    assert model.num_timesteps == 30 and model.n_envs == 2
    rows = read(tmp_path / "comparison.csv")
    assert [(row["method"], row["decisions"], row["frames"]) for row in rows] == [
        (method, "16", "32"),
        (method, "30", "60"),
    ]
    assert all(0 <= float(row[name]) <= 10 for row in rows for name in ("return", "network", "mc_return"))
    comparison.plot(tmp_path / "comparison.csv", tmp_path)
    for name in ("comparison.png", "overestimation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_factored_studies(briefly: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(factored, "load_preset", lambda *args: {**SMALL, "distill_steps": 20, **dict.fromkeys(UNUSED)})
    monkeypatch.setattr(factored, "SAMPLES", (16, 8))
    monkeypatch.setattr(factored, "PERTURBATIONS", ("random", 0.5))
    monkeypatch.setattr(factored_times, "ACTIONS", {"reacher-three": 3})
    expert = comparison.train("tdmpc2", "dmc/walker-walk-v0", 1, 30, tmp_path / "comparison.csv", **briefly)
    comparison.save(expert, tmp_path, "dmc/walker-walk-v0")
    common = f"--expert {tmp_path} --episodes 1 --runs 1 --agent {tmp_path / 'agent.zip'} --folder {tmp_path}"
    for study in (*factored.STUDIES, "plot"):
        monkeypatch.setattr(sys, "argv", ["factored", study, *common.split()])
        factored.main()
    (trained,) = read(tmp_path / "factored-train.csv")
    assert (trained["decisions"], trained["distill_steps"]) == ("30", "20")
    assert -1 <= float(trained["rank_correlation"]) <= 1
    budget = read(tmp_path / "factored-budget.csv")
    assert [(row["iterations"], row["samples"]) for row in budget] == [("3", "16"), ("3", "8"), ("1", "16"), ("1", "8")]
    assert len(read(tmp_path / "factored-robustness.csv")) == 6 * 2
    assert all(float(row["student_ms"]) > 0 for row in read(tmp_path / "factored-times.csv"))
    assert (tmp_path / "factored.png").read_bytes().startswith(b"\x89PNG")


def test_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Seeded, and elites weighed sharply: some agents so small plan the bound of the action whatever the precision
    model = make_agent(TDMPC2, gym.make(f"dmc/{TASK}-v0"), temperature=50.0, seed=1).learn(12)
    monkeypatch.setattr(precision, "load", lambda *args, **kwargs: model)
    arguments = f"precision --states 2 --every 2 --seeds 3 --output {tmp_path / 'precision'}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    precision.main()
    rows = read(tmp_path / "precision.csv")
    assert len(rows) == 6 and any(float(row["bfloat16"]) > 0 for row in rows)
    assert any(float(row["other samples"]) > 0 for row in rows)
    assert (tmp_path / "precision.png").read_bytes().startswith(b"\x89PNG")


def test_returns_in_both_precisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gym.spec(ID), "max_episode_steps", 10)
    model = make_agent(TDMPC2, gym.make(ID)).learn(12)
    monkeypatch.setattr(precision, "load", lambda *args, **kwargs: model)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", f"precision --env {ID} --episodes 2 --output {tmp_path / 'precision'}".split())
        precision.main()
    rows = read(tmp_path / "precision-returns.csv")
    assert rows[0] == rows[1] and rows[0]["task"] == ID
    assert 0 <= float(rows[0]["bfloat16"]) <= 10 >= float(rows[0]["float32"]) >= 0


def test_diffusion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gym.spec(ID), "max_episode_steps", 10)
    model = make_agent(MBDPO, gym.make(ID), iterations=3).learn(12)
    energy = model.planner.energy_mean.clone()
    monkeypatch.setattr(diffusion, "load", lambda *args, **kwargs: model)
    arguments = f"diffusion --env {ID} --samples 16 8 --steps 2 1 --episodes 1 --runs 1 --output {tmp_path / 'x.csv'}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    diffusion.main()
    rows = read(tmp_path / "x.csv")
    assert [(row["samples"], row["steps"]) for row in rows] == [("16", "3"), ("8", "3"), ("16", "2"), ("16", "1")]
    assert all(0 <= float(row["return"]) <= 10 and float(row["ms"]) > 0 for row in rows)
    assert (model.planner.num_samples, model.planner.num_elites, model.planner.iterations) == (16, 4, 1)
    assert (model.planner.energy_mean == energy).all()
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_data_of_trainings(tmp_path: Path) -> None:
    """The transitions of finished runs, by the names of their tasks, without the task that is to be finetuned."""
    tasks = ["dmc/reacher-easy-v0", "dmc/walker-walk-v0", "dmc/cup-catch-v0", "dmc/walker-run-v0"]
    for i, task in enumerate(tasks):
        run = queue.add(tmp_path / "queue", str(i), dict(task=task, seed=0, order=i))
        if i != 2:
            (run.folder / "result.json").write_text("{}")
        model = make_agent(TDMPC2, task, learning_starts=10, seed=0)
        model.learn(8)
        save_buffer(model, run.folder / "replay_buffer.npz")
    found = list(pretraining.of_trainings(tmp_path / "queue", tasks[3]))
    assert [[task.name for task in data.tasks] for data in found] == [[task] for task in tasks[:2]]
    assert [data.rows for data in found] == [8, 8]


def test_offline_to_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a buffer, first without acting, and from scratch: returns from no decision on."""
    monkeypatch.setattr(gym.spec(ID), "max_episode_steps", 10)
    settings: dict[str, Any] = {**SMALL, "learning_starts": 10, "policy_kwargs": SMALL_POLICY, "n_envs": 2}
    monkeypatch.setattr(comparison, "load_preset", lambda *args: dict(settings, policy="MlpPolicy", n_timesteps=1))
    monkeypatch.setattr(offline_to_online, "EVERY", 10)
    model = make_agent(TDMPC2, ID, learning_starts=10, seed=0)
    model.learn(15)
    save_buffer(model, tmp_path / "buffer.npz")
    for arguments in (["train", "--buffer", str(tmp_path / "buffer.npz")], ["train"], ["plot"]):
        common = ["--task", ID, "--updates", "3", "--decisions", "20", "--folder", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["offline_to_online", *arguments, *common])
        offline_to_online.main()
    rows = read(tmp_path / "offline-to-online.csv")
    found = [(row["transitions"], row["updates"], row["decisions"]) for row in rows]
    assert found == [(*start, n) for start in (("15", "3"), ("0", "0")) for n in ("0", "10", "20")]
    assert (tmp_path / "offline-to-online.png").read_bytes().startswith(b"\x89PNG")


def test_pretraining(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Data of two tasks, an agent from them alone, and a third task from that agent and from scratch."""
    tasks, new = ["dmc/reacher-easy-v0", "dmc/walker-walk-v0"], "dmc/walker-run-v0"
    for task in (*tasks, new):
        monkeypatch.setattr(gym.spec(task), "max_episode_steps", 10)
    for name, value in dict(TASKS=tasks, TRANSITIONS=20, EPISODES=2, DECISIONS=40, EVERY=20).items():
        monkeypatch.setattr(pretraining, name, value)
    tiny = dict(latent_dim=16, enc_dim=16, net_arch=[16])
    monkeypatch.setattr(pretraining, "SIZES", dict(tiny=tiny, medium=tiny))
    settings: dict[str, Any] = {**SMALL, "learning_starts": 10, "policy_kwargs": SMALL_POLICY, "n_envs": 2}
    monkeypatch.setattr(
        pretraining, "load_preset", lambda *args: dict(settings, policy="MlpPolicy", n_timesteps=1, gradient_steps=2)
    )
    common = f"--data {tmp_path / 'data'} --folder {tmp_path} --checkpoints {tmp_path} --updates 3 --episodes 1"
    for study in ("data", "pretrain", "finetune", "scratch", "plot", "publish"):
        monkeypatch.setattr(sys, "argv", ["pretraining", study, "--task", new, *common.split()])
        pretraining.main()
    scores, curves = (read(tmp_path / f"pretraining-{name}.csv") for name in ("scores", "curves"))
    assert [row["task"] for row in scores] == tasks and all(0 <= float(row["score"]) <= 1 for row in scores)
    found = [(row["start"], row["decisions"]) for row in curves]
    assert found == [(start, str(n)) for start in ("finetune", "scratch") for n in (0, 20, 40)]
    card = read_card(tmp_path / "tdmpc2-several-tasks-walker-run.safetensors")
    assert list(card["evaluation"])[:3] == [f"score {task}" for task in (*tasks, new)] and card["steps"]["frames"] == 80
    assert (tmp_path / "pretraining.png").read_bytes().startswith(b"\x89PNG")


def test_several_tasks_by_acting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An agent learns two tasks by acting in both, and is the start of a third one."""
    tasks, new = ["dmc/reacher-easy-v0", "dmc/walker-walk-v0"], "dmc/walker-run-v0"
    for task in (*tasks, new):
        monkeypatch.setattr(gym.spec(task), "max_episode_steps", 10)
    for name, value in dict(EPISODES=2, DECISIONS=20, EVERY=20).items():
        monkeypatch.setattr(pretraining, name, value)
    monkeypatch.setattr(pretraining, "SIZES", dict(medium=dict(latent_dim=16, enc_dim=16, net_arch=[16])))
    start = dict(learning_starts=20, pretrain_gradient_steps=5)
    monkeypatch.setattr(pretraining, "START", start)
    common = f"--data {tmp_path} --folder {tmp_path} --checkpoints {tmp_path} --episodes 1 --decisions 20"
    for study in ("act", "finetune", "publish"):
        command = ["pretraining", study, "--tasks", *tasks, "--params", "n_steps:2", "--task", new, *common.split()]
        monkeypatch.setattr(sys, "argv", command)
        pretraining.main()
    scores, curves = (read(tmp_path / f"pretraining-{name}.csv") for name in ("scores", "curves"))
    assert [row["task"] for row in scores] == tasks and all(0 <= float(row["score"]) <= 1 for row in scores)
    # Of 40 decisions 20 come first, and each of the others has an update
    assert {(row["params"], row["transitions"], row["updates"]) for row in scores} == {("acting n_steps:2", "40", "25")}
    assert [(row["start"], row["transitions"], row["decisions"]) for row in curves] == [
        ("finetune", "40", "0"),
        ("finetune", "40", "20"),
    ]
    card = read_card(tmp_path / "tdmpc2-several-tasks.safetensors")
    assert list(card["evaluation"])[:2] == [f"score {task}" for task in tasks]


def test_imitation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gym.spec(ID), "max_episode_steps", 10)
    monkeypatch.setattr(imitation, "RESULTS", tmp_path)
    monkeypatch.setattr(imitation.zoo, "load", lambda algo, task, env, device: make_agent(TDMPC2, env))
    command = f"imitation {ID} --decisions 40 --updates 3 --episodes 1"
    monkeypatch.setattr(sys, "argv", command.split())
    imitation.main()
    (row,) = read(tmp_path / "imitation.csv")
    assert row["task"] == ID and row["decisions"] == "40"
    assert all(0 <= float(row[name]) <= 10 for name in ("planner", "network", "imitating"))
    assert all(float(row[name]) > 0 for name in ("planner_ms", "network_ms"))


def test_staggered_episodes_beside_episodes_that_end_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"policy": "MlpPolicy", "n_timesteps": 1, "n_envs": 2, "policy_kwargs": SMALL_POLICY, **SMALL}
    monkeypatch.setattr(staggered, "load_preset", lambda *args: {**small, "learning_starts": 20})
    monkeypatch.setattr(staggered, "EPISODES", 2)
    monkeypatch.setattr(sys, "argv", ["staggered", "Pendulum-v1", "--decisions", "40", "--folder", str(tmp_path)])
    staggered.main()
    rows = read(tmp_path / staggered.FILE)
    assert [(row["staggered"], row["at"]) for row in rows] == [
        ("True", "20"),
        ("True", "40"),
        ("False", "20"),
        ("False", "40"),
    ]
