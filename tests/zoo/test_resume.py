"""A run that was killed goes on as if it never was; disks may be full, and users impatient."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.agents import load_agent
from sb3_mpc.zoo.resume import ResumableCheckpoint, checkpoints_of
from tests.support import ROOT
from tests.support.agents import PointEnv, assert_same_state, make_agent, vec

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
from tests.support.zoo_runs import losses, run, train_arguments

STEPS = 120


def start(arguments: list[str], **kwargs: Any) -> subprocess.Popen:
    """:return: the command line in a process of its own, from this folder of the project"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.Popen([sys.executable, "-m", "sb3_mpc.zoo", *arguments], cwd=ROOT, env=environment, **kwargs)


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
        lambda: PointEnv(next(lengths)),
        n_envs=2,
        seed=1,
        monitor_dir=str(folder),
        monitor_kwargs=dict(override_existing=new),
    )
    return VecNormalize(env)


def test_in_a_script_for_every_method(algorithm: Any, tmp_path: Path) -> None:
    """With two environments, whose episodes are cut at a checkpoint."""
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
