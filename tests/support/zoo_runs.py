"""Tiny runs of the zoo's command line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_mpc.zoo.__main__ import main
from tests.support.agents import SMALL, SMALL_POLICY

TINY = [f"{name}:{value}" for name, value in {**SMALL, "learning_starts": 20, "policy_kwargs": SMALL_POLICY}.items()]


class Losses(BaseCallback):
    """
    Appends the losses of every update to a file of JSON lines, each written at once.

    :param path: the file
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        values = {name: value for name, value in self.logger.name_to_value.items() if name.startswith("train/")}
        if values:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": self.model.num_timesteps, **values}) + "\n")

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def train_arguments(folder: Path, steps: int, *more: str, algo: str = "tdmpc2", env: str = "Pendulum-v1") -> list[str]:
    """
    :param folder: folder of the logs, and of ``losses.jsonl``
    :param steps: decisions
    :param more: further arguments
    :param algo: method
    :param env: environment
    :return: command line of a run with episodes of 20 steps
    """
    callback = f"callback:[{{'tests.support.zoo_runs.Losses': {{'path': {str(folder / 'losses.jsonl')!r}}}}}]"
    options = f"train --algo {algo} --env {env} -n {steps} --seed 1 --log-folder {folder} --device cpu"
    lengths = "--env-kwargs max_episode_steps:20 --eval-episodes 1 --eval-freq 50 --checkpoint-freq 30"
    return [*options.split(), *lengths.split(), *more, "-params", *TINY, callback]


def run(*arguments: Any) -> None:
    """
    :param arguments: command line that must succeed
    """
    before = os.environ.get("SB3_MPC_TRACEBACK")
    os.environ["SB3_MPC_TRACEBACK"] = "1"
    try:
        assert main([str(argument) for argument in arguments]) == 0
    finally:
        if before is None:
            del os.environ["SB3_MPC_TRACEBACK"]


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """
    :param folder: folder of a run
    :return: losses by step; what was computed twice must be equal
    """
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "losses.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert found.setdefault(values["step"], values) == values
    return found


def crash(work: Any, write: Callable[[dict[str, Any]], None]) -> None:
    """A part of the report on a GPU that ends its process."""
    write(dict(begun=True))
    os._exit(3)
