"""Suites and the registration of their tasks with Gymnasium."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym


@dataclass(frozen=True)
class Task:
    """
    One id of a suite.

    :param decisions: length of an episode in decisions of the agent
    :param kwargs: arguments of the suite's ``make``
    """

    decisions: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """
    A benchmark suite: tasks of one simulator package with one metric. No field needs that package to be installed.

    :param title: name of the suite in the papers
    :param module: module of ``sb3_mpc.envs`` whose function ``make`` makes the environments
    :param package: name of the package to import
    :param distribution: name of the package for pip
    :param install: command that installs it
    :param metric: metric of an episode in the papers
    :param protocol: short description of the papers' protocol
    :param sample: task that tests whether the suite works
    :param tasks: tasks by name, the part of the id after the slash, version included
    """

    title: str
    module: str
    package: str
    distribution: str
    install: str
    metric: str
    protocol: str
    sample: str
    tasks: Mapping[str, Task]

    @property
    def name(self) -> str:
        """:return: the namespace of the ids, ``"dmc"`` in ``"dmc/walker-walk-v0"``"""
        return self.module.rpartition(".")[2].replace("_", "-")

    @property
    def ids(self) -> list[str]:
        """:return: the ids for ``gym.make``"""
        return [f"{self.name}/{task}" for task in self.tasks]

    @property
    def version(self) -> str | None:
        """:return: the installed version, None if the suite is not installed"""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "unknown" if importlib.util.find_spec(self.package) else None

    def register(self) -> None:
        """Register the ids with Gymnasium; the suite's package is imported when the first environment is made."""
        for name, task in self.tasks.items():
            gym.register(
                id=f"{self.name}/{name}",
                entry_point=f"{self.module}:make",
                max_episode_steps=task.decisions,
                kwargs=dict(task.kwargs),
            )

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Context for importing the suite's package; a failed import is explained in one sentence."""
        try:
            yield
        except ModuleNotFoundError as error:
            missing = "" if error.name in (None, self.package) else f", and {error.name} is missing"
            raise ModuleNotFoundError(
                f"{self.title} tasks need {self.package}{missing}: {self.install}", name=error.name
            ) from error


def frames_for_a_window(make: Callable[..., gym.Env]) -> Callable[..., gym.Env]:
    """
    Let ``gym.make`` support ``render_mode="human"`` by its own window, which shows the frames of ``"rgb_array"``.

    :param make: the entry point of a suite
    :return: the same function
    """
    vars(make)["metadata"] = {"render_modes": ["rgb_array"]}  # gym.make reads the supported modes here
    return make
