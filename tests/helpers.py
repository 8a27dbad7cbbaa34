"""What several tests need."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class SpacesOnlyEnv(gym.Env):
    """Environment of given spaces whose observations are random and whose rewards are zero; it never ends."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}
