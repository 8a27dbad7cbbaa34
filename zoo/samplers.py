"""Search spaces of Optuna (``train --optimize``), one for each method."""

from collections.abc import Callable
from typing import Any

import optuna

from sb3_mpc import METHODS


def sample_shared(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Hyper-parameters that all methods have. Those that decide the cost of a plan are not searched.

    :param trial: a trial of Optuna
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: not used
    :return: arguments of the constructor
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True),
        "enc_lr_scale": trial.suggest_float("enc_lr_scale", 0.1, 1.0, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [128, 256, 512]),
        "horizon": trial.suggest_int("horizon", 2, 5),
        "rho": trial.suggest_float("rho", 0.3, 0.9),
        "tau": trial.suggest_float("tau", 0.003, 0.03, log=True),
        "entropy_coef": trial.suggest_float("entropy_coef", 1e-5, 1e-3, log=True),
        "temperature": trial.suggest_float("temperature", 0.1, 2.0, log=True),
    }


def sample_tdmpc_square(trial: optuna.Trial, *args: Any) -> dict[str, Any]:
    """See :func:`sample_shared`."""
    return {
        **sample_shared(trial, *args),
        "prior_coef": trial.suggest_float("prior_coef", 0.05, 5.0, log=True),
        "scale_threshold": trial.suggest_float("scale_threshold", 1.0, 5.0),
    }


def sample_bmpc(trial: optuna.Trial, *args: Any) -> dict[str, Any]:
    """See :func:`sample_shared`."""
    return {
        **sample_shared(trial, *args),
        "reanalyze_interval": trial.suggest_categorical("reanalyze_interval", [5, 10, 20, 40]),
        "td_horizon": trial.suggest_int("td_horizon", 1, 3),
    }


def sample_mbdpo(trial: optuna.Trial, *args: Any) -> dict[str, Any]:
    """See :func:`sample_shared`."""
    return {
        **sample_shared(trial, *args),
        "contrastive_eta": trial.suggest_float("contrastive_eta", 1e-3, 0.1, log=True),
        "beta_end": trial.suggest_float("beta_end", 5e-3, 4e-2, log=True),
    }


def sample_fac_tdmpc(trial: optuna.Trial, *args: Any) -> dict[str, Any]:
    """See :func:`sample_shared`."""
    return {
        **sample_shared(trial, *args),
        "distill_learning_rate": trial.suggest_float("distill_learning_rate", 3e-5, 1e-3, log=True),
        "distill_temperature": trial.suggest_float("distill_temperature", 0.3, 3.0, log=True),
        "candidate_std": trial.suggest_float("candidate_std", 0.2, 1.0),
    }


#: Samplers by the keys of the methods: ``sample_<key>`` if there is one, else :func:`sample_shared`
SAMPLERS: dict[str, Callable[..., dict[str, Any]]] = {
    key: globals().get(f"sample_{key}", sample_shared) for key in METHODS
}
