"""Losses of the world model over a window (TD-MPC2, equation 3), shared by all methods."""

from typing import Any, NamedTuple

import torch as th
import torch.nn.functional as F

from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.execution.kernels import dropout_mask
from sb3_mpc.common.networks.layers import draw_members
from sb3_mpc.common.networks.world_model import WorldModel


class UpdateNoise(NamedTuple):
    """
    Random numbers of one gradient update. B windows, horizon H, M value networks, first hidden layer of size W.

    :param shift: image shifts ``[H + 1, B, 2]``, None without images
    :param target_actions: normal draws of the actions in the value targets ``[H, B, A]``
    :param target_members: pair of target value networks ``[2]``
    :param policy_actions: normal draws of the actions in the policy loss ``[H + 1, B, A]``
    :param policy_members: pair of value networks in the policy loss ``[2]``
    :param value_dropout: scaled keep mask of the value loss ``[M, H, B, W]``, None without dropout
    :param policy_dropout: scaled keep mask of the policy loss ``[2, H + 1, B, W]``, None without dropout
    :param extra: further draws of a method, by name
    """

    shift: th.Tensor | None
    target_actions: th.Tensor
    target_members: th.Tensor
    policy_actions: th.Tensor
    policy_members: th.Tensor
    value_dropout: th.Tensor | None = None
    policy_dropout: th.Tensor | None = None
    extra: dict[str, Any] = {}


def draw_update_noise(
    model: WorldModel, horizon: int, batch_size: int, shift: th.Tensor | None, generator: th.Generator
) -> UpdateNoise:
    """
    :param model: world model
    :param horizon: number H of transitions in a window
    :param batch_size: number B of windows
    :param shift: image shifts, drawn by the policy
    :param generator: source of randomness; the noise is on its device
    :return: random numbers of one update
    """

    def normal(steps: int) -> th.Tensor:
        return th.randn(steps, batch_size, model.action_dim, generator=generator, device=generator.device)

    def keep(members: int, steps: int) -> th.Tensor | None:
        if model.dropout == 0 or not model.hidden:
            return None
        return dropout_mask((members, steps, batch_size, model.hidden[0]), model.dropout, generator)

    members = draw_members(2, model.num_q, generator)
    return UpdateNoise(
        shift=shift,
        target_actions=normal(horizon),
        target_members=members[0],
        policy_actions=normal(horizon + 1),
        policy_members=members[1],
        value_dropout=keep(model.num_q, horizon),
        policy_dropout=keep(2, horizon + 1),
    )


def time_slice(observations: th.Tensor | dict[str, th.Tensor], index: int | slice) -> th.Tensor | dict[str, th.Tensor]:
    """
    :param observations: ``[H + 1, B, *shape]`` or a dict of such tensors
    :param index: time steps
    :return: the observations at these steps
    """
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    return observations[index]


def temporal_weights(rho: float, like: th.Tensor) -> th.Tensor:
    """
    :param rho: temporal weight
    :param like: tensor ``[T, ...]``
    :return: ``rho ** t`` as ``[T, 1, 1]``
    """
    return (rho ** th.arange(like.shape[0], device=like.device, dtype=like.dtype)).view(-1, 1, 1)


def n_step_targets(
    rewards: th.Tensor, factors: th.Tensor, values: th.Tensor, mask: th.Tensor, n_steps: int
) -> th.Tensor:
    """
    Value targets of up to ``n_steps`` rewards, as in n-step Q-learning (https://arxiv.org/abs/1602.01783): without a
    correction for actions that the present policy would not take. They end where the window or its episode does.

    :param rewards: ``[H, B, 1]``
    :param factors: discount factors, 0 behind terminations ``[H, B, 1]``
    :param values: values of the states after the transitions ``[H, B, 1]``
    :param mask: 1 for transitions of the window's episode ``[H, B, 1]``
    :param n_steps: number of rewards, at most H
    :return: targets ``[H, B, 1]``
    """
    one = targets = rewards + factors * values
    for _ in range(n_steps - 1):
        longer = rewards[:-1] + factors[:-1] * targets[1:]
        targets = th.cat([th.where(mask[1:] > 0, longer, one[:-1]), one[-1:]])
    return targets


def unroll(model: WorldModel, batch: SequenceBatch, shift: th.Tensor | None) -> th.Tensor:
    """
    Encode the first observation and predict the following latent states from the actions.

    :param model: world model
    :param batch: windows
    :param shift: image shifts ``[H + 1, B, 2]``, if any
    :return: latent states ``[H + 1, B, D]``
    """
    zs = [model.encode(time_slice(batch.observations, 0), None if shift is None else shift[0])]
    for action in batch.actions:
        zs.append(model.next(zs[-1], action))
    return th.stack(zs)


def model_losses(
    model: WorldModel,
    batch: SequenceBatch,
    zs: th.Tensor,
    next_z: th.Tensor,
    targets: th.Tensor,
    rho: float,
    dropout_mask: th.Tensor | None = None,
) -> dict[str, th.Tensor]:
    """
    Losses of dynamics (latent consistency), reward, values and termination. Steps past the end of an episode have
    weight zero; the sums are divided by the full number of steps.

    :param model: world model
    :param batch: windows
    :param zs: predicted latent states ``[H + 1, B, D]``
    :param next_z: encodings of the observations 1 to H ``[H, B, D]``, without gradient
    :param targets: value targets ``[H, B, 1]``
    :param rho: temporal weight
    :param dropout_mask: scaled keep mask of the value ensemble ``[M, H, B, W]``
    :return: losses by name; the termination loss only if the model has the head
    """
    weights = temporal_weights(rho, batch.rewards) * batch.mask
    error = (zs[1:] - next_z).square().sum(-1, keepdim=True) / model.latent_dim
    values = model.value(zs[:-1], batch.actions, dropout_mask=dropout_mask)
    losses = dict(
        consistency=(weights * error).mean(),
        reward=(weights * model.two_hot.loss(model.reward(zs[:-1], batch.actions), batch.rewards)).mean(),
        value=(weights * model.two_hot.loss(values, targets)).mean(),
    )
    if model.termination_head is not None:
        logits = model.termination(zs[1:])
        entropies = F.binary_cross_entropy_with_logits(logits, batch.terminated, reduction="none")
        losses["termination"] = (batch.mask * entropies).mean()
    return losses
