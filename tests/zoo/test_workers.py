"""Environments in processes of their own: when one dies, the run ends at once, says why, and is saved."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor

from sb3_mpc.zoo.workers import WorkerError, WorkerVecEnv, guard_log
from tests.support.agents import PointEnv


class Failing(gym.Wrapper):
    """An environment with a fault."""

    def __init__(self, env: gym.Env, at: int) -> None:
        super().__init__(env)
        self.at, self.count = at, 0

    def step(self, action: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            raise ZeroDivisionError("the fault")
        return self.env.step(action)


def make(at: int = 0) -> gym.Env:
    return Failing(PointEnv(5), at)


def start(*faults: int) -> WorkerVecEnv:
    return WorkerVecEnv([lambda at=at: make(at) for at in faults], "fork")


def steps(env: WorkerVecEnv, count: int) -> None:
    env.reset()
    for _ in range(count):
        env.step(np.zeros((env.num_envs, 2), np.float32))


@pytest.mark.parametrize("index", [0, 2])
def test_a_worker_that_fails_tells_its_name_and_traceback(index: int) -> None:
    env = start(*[3 if i == index else 0 for i in range(3)])
    with pytest.raises(WorkerError, match=rf"Environment {index} of 3 .*(?s:.*)ZeroDivisionError: the fault"):
        steps(env, 3)
    env.close()
    assert not any(process.is_alive() for process in env.processes) and not env.reports.exists()


@pytest.mark.parametrize("index", [0, 2])
def test_a_worker_that_is_killed_is_named(index: int) -> None:
    env = start(0, 0, 0)
    steps(env, 1)
    env.step_async(np.zeros((3, 2), np.float32))
    os.kill(env.processes[index].pid, signal.SIGKILL)
    with pytest.raises(
        WorkerError, match=rf"Environment {index} of 3 .*SIGKILL\), as the system does when memory is short"
    ):
        for _ in range(2):
            env.step_wait()
            env.step_async(np.zeros((3, 2), np.float32))
    env.close()
    assert not any(process.is_alive() for process in env.processes)
    env.close()  # twice is once


def test_workers_that_are_not_forked() -> None:
    """As the command line starts them."""
    env = WorkerVecEnv([lambda: gym.make("Pendulum-v1")])
    env.reset()
    env.close()


def test_an_environment_that_cannot_be_made() -> None:
    def fail() -> gym.Env:
        raise ZeroDivisionError("no environment")

    with pytest.raises(WorkerError, match=r"Environment 0 of 1 .*(?s:.*)no environment"):
        WorkerVecEnv([fail], "fork")


def test_workers_leave_signals_to_the_trainer() -> None:
    env = start(0)
    steps(env, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(env.processes[0].pid, number)
    steps(env, 3)
    env.close()


def test_full_disk_does_not_end_an_environment(tmp_path: Path) -> None:
    env = Monitor(PointEnv(2), str(tmp_path / "log"))

    def full(row: Any) -> None:
        raise OSError(28, "No space left on device")

    assert env.results_writer is not None
    env.results_writer.write_row = full  # type: ignore[method-assign]
    guard_log(env)
    with pytest.warns(UserWarning, match="could not be logged .*No space left.*training is not affected"):
        for _ in range(2):
            env.reset()
            while not env.needs_reset:
                env.step(np.zeros(2, np.float32))
    env.close()


@pytest.mark.slow
def test_command_line_ends_and_goes_on(tmp_path: Path) -> None:
    """One of two workers is killed as the system does it when memory is short."""
    from tests.support.zoo_runs import train_arguments
    from tests.zoo.test_resume import start as command
    from tests.zoo.test_resume import wait_for_losses

    arguments = [*train_arguments(tmp_path, 10_000), "n_envs:2", "--vec-env", "subproc", "--eval-freq", "-1"]
    process = command(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_losses(process, tmp_path, 25)
    output = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in output.splitlines()[1:]]
    children = {int(pid) for pid, parent, _ in rows if int(parent) == process.pid}
    workers = sorted(int(pid) for pid, parent, _ in rows if int(parent) in children)  # of the fork server
    begin = time.monotonic()
    os.kill(workers[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30 and process.returncode == 1
    assert re.search(r"Error: Environment \d of 2 .*SIGKILL", said) and "Saved in" in said
    folder = tmp_path / "tdmpc2" / "Pendulum-v1_1"
    resumed = command(["train", "--resume", str(folder), "-n", "200", "--trust"], stdout=subprocess.PIPE, text=True)
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and "Resuming at step" in said
