"""The tanh-squashed Gaussian of the policy prior and its log-densities."""

import math

import torch as th

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def bound_log_std(raw: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    :param raw: unbounded network output, any shape
    :param low: smallest log standard deviation
    :param high: largest log standard deviation
    :return: ``low + (high - low) (tanh(raw) + 1) / 2``
    """
    return low + 0.5 * (high - low) * (th.tanh(raw) + 1)


def gaussian_log_prob(noise: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    Log-density of a diagonal Gaussian at ``mean + noise * std``.

    :param noise: standard normal draws ``[..., A]``
    :param log_std: ``[..., A]``
    :return: ``[..., 1]``
    """
    return (-0.5 * noise.square() - log_std - LOG_SQRT_2PI).sum(-1, keepdim=True)


def gaussian_kl(mean: th.Tensor, std: th.Tensor, other_mean: th.Tensor, other_std: th.Tensor) -> th.Tensor:
    """
    :param mean: mean of p ``[..., A]``
    :param std: standard deviation of p ``[..., A]``
    :param other_mean: mean of q ``[..., A]``
    :param other_std: standard deviation of q ``[..., A]``
    :return: ``KL(p || q)`` in each dimension ``[..., A]``
    """
    return (other_std / std).log() + (std.square() + (mean - other_mean).square()) / (2 * other_std.square()) - 0.5


def squash_correction(action: th.Tensor) -> th.Tensor:
    """
    Log-determinant of tanh, to be subtracted from the density before squashing.

    :param action: squashed action ``[..., A]``
    :return: ``[..., 1]``
    """
    return th.log(th.relu(1 - action.square()) + 1e-6).sum(-1, keepdim=True)
