"""The papers' protocol for DMControl on dm_control's side of Shimmy. Importing this module imports dm_control."""

from typing import Any

import dm_env
import gymnasium as gym
import numpy as np
from dm_control.rl import control
from dm_env import specs
from numpy.typing import NDArray


class VectorEnvironment(dm_env.Environment):
    """
    A task whose observation is one float64 vector [D] and whose actuators all have limits.

    The vector has dm_control's order of the parts, where the Dict space that Shimmy makes of them sorts its keys. It
    also saves Shimmy's copy of the parts, which slowed decisions of pendulum and cheetah by 12 to 17 %.

    :param env: the task as dm_control loads it
    """

    def __init__(self, env: control.Environment) -> None:
        self._env = env
        self.physics, self.task, self.control_timestep = env.physics, env.task, env.control_timestep

    def observation_spec(self) -> specs.Array:
        """:return: the spec of the vector"""
        parts = self._env.observation_spec().values()
        return specs.Array((sum(int(np.prod(part.shape)) for part in parts),), np.float64)

    def action_spec(self) -> specs.BoundedArray:
        """:return: the task's spec, +-1 in place of the +-1e10 by which dm_control says that there is no limit (lqr)"""
        spec = self._env.action_spec()
        low, high = (np.where(np.abs(bound) < 1e10, bound, np.sign(bound)) for bound in (spec.minimum, spec.maximum))
        return spec.replace(minimum=low, maximum=high)

    def reset(self) -> dm_env.TimeStep:
        """:return: the first time step of an episode"""
        return dm_env.restart(_in_one_vector(self._env.reset().observation))

    def step(self, action: NDArray[np.float64]) -> dm_env.TimeStep:
        """
        Carry out one control step.

        :param action: the action [A] within the task's bounds
        :return: the time step
        :raises ResetNeeded: after the last one of an episode, where dm_control would start the next by itself
        """
        step_type, reward, discount, parts = self._env.step(action)
        if step_type.first():
            raise gym.error.ResetNeeded("The episode has ended: call reset() before the next step().")
        return dm_env.TimeStep(step_type, reward, discount, _in_one_vector(parts))


def _in_one_vector(parts: dict[str, Any]) -> NDArray[np.float64]:
    """Join the parts of an observation, numbers included, into one vector [D] in dm_control's order."""
    return np.concatenate(list(parts.values()), axis=None)
