"""The settings and statistics of a ``VecNormalize`` as plain values and tensors."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
PARTS = ("mean", "var", "count")


def normalization_settings(wrapper: VecNormalize) -> dict[str, Any]:
    """
    :param wrapper: normalising wrapper of an environment
    :return: its settings by name
    """
    return {name: getattr(wrapper, name) for name in SETTINGS}


def normalization_tensors(wrapper: VecNormalize) -> dict[str, th.Tensor]:
    """
    :param wrapper: normalising wrapper of an environment
    :return: its statistics by name, in double precision
    """
    return {
        f"{name}/{part}": th.tensor(getattr(statistics, part), dtype=th.float64)
        for name, statistics in _statistics(wrapper).items()
        for part in PARTS
    }


def wrap_normalized(env: VecEnv, settings: dict[str, Any], tensors: dict[str, th.Tensor]) -> VecNormalize:
    """
    :param env: plain environment
    :param settings: as returned by :func:`normalization_settings`
    :param tensors: as returned by :func:`normalization_tensors`
    :return: the environment in a wrapper with fixed statistics, which does not normalise rewards
    :raises ValueError: if the shapes of the statistics do not match the environment
    """
    wrapper = VecNormalize(env, **{name: settings[name] for name in SETTINGS})
    for name, statistics in _statistics(wrapper).items():
        for part in PARTS:
            value = tensors[f"{name}/{part}"].numpy()
            if value.shape != np.shape(getattr(statistics, part)):
                raise ValueError(f"the statistics of {name} have the shape {value.shape}")
            setattr(statistics, part, value if value.shape else value.item())
    wrapper.training, wrapper.norm_reward = False, False
    return wrapper


def _statistics(wrapper: VecNormalize) -> dict[str, RunningMeanStd]:
    observations: Any = wrapper.obs_rms if wrapper.norm_obs else {}
    if not isinstance(observations, dict):
        observations = {"": observations}
    return {"returns": wrapper.ret_rms, **{f"observations/{key}": rms for key, rms in observations.items()}}
