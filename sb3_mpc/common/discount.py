"""The discount factor, derived from the episode length if that is known."""

from typing import Any

from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

# Discount heuristic of TD-MPC2: gamma = (T/5 - 1) / (T/5), within bounds
DISCOUNT_DENOMINATOR, DISCOUNT_MIN, DISCOUNT_MAX = 5, 0.95, 0.995
DEFAULT_GAMMA = 0.99  # for environments whose episode length is unknown


def env_attribute(env: VecEnv | None, name: str) -> Any:
    """
    :param env: vectorised environment
    :param name: attribute
    :return: its value in the first environment, None if it does not exist
    """
    try:
        # A worker process of a SubprocVecEnv crashes when it is asked for a missing attribute
        return env.get_attr(name, 0)[0] if env is not None and env.has_attr(name) else None
    except (AttributeError, NotImplementedError):
        return None


def env_spec(env: VecEnv | None) -> EnvSpec | None:
    """
    :param env: vectorised environment
    :return: the spec of the first environment, None if it has none, or lives in a worker process, which crashes if the
        spec cannot be pickled
    """
    in_workers = env is None or isinstance(env.unwrapped, SubprocVecEnv)
    return None if in_workers else env_attribute(env, "spec")


def episode_length(env: VecEnv | None) -> int | None:
    """
    :param env: vectorised environment
    :return: number of decisions after which an episode is truncated, None if unknown
    """
    length = env_attribute(env, "_max_episode_steps")  # of Gymnasium's wrapper TimeLimit
    if length is None:
        length = getattr(env_spec(env), "max_episode_steps", None)
    return None if length is None else int(length)


def discount_from_episode_length(length: int) -> float:
    """
    TD-MPC2's heuristic: the longer the episode, the larger the discount factor.

    :param length: episode length in agent decisions, after action repeat
    :return: discount factor in [0.95, 0.995]
    """
    fraction = length / DISCOUNT_DENOMINATOR
    return min(max((fraction - 1) / fraction, DISCOUNT_MIN), DISCOUNT_MAX)
