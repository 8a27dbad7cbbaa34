"""What environments return and what training computes: observations, losses."""

import traceback

import numpy as np
import torch as th
from gymnasium import spaces

# Beyond it, squares in the networks are infinite in single precision
LARGEST_OBSERVATION = 1e15
# Weights are of the order of one; such a number means that the steps were far too large
LARGEST_WEIGHT = 1e5

Observations = np.ndarray | dict[str, np.ndarray]
CHECK_LOSSES_EVERY = 100  # updates; a copy to the host in each of them would cost time


def named_parts(observation: Observations) -> list[tuple[str, np.ndarray]]:
    """
    :param observation: array or dict of arrays
    :return: the arrays with their names in messages
    """
    if isinstance(observation, dict):
        return [(f"observation[{key!r}]", np.asarray(part)) for key, part in observation.items()]
    return [("observation", np.asarray(observation))]


def check_finite_observation(
    observation: Observations, context: str = "given to predict()", batched: bool = False
) -> None:
    """
    :param observation: one observation or a batch of them
    :param context: where the observation comes from, for the message
    :param batched: whether the first index is the environment
    :raises ValueError: if a floating-point entry is NaN, infinite, or so large that networks cannot read it
    """
    for name, array in named_parts(observation):
        if np.issubdtype(array.dtype, np.floating) and not (np.abs(array) <= LARGEST_OBSERVATION).all():
            where = tuple(int(i) for i in np.argwhere(~(np.abs(array) <= LARGEST_OBSERVATION))[0])
            owner = f" of environment {where[0]}" if batched else ""
            index = where[1:] if batched else where
            fix = (
                "check the environment" if not np.isfinite(array[where]) else "scale them, for example by VecNormalize"
            )
            raise ValueError(
                f"The {name}{owner} {context} is {array[where]} at index {index}: observations must be finite and at "
                f"most {LARGEST_OBSERVATION:g} in size, {fix}."
            )


def check_observation_shape(observation: Observations, space: spaces.Space, n_envs: int, context: str) -> None:
    """
    :param observation: observations of all environments
    :param space: observation space of one
    :param n_envs: number of environments
    :param context: where the observations come from, for the message
    :raises ValueError: if the shape of an observation differs from that of its space
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


def raised_by_sb3(error: BaseException) -> bool:
    """
    :param error: caught error
    :return: whether it was raised in Stable-Baselines3, and not in the environment that it called
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("stable_baselines3.")


def check_finite_losses(losses: dict[str, float], n_updates: int) -> None:
    """
    :param losses: losses by name
    :param n_updates: number of updates so far
    :raises ValueError: if one is NaN or infinite
    """
    bad = [name for name, value in losses.items() if not np.isfinite(value)]
    if bad:
        raise ValueError(
            f"Training has diverged: {', '.join(bad)} became NaN or infinite after {n_updates} updates. Resume from an "
            "earlier checkpoint with a lower learning_rate or smaller rewards."
        )


def check_weights(parameters: dict[str, th.Tensor], n_updates: int) -> None:
    """
    :param parameters: of a policy, by name
    :param n_updates: number of updates so far
    :raises ValueError: if one is far too large: the steps of the optimiser were. NaN is seen in the losses
    """
    names = [name for name, value in parameters.items() if value.is_floating_point() and value.numel() > 0]
    if not names:
        return
    largest = th.stack(th._foreach_norm([parameters[name].detach() for name in names], float("inf"))).float()
    if not bool((largest > LARGEST_WEIGHT).any()):
        return
    index = int((largest > LARGEST_WEIGHT).nonzero()[0])
    raise ValueError(
        f"Training has diverged: {names[index]} has reached {float(largest[index]):.3g} after {n_updates} updates. "
        "Resume from an earlier checkpoint with a lower learning_rate."
    )
