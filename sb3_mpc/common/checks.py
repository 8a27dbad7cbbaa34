"""Bad input is met here, with one sentence that names the culprit and the fix."""

import difflib
import inspect
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv


class UnsupportedObservationError(AssertionError, ValueError):
    """The observation space does not suit the policy. SB3 raises AssertionError for it, Python ValueError."""


class UnsupportedActionSpaceError(AssertionError, ValueError):
    """The action space does not suit the method. SB3 raises AssertionError for it, Python ValueError."""


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
            f"{method} plans over continuous actions and cannot use the action space {space}: use an environment with "
            "a gymnasium.spaces.Box action space, or a method for discrete actions such as DQN or PPO."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UnsupportedActionSpaceError(
            f"{method} needs an action space with a finite lower and upper bound in every dimension, got {space}: wrap "
            "the environment in gymnasium.wrappers.RescaleAction or give its action space bounds."
        )
    if not (space.low < space.high).all():
        raise UnsupportedActionSpaceError(
            f"{method} needs low < high in every dimension of the action space, got low={space.low}, high={space.high}"
            ": leave out the dimensions that cannot vary."
        )


Observations = np.ndarray | dict[str, np.ndarray]


def named_parts(observation: Observations) -> list[tuple[str, np.ndarray]]:
    """
    :param observation: array or dict of arrays
    :return: the arrays with the names that messages call them
    """
    if isinstance(observation, dict):
        return [(f"observation[{key!r}]", np.asarray(part)) for key, part in observation.items()]
    return [("observation", np.asarray(observation))]


def check_finite_observation(
    observation: Observations, context: str = "given to predict()", batched: bool = False
) -> None:
    """
    :param observation: one observation or a batch of them
    :param context: where it comes from, for the message
    :param batched: whether the first index is the environment
    :raises ValueError: if a floating-point entry is NaN or infinite
    """
    for name, array in named_parts(observation):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            owner = f" of environment {where[0]}" if batched else ""
            index = where[1:] if batched else where
            raise ValueError(
                f"The {name}{owner} {context} is {array[where]} at index {index}: observations must be finite, "
                "check the environment."
            )


def check_observation_shape(observation: Observations, space: spaces.Space, n_envs: int, context: str) -> None:
    """
    :param observation: observations of all environments
    :param space: observation space of one
    :param n_envs: number of environments
    :param context: where it comes from, for the message
    :raises ValueError: if an observation has another shape than its space says
    """
    subspaces = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    parts = observation if isinstance(observation, dict) else {"": observation}
    for key, sub in subspaces.items():
        shape = np.shape(parts[key])
        if shape != (n_envs, *(sub.shape or ())):
            name = f"observation[{key!r}]" if key else "observation"
            raise ValueError(
                f"The {name} {context} has shape {shape[1:]} instead of {sub.shape}: the environment must keep to its "
                "observation_space in every step."
            )


def check_finite_losses(losses: dict[str, float], n_updates: int) -> None:
    """
    :param losses: losses by name
    :param n_updates: number of updates so far
    :raises ValueError: if one is NaN or infinite
    """
    bad = [name for name, value in losses.items() if not np.isfinite(value)]
    if bad:
        raise ValueError(
            f"Training has diverged: {', '.join(bad)} became NaN or infinite after {n_updates} updates. Go on from an "
            "earlier checkpoint with a lower learning_rate or smaller rewards."
        )


def check_policy_kwargs(policy_class: type[BasePolicy], policy_kwargs: dict[str, Any]) -> None:
    """
    :param policy_class: class of the policy
    :param policy_kwargs: arguments that the user gives it
    :raises TypeError: if the policy has no such argument
    """
    parameters = inspect.signature(policy_class.__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name not in ("self", "observation_space", "action_space", "lr_schedule")]
    for key in policy_kwargs:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
            raise TypeError(f"policy_kwargs has the unknown key {key!r} for {policy_class.__name__}: {hint}")
