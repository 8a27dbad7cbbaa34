"""The discount factor follows from the length of an episode, where the environment tells it."""

from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

# Discount heuristic of TD-MPC2: gamma = (T/5 - 1) / (T/5), within bounds
DISCOUNT_DENOMINATOR, DISCOUNT_MIN, DISCOUNT_MAX = 5, 0.95, 0.995


def env_attribute(env: VecEnv | None, name: str) -> Any:
    """
    :param env: vectorised environment
    :param name: attribute
    :return: its value in the first environment, None if there is none
    """
    try:
        # The worker of a SubprocVecEnv dies when it is asked for what is not there
        return env.get_attr(name, 0)[0] if env is not None and env.has_attr(name) else None
    except (AttributeError, NotImplementedError):
        return None


def episode_length(env: VecEnv | None) -> int | None:
    """
    :param env: vectorised environment
    :return: number of decisions after which an episode is truncated, None if the environment does not tell
    """
    length = env_attribute(env, "_max_episode_steps")  # of the wrapper TimeLimit
    # Otherwise of the specification, which not every worker process can send: one that cannot dies
    if length is None and env is not None and not isinstance(env.unwrapped, SubprocVecEnv):
        length = getattr(env_attribute(env, "spec"), "max_episode_steps", None)
    return None if length is None else int(length)


def discount_from_episode_length(length: int) -> float:
    """
    TD-MPC2's heuristic: the longer the episode, the farther the agent looks ahead.

    :param length: episode length in agent decisions, after action repeat
    :return: discount factor in [0.95, 0.995]
    """
    fraction = length / DISCOUNT_DENOMINATOR
    return min(max((fraction - 1) / fraction, DISCOUNT_MIN), DISCOUNT_MAX)
