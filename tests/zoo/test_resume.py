"""A run that was killed goes on as if it never was; disks may be full, and users impatient."""

import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import ConvertCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.agents import load_agent
from sb3_mpc.common.files import holding
from sb3_mpc.zoo.__main__ import main
from sb3_mpc.zoo.checkpoint_files import checkpoints_of, is_exact
from sb3_mpc.zoo.resume import ResumableCheckpoint
from tests.support import ROOT
from tests.support.agents import PointEnv, assert_same_state, make_agent, vec

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
from tests.support.zoo_runs import losses, run, train_arguments


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also if the tests run in the background of a shell, which lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STEPS = 120


def start(arguments: list[str], **kwargs: Any) -> subprocess.Popen:
    """:return: the command line in a process of its own, from this folder of the project"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    # Ctrl-C is ignored by what a shell starts in the background, and by its children
    handles = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "sb3_mpc.zoo", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=handles, **kwargs)


def wait_for_losses(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Wait until a run has logged so many updates."""
    path = folder / "losses.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, "the run has ended before it was stopped"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    """Killed in the middle of whatever it does: losses, evaluations, episodes and the agent are those of one run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run(*train_arguments(whole, STEPS), "normalize:True")
    expected = losses(whole)
    moment = random.SystemRandom().randrange(30, 70)  # the first checkpoint is at step 40, after 20 updates
    process = start([*train_arguments(killed, STEPS), "normalize:True"], stdout=subprocess.DEVNULL)
    wait_for_losses(process, killed, moment)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    folder = killed / "tdmpc2" / "Pendulum-v1_1"
    assert not (folder / "Pendulum-v1.safetensors").exists()
    run("train", "--resume", folder, "--trust")  # the callback that writes the losses is code
    actual = losses(killed)
    assert len(expected) == STEPS - 20 and actual == expected, f"killed after {moment} updates"
    reference = whole / "tdmpc2" / "Pendulum-v1_1"
    for name in ("results", "timesteps", "ep_lengths"):
        np.testing.assert_array_equal(*(np.load(f / "evaluations.npz")[name] for f in (folder, reference)))
    episodes = []
    for path in (folder, reference):
        with open(path / "0.monitor.csv") as file:
            assert json.loads(file.readline()[1:])["env_id"] == "Pendulum-v1"
            rows = list(csv.DictReader(file))
        times = [float(row["t"]) for row in rows]
        assert times == sorted(times)
        episodes.append([(row["r"], row["l"]) for row in rows])
    assert episodes[0] == episodes[1] and len(episodes[0]) == STEPS // 20
    models = [load_agent(f / "Pendulum-v1", vec(lambda: gym.make("Pendulum-v1"))) for f in (folder, reference)]
    assert_same_state(models[0].get_parameters(), models[1].get_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_run_is_saved_and_says_where(tmp_path: Path, number: int) -> None:
    """Ctrl-C in a process with two worker processes, which it reaches, too."""
    arguments = [*train_arguments(tmp_path, 10_000), "n_envs:2", "--vec-env", "subproc"]
    process = start(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_losses(process, tmp_path, 15)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    folder = tmp_path / "tdmpc2" / "Pendulum-v1_1"
    (steps, *_), (checkpoint, *_) = zip(*checkpoints_of(folder / "checkpoints").items(), strict=True)
    assert f"Interrupted at step {steps}, saved in {checkpoint}" in output
    assert f"train --resume {folder}" in output and process.returncode == 128 + number
    assert load_agent(folder / "Pendulum-v1").num_timesteps == steps


class Stop(Exception):
    """Stands for the end of a process."""


class StopAt(EvalCallback):
    """An evaluation whose results count, and an end that comes at some step."""

    stop_at: int | None = None

    def _on_step(self) -> bool:
        if self.n_calls == self.stop_at:
            raise Stop
        return super()._on_step()


def point_envs(folder: Path, new: bool = True) -> VecNormalize:
    lengths = iter((7, 5))
    env = make_vec_env(
        lambda: gym.wrappers.TimeLimit(PointEnv(100), next(lengths)),
        n_envs=2,
        seed=1,
        monitor_dir=str(folder),
        monitor_kwargs=dict(override_existing=new),
    )
    return VecNormalize(env)


def test_in_a_script_for_every_method(algorithm: Any, tmp_path: Path) -> None:
    """With two environments, whose episodes are cut at a checkpoint, and end one after the other from there on."""
    results = []
    for stop_at in (None, 20):
        folder = tmp_path / str(stop_at)

        def parts(folder: Path = folder) -> tuple[StopAt, ResumableCheckpoint]:
            evaluation = StopAt(VecNormalize(vec(PointEnv), training=False), n_eval_episodes=2, eval_freq=8, verbose=0)
            return evaluation, ResumableCheckpoint(folder / "checkpoints", 12, [evaluation], folder)

        evaluation, checkpoint = parts()
        evaluation.stop_at = stop_at
        settings = dict(seed=4, learning_starts=10, pretrain_gradient_steps=3)
        settings |= dict(distill_steps=5) if algorithm.__name__ == "FacTDMPC" else {}
        model = make_agent(algorithm, point_envs(folder), **settings)
        try:
            model.learn(60, [evaluation, checkpoint])
        except Stop:
            evaluation, checkpoint = parts()
            np.random.seed(99)  # the rest finds another world
            model = checkpoint.load(algorithm, point_envs(folder, new=False), "cpu")
            assert 12 <= model.num_timesteps <= 40
            model.learn(60 - model.num_timesteps, [evaluation, checkpoint], reset_num_timesteps=False)
        assert checkpoint.newest() == folder / "checkpoints" / f"step_{60}"
        assert list(checkpoints_of(checkpoint.folder)) == [60, 48]
        episodes = [[line.rsplit(",", 1)[0] for line in f.read_text().splitlines()[1:]] for f in folder.glob("*.csv")]
        results.append((model.get_parameters(), evaluation.evaluations_results, model._n_updates, sorted(episodes)))
    assert_same_state(results[1], results[0])


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning; the previous checkpoint stays whole and the training goes on."""
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1).learn(20, checkpoint)
    assert checkpoint.newest() == tmp_path / "step_20"

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="step 40 could not be written .*No space left.*the previous one is kept"):
        model.learn(25, checkpoint, reset_num_timesteps=False)
    assert model.num_timesteps == 45 and list(checkpoints_of(tmp_path)) == [20]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step_20"}  # no litter
    monkeypatch.undo()
    loaded = checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)))
    loaded.learn(20, checkpoint, reset_num_timesteps=False)
    assert list(checkpoints_of(tmp_path)) == [40, 20]


def test_what_cannot_go_on_says_so(tmp_path: Path) -> None:
    checkpoint = ResumableCheckpoint(tmp_path / "new", 20)
    env = vec(lambda: PointEnv(10))
    with pytest.raises(FileNotFoundError, match="no complete checkpoint: start the run again"):
        checkpoint.load(TDMPC2, env)
    make_agent(TDMPC2, env).learn(20, checkpoint)
    with pytest.raises(FileExistsError, match="step_20 is of a run that is further than this one"):
        make_agent(TDMPC2, env).learn(20, checkpoint)
    (tmp_path / "new" / "step_20" / "state.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="no checkpoint that is not damaged: .*state.npz does not match its checksum"):
        checkpoint.load(TDMPC2, env)
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        ResumableCheckpoint(tmp_path, 0)


# -- What is kept, and what is damaged ---------------------------------------------------------------------------------


def begun(folder: Path, steps: int = 60, every: int = 20) -> Any:
    """:return: a run with a checkpoint every so many steps"""
    return make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1).learn(steps, ResumableCheckpoint(folder, every))


def load(folder: Path, **kwargs: Any) -> Any:
    return ResumableCheckpoint(folder, 20).load(TDMPC2, vec(lambda: PointEnv(10)), "cpu", **kwargs)


@pytest.mark.parametrize("name", ["model.npz", "replay_buffer.npz", "state.npz", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["bit", "end", "missing"])
def test_damaged_checkpoint_is_noticed_and_the_one_before_goes_on(name: str, damage: str, tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / "step_60" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink() if damage == "missing" else path.write_bytes(data if damage == "bit" else data[:-3])
    reason = "cannot be read" if damage == "missing" else "does not match its checksum"
    if name == "checkpoint.json":
        assert load(tmp_path).num_timesteps == 40 or damage == "bit"
        return
    with pytest.warns(UserWarning, match=rf"step_60/{name} {reason}.*: going on from .*step_40 instead"):
        model = load(tmp_path)
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    with pytest.warns(UserWarning, match="going on"):
        model = checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)), "cpu")
    model.learn(20, checkpoint, reset_num_timesteps=False)
    assert list(checkpoints_of(tmp_path)) == [60, 40] and (tmp_path / "aside_step_60").is_dir()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    for name in ("step_200 (copy)", "step_", "step_1e3", "step_0005", "my notes"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "checkpoint.json").write_text("{}")
    (tmp_path / "step_300").touch()
    begun(tmp_path)
    assert list(checkpoints_of(tmp_path)) == [60, 40] and load(tmp_path).num_timesteps == 60
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step_200 (copy)", "step_", "step_1e3", "step_0005", "my notes", "step_300", ".lock"} | {
        f"step_{step}" for step in (40, 60)
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_the_exact_checkpoint_stays(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    checkpoint = ResumableCheckpoint(tmp_path, 20)

    def stop(local: Any, _: Any) -> bool:
        if local["self"].num_timesteps in (45, 75):
            signal.raise_signal(number)
        return True

    model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as end:
        model.learn(100, [checkpoint, ConvertCallback(stop)])
    assert number == signal.SIGINT or end.value.code == 128 + number  # type: ignore[union-attr]
    assert {step: is_exact(path) for step, path in checkpoints_of(tmp_path).items()} == {45: False, 40: True}
    checkpoint.close()
    assert signal.getsignal(number) == before
    model = load(tmp_path)
    assert model.num_timesteps == 45 and load(tmp_path, step=40).num_timesteps == 40
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    model = checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)), "cpu", 40)
    model.learn(10, checkpoint, reset_num_timesteps=False)
    assert list(checkpoints_of(tmp_path)) == [50, 40] and (tmp_path / "aside_step_45").is_dir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 45"):
        load(tmp_path, step=45)


def test_signal_after_the_training_is_no_matter_of_ours(tmp_path: Path) -> None:
    """An error has ended it, and nobody has told the callback."""
    model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1)

    def fail(local: Any, _: Any) -> bool:
        if local["self"].num_timesteps == 12:
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        model.learn(100, [ResumableCheckpoint(tmp_path, 20), ConvertCallback(fail)])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    begun(tmp_path)
    with holding(tmp_path / ".lock") as free:
        assert free
        with pytest.raises(BlockingIOError, match="Another process works on the run"):
            load(tmp_path)
    assert load(tmp_path).num_timesteps == 60


def test_agent_that_has_diverged_is_not_saved(tmp_path: Path) -> None:
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1, gradient_steps=0)

    def poison(local: Any, _: Any) -> bool:
        if local["self"].num_timesteps == 39:
            with th.no_grad():
                model.policy.world_model.q_target.layers[0].weight.view(-1)[0] = np.nan
        return True

    with pytest.warns(UserWarning, match="step 40 could not be written .*diverged.*q_target.*the previous one is kept"):
        model.learn(39, [checkpoint, ConvertCallback(poison)])
        model.learn(1, checkpoint, reset_num_timesteps=False)
    assert max(checkpoints_of(tmp_path)) < 40


def test_diverged_run_goes_on_with_a_lower_learning_rate(tmp_path: Path) -> None:
    model = make_agent(
        TDMPC2, vec(lambda: PointEnv(10)), seed=1, learning_rate=lambda left: 1e-3 if left > 0.5 else 1e6
    )
    with pytest.raises(ValueError, match=r"Training has diverged: .* Resume from an earlier checkpoint with a lower"):
        model.learn(100, ResumableCheckpoint(tmp_path, 20))
    with pytest.raises(ValueError, match="cannot hold learning_rate, .*: give it again, as learning_rate=..."):
        load(tmp_path)
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    model = checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)), "cpu", learning_rate=1e-4)
    model.learn(100 - model.num_timesteps, checkpoint, reset_num_timesteps=False)
    assert model.num_timesteps == 100 and model.policy.model_optimizer.param_groups[1]["lr"] == 1e-4


def test_a_resumed_run_does_not_warn_of_the_low_learning_rate_of_its_end(tmp_path: Path) -> None:
    checkpoint = ResumableCheckpoint(tmp_path, 20)
    model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1, learning_rate=LinearSchedule(1e-3, 0.0, 1.0))
    stop = StopTrainingOnMaxEpisodes(9)
    model.learn(96, [stop, checkpoint])
    assert model.num_timesteps == 90
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(tmp_path).learn(6, reset_num_timesteps=False)


@pytest.mark.slow
def test_command_line_goes_on_with_a_lower_learning_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*(word for word in train_arguments(tmp_path, 40) if not word.startswith("callback:")))
    folder = tmp_path / "tdmpc2" / "Pendulum-v1_1"
    run("train", "--resume", folder, "-n", 60, "-params", "learning_rate:1e-5")
    assert "learning_rate was the default and is 1e-05 from here on: the run is no longer" in capsys.readouterr().out
    run("train", "--resume", folder, "-n", 80)
    assert load_agent(folder / "Pendulum-v1").learning_rate == 1e-5
    command = [sys.executable, "-c", HOLD.format(path=str(folder / ".lock"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert main(["train", "--resume", str(folder), "-n", "90"]) == 1
        assert "Another process works on the run" in capsys.readouterr().err
        other.kill()


HOLD = """
import fcntl, sys
file = open({path!r}, "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
