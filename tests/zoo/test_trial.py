"""Command `benchmark`: runs are measured, killed and continued, and it is told what will be done and what was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
from sb3_mpc import FacTDMPC
from sb3_mpc.agents.agent_files import load_agent, read_card
from sb3_mpc.zoo import benchmark, queue, trial
from sb3_mpc.zoo.__main__ import main
from sb3_mpc.zoo.queue import Run
from sb3_mpc.zoo.tasks import SUITES
from tests.support.zoo_runs import TINY, run

MEASURED = ("frames", "decisions", "return", "return_std", "success")


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 10)


def tiny_run(folder: Path, name: str, algo: str = "tdmpc2", **more: Any) -> Run:
    """:return: a run of 60 decisions in a queue"""
    common = dict(frames=60, eval_frames=20, episodes=2, threads=1, device="cpu", save_data=False, order=0)
    common |= dict(hyperparams=TINY if algo != "sac" else ["learning_starts:20", "batch_size:8"]) | more
    return queue.add(folder, name, trial.settings_of("mine", algo, "", "Pendulum-v1", 3, **common))


def test_run_that_dies_continues_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tiny_run(tmp_path, "whole"), tiny_run(tmp_path, "killed")
    run("benchmark", "--nice", 0, "--run", whole.folder)
    evaluate = trial.MeasuredEvaluation._evaluate

    def die(self: trial.MeasuredEvaluation) -> None:
        if self.num_timesteps >= 40:
            raise MemoryError("killed")
        evaluate(self)

    monkeypatch.setattr(trial.MeasuredEvaluation, "_evaluate", die)
    assert main(["benchmark", "--nice", "0", "--run", str(killed.folder)]) == 1
    assert [int(row["frames"]) for row in killed.rows] == [20] and not killed.finished
    assert list(killed.folder.glob("train/*/*/checkpoints/step_20"))
    monkeypatch.setattr(trial.MeasuredEvaluation, "_evaluate", evaluate)
    run("benchmark", "--nice", 0, "--run", killed.folder)
    assert [int(row["frames"]) for row in killed.rows] == [20, 40, 60]
    for ours, expected in zip(killed.rows, whole.rows, strict=True):
        assert [ours[name] for name in MEASURED] == [expected[name] for name in MEASURED]
    assert [row["resumed"] for row in killed.rows] == ["0", "1", "1"]
    assert not list(killed.folder.glob("train/*/*/checkpoints")) and not list(
        killed.folder.glob("train/*/*/*.safetensors")
    )
    card = read_card(killed.folder / "agent.safetensors")
    assert card["steps"] == dict(decisions=60, frames=60) and card["environment"]["id"] == "Pendulum-v1"
    times = [float(row["train_cpu_s"]) for row in killed.rows]
    assert times == sorted(times) and times[0] > 0 and float(killed.rows[-1]["eval_cpu_s"]) > 0
    before = (killed.folder / "rows.csv").stat().st_mtime_ns
    run("benchmark", "--nice", 0, "--run", killed.folder)  # nothing is left to do
    assert (killed.folder / "rows.csv").stat().st_mtime_ns == before


def test_sac_is_measured_likewise_and_data_are_kept(tmp_path: Path) -> None:
    sac = tiny_run(tmp_path, "sac", "sac", save_data=True)
    run("benchmark", "--nice", 0, "--run", sac.folder)
    assert [int(row["frames"]) for row in sac.rows] == [20, 40, 60]
    assert (sac.folder / "agent.npz").exists() and (sac.folder / "replay_buffer.npz").exists()
    assert json.loads((sac.folder / "result.json").read_text())["machine"]["threads"] >= 1


def test_last_evaluation_is_that_of_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = dict(hyperparams=[*TINY, "distill_steps:3"], frames=40)
    whole, killed = (tiny_run(tmp_path, name, "fac_tdmpc", **more) for name in ("whole", "killed"))
    run("benchmark", "--nice", 0, "--run", whole.folder)
    student = load_agent(whole.folder / "agent.safetensors")
    assert isinstance(student, FacTDMPC) and student._distilled
    expert = tiny_run(tmp_path, "expert", "fac_tdmpc", hyperparams=[*TINY, "distill_steps:0"], frames=40)
    run("benchmark", "--nice", 0, "--run", expert.folder)
    first, last = ([row["return"] for row in rows] for rows in zip(whole.rows, expert.rows, strict=True))
    assert first[0] == first[1] and last[0] != last[1]
    update = FacTDMPC.distill_update

    def die(self: FacTDMPC, *args: Any) -> Any:
        if self._student_updates == 1:
            raise MemoryError("killed")
        return update(self, *args)

    monkeypatch.setattr(FacTDMPC, "distill_update", die)
    assert main(["benchmark", "--nice", "0", "--run", str(killed.folder)]) == 1
    assert [int(row["frames"]) for row in killed.rows] == [20] and not killed.finished
    monkeypatch.setattr(FacTDMPC, "distill_update", update)
    run("benchmark", "--nice", 0, "--run", killed.folder)
    for ours, expected in zip(killed.rows, whole.rows, strict=True):
        assert [ours[name] for name in MEASURED] == [expected[name] for name in MEASURED]


def test_changed_settings_have_a_name(tmp_path: Path) -> None:
    options = (
        f"benchmark --tasks Pendulum-v1 --preset small --frames 30 --eval-frames 30 --episodes 1 --folder {tmp_path}"
    )
    changes = ["policy_kwargs:dict(planner_class='ImprovedPlanner', planner_kwargs=dict(kept_elites=0.5))"]
    changes += ["learning_starts:20", "pretrain_gradient_steps:1", "gradient_steps:1"]
    run(*options.split(), "--nice", 0, "--label", "kept", "-params", *changes)
    found = Run(tmp_path / "runs" / "tdmpc2-small-kept-Pendulum-v1-0")
    assert [row["method"] for row in found.rows] == ["tdmpc2 (small, kept)"]
    kwargs = read_card(found.folder / "agent.safetensors")["arguments"]["policy_kwargs"]
    # Those of the preset stay, as in the constructors
    assert kwargs["latent_dim"] == 64 and kwargs["planner_kwargs"] == dict(kept_elites=0.5)


def test_held_run_is_left_alone(tmp_path: Path) -> None:
    one = tiny_run(tmp_path, "one")
    with queue.holding(one.folder / "lock") as free, pytest.raises(SystemExit) as ended:
        assert free
        main(["benchmark", "--nice", "0", "--run", str(one.folder)])
    assert ended.value.code == queue.HELD and not (one.folder / "train").exists()


def test_plan_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "rehearse", lambda settings: 0.036)
    options = f"benchmark --tasks Pendulum-v1 dmc/cup-catch-v0 --algo tdmpc2 sac --preset small --folder {tmp_path}"
    run(*options.split(), "--seeds", 2, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    pairs = [(task, algo) for task in ("Pendulum-v1", "dmc-cup-catch-v0") for algo in ("tdmpc2-small", "sac")]
    assert lines[:8] == [f"{algo}-{task}-{seed}" for seed in (0, 1) for task, algo in pairs]
    assert lines[8] == "8 runs left, about 8.0 hours with 1 at the same time" and not list(tmp_path.iterdir())
    run(*options.split(), "--seeds", 2, "--first-seed", 3, "--dry-run")
    assert capsys.readouterr().out.splitlines()[:8] == [f"{algo}-{task}-{n}" for n in (3, 4) for task, algo in pairs]
    monkeypatch.setattr(queue, "work", lambda *args: [])
    run(*options.split())
    settings = Run(tmp_path / "runs" / "tdmpc2-small-dmc-cup-catch-v0-0").settings
    assert (settings["decisions"], settings["eval_decisions"], settings["suite"]) == (50_000, 5_000, "dmc")
    assert Run(tmp_path / "runs" / "sac-Pendulum-v1-0").settings["decisions"] == 100_000
    label = dict(method="tdmpc2 (small)", frames=50_000, train_wall_s=850, eval_wall_s=100)
    queue.write_rows(tmp_path / "runs" / "tdmpc2-small-dmc-cup-catch-v0-0" / "rows.csv", [{**label, "return": 500}])
    capsys.readouterr()
    run("benchmark", "--folder", tmp_path, "--status")
    out = capsys.readouterr().out
    assert "tdmpc2-small-dmc-cup-catch-v0-0  waiting         50,000 frames  return    500.0\n" in out
    assert "about 0.8 hours with 1 at the same time, without sac: no run has been evaluated yet" in out
    with pytest.raises(ValueError, match="100000, not 50000"):
        run(*options.split(), "--frames", 50_000)


def test_rehearsal_is_short_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Run, Any]] = []

    def start(run: Run) -> Any:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        begun.append((run, run.settings))
        monkeypatch.setattr(process, "wait", lambda *args: interrupt(process, *args))
        return process

    def interrupt(process: Any, *patience: float) -> int:
        if not patience:  # Ctrl-C while it works
            raise KeyboardInterrupt
        return subprocess.Popen.wait(process, *patience)

    monkeypatch.setattr(queue, "start", start)
    processes: list[Any] = []
    stop = queue.stop
    monkeypatch.setattr(queue, "stop", lambda found: (processes.extend(found), stop(found)))
    settings = trial.settings_of("mine", "fac_tdmpc", "small", "Pendulum-v1", 0, frames=50_000, eval_frames=10_000)
    with pytest.raises(KeyboardInterrupt):
        benchmark.rehearse(settings)
    (_, short), (process,) = begun[0], processes
    assert process.poll() is not None
    assert short["decisions"] == benchmark.REHEARSAL and "distill_steps:0" in short["hyperparams"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--suite dmc32 --algo td3", 'no method "td3"'),
        ("--suite dmc32 --preset tiny", 'no preset "tiny"'),
        ("--tasks dmc/cup-catch-v0 --frames 5001", "5001 frames of dmc/cup-catch-v0"),
        ("--tasks dmc/cup-cach-v0", "cup-catch-v0"),
        ("--jobs 0 --suite dmc32", "jobs"),
        ("--tasks Pendulum-v1 -params tau:0.1", "--label NAME"),
        ("--tasks Pendulum-v1 --label fast", "-params NAME:VALUE"),
        ("--tasks Pendulum-v1 --label ../fast -params tau:0.1", "letters"),
        ("--tasks Pendulum-v1 --label fast -params tau", "-params tau"),
        ("--tasks Pendulum-v1 --label fast -params tau:print(1)", "print(1)"),
        ("", "--suite dmc32"),
        ("--run nowhere", "nowhere"),
    ],
)
def test_messages(options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--folder", str(tmp_path), *options.split()]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_suites_exist() -> None:
    assert {name: len(tasks) for name, tasks in SUITES.items()} == dict(
        dmc32=32, dmc8=8, dmc6=6, gym6=6, metaworld10=10, myo3=3, maniskill2=2, humanoid3=3
    )
    assert all(task in gym.registry for tasks in SUITES.values() for task in tasks)
    assert not any("dog" in task or "humanoid" in task for task in SUITES["dmc32"])
