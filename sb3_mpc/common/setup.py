"""What is settled before a model is built: the environment, its action space and the values of "auto"."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

# Discount heuristic of TD-MPC2: gamma = (T/5 - 1) / (T/5), within bounds
DISCOUNT_DENOMINATOR, DISCOUNT_MIN, DISCOUNT_MAX = 5, 0.95, 0.995


class UnsupportedActionSpaceError(AssertionError, ValueError):
    """The action space does not suit the method. (SB3 raises AssertionError here, Python's habit is ValueError.)"""


def make_env(env: GymEnv | str | None, verbose: int) -> GymEnv | None:
    """
    :param env: environment, its id, or None
    :param verbose: whether to say what is made
    :return: the environment
    """
    return None if env is None else maybe_make_env(env, verbose)


def check_action_space(space: spaces.Space, method: str) -> None:
    """
    :param space: action space of the environment
    :param method: name of the method, for the message
    :raises UnsupportedActionSpaceError: unless it is a bounded box
    """
    if not isinstance(space, spaces.Box):
        raise UnsupportedActionSpaceError(
            f"{method} plans over continuous actions and cannot use the action space {space}: use an environment with a "
            "gymnasium.spaces.Box action space, or a method for discrete actions such as DQN or PPO."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UnsupportedActionSpaceError(
            f"{method} needs an action space with a finite lower and upper bound in every dimension, got {space}: wrap the "
            "environment in gymnasium.wrappers.RescaleAction or give its action space bounds."
        )
    if not (space.low < space.high).all():
        raise UnsupportedActionSpaceError(
            f"{method} needs low < high in every dimension of the action space, got low={space.low}, high={space.high}: "
            "leave out the dimensions that cannot vary."
        )


def episode_length(env: VecEnv | None) -> int | None:
    """
    :param env: vectorised environment
    :return: number of decisions after which an episode is truncated, None if the environment does not tell
    """
    if env is None:
        return None

    def attribute(name: str) -> Any:
        try:
            return env.get_attr(name, 0)[0]
        except (AttributeError, NotImplementedError):
            return None

    spec = attribute("spec")
    length = getattr(spec, "max_episode_steps", None) or attribute("_max_episode_steps")
    return None if length is None else int(length)


def discount_from_episode_length(length: int) -> float:
    """
    TD-MPC2's heuristic: the longer the episode, the farther the agent looks ahead.

    :param length: episode length in agent decisions, after action repeat
    :return: discount factor in [0.95, 0.995]
    """
    fraction = length / DISCOUNT_DENOMINATOR
    return min(max((fraction - 1) / fraction, DISCOUNT_MIN), DISCOUNT_MAX)
