"""An environment that only has spaces, for agents that never act."""

from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium as gym
from gymnasium import spaces

from sb3_mpc.offline.layout import default_names


class SpacesEnv(gym.Env):
    """
    Has the spaces of a data set and the lengths of its episodes, from which discount factors follow.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param tasks: name, number of action dimensions and length of the episodes of each task
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        tasks: Sequence[tuple[str, int, int | None]],
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        names, self.action_dims, self.task_lengths = (list(column) for column in zip(*tasks, strict=True))
        self.task_names: list[str] | None = None if names == default_names(len(names)) else names
        known = [length for length in self.task_lengths if length is not None]
        if len(known) == len(tasks):
            self._max_episode_steps = max(known)  # where Gymnasium's TimeLimit has it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> NoReturn:
        """:raises RuntimeError: always"""
        raise RuntimeError(
            "This environment only has the spaces of a data set: to act, give the agent a real one by set_env()."
        )

    def step(self, action: Any) -> NoReturn:
        """:raises RuntimeError: always"""
        self.reset()
