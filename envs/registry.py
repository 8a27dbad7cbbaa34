"""What a suite is, and how its tasks become ids of Gymnasium."""

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

    :param decisions: Length of an episode in decisions of the agent
    :param kwargs: What the suite's ``make`` needs to know
    """

    decisions: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """
    A benchmark suite: tasks of one simulator package, measured in one way. No field needs that package.

    :param title: The name that its papers use
    :param module: Module of ``sb3_mpc.envs`` whose function ``make`` makes the environments
    :param package: The package to import
    :param distribution: The name under which that package is installed
    :param install: The command that installs it
    :param metric: What the papers report of an episode
    :param protocol: How the papers run an episode, in a few words
    :param sample: A task that shows whether the suite works
    :param tasks: The tasks by the names that follow the slash of their ids, version included
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
        """Register the ids with Gymnasium; nothing of the suite is imported before an environment is made."""
        for name, task in self.tasks.items():
            gym.register(
                id=f"{self.name}/{name}",
                entry_point=f"{self.module}:make",
                max_episode_steps=task.decisions,
                kwargs=dict(task.kwargs),
            )

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Explain a failed import of the suite's package in one sentence, to be entered around the import."""
        try:
            yield
        except ModuleNotFoundError as error:
            missing = "" if error.name in (None, self.package) else f", and {error.name} is missing"
            raise ModuleNotFoundError(
                f"{self.title} tasks need {self.package}{missing}: {self.install}", name=error.name
            ) from error


def frames_for_a_window(make: Callable[..., gym.Env]) -> Callable[..., gym.Env]:
    """
    Let ``gym.make`` show ``render_mode="human"`` in a window of its own, drawn from the frames of ``"rgb_array"``.

    :param make: The entry point of a suite
    :return: The same function
    """
    vars(make)["metadata"] = {"render_modes": ["rgb_array"]}  # where gym.make looks for what it may ask for
    return make
