"""The distillation loss of Fac-TDMPC (section 4.2): the student learns to rank actions as the expert does."""

from typing import NamedTuple

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mpc.common import processes
from sb3_mpc.common.networks.gaussian import gaussian_log_prob
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.fac_tdmpc.world_model import FactoredWorldModel

MIN_SPREAD, SPREAD_TAU = 1e-3, 0.01


class Scores(NamedTuple):
    """
    Predictions of a model for each step of K candidate sequences for each of B segments.

    :param rewards: rewards ``[H + 1, B, K]``
    :param values: values of each of M networks ``[M, H + 1, B, K]``
    """

    rewards: th.Tensor
    values: th.Tensor


class Spread(nn.Module):
    """Running means of the standard deviations of the expert's rewards and values over the candidates."""

    value: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", th.zeros(2))

    def update(self, scores: Scores) -> None:
        """
        :param scores: scores of the expert
        """
        present = th.stack([scores.rewards.std(-1).mean(), scores.values.std(-1).mean()])
        (present,) = processes.average([present])
        started = self.value.any()
        self.value.copy_(th.where(started, self.value.lerp(present, SPREAD_TAU), present).clamp(min=MIN_SPREAD))


@th.no_grad()
def expert_scores(
    model: WorldModel, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, gamma: float
) -> tuple[Scores, th.Tensor, th.Tensor]:
    """
    :param model: the expert's model
    :param z: its latent states ``[B, D]``
    :param actions: candidate sequences ``[H + 1, B, K, A]``
    :param noise: standard normal draws of its policy's actions ``[H + 1, B, K, A]``
    :param gamma: discount factor, for models with state values
    :return: its scores, with values ``[1, H + 1, B, K]``, zero after a predicted termination; actions of its policy in
        the states of the sequences ``[H + 1, B, K, A]``; and 1 until a predicted termination ``[H + 1, B, K, 1]``
    """
    z = z.unsqueeze(1).expand(-1, actions.shape[2], -1)
    alive = th.ones_like(z[..., :1])
    rewards, values, policy_actions, masks = [], [], [], []
    for action, eps in zip(actions, noise, strict=True):
        following = model.next(z, action)
        continues = model.continues(following)
        reward = model.two_hot.decode(model.reward(z, action))
        if model.values_actions:
            value = model.two_hot.decode(model.value(z, action)).mean(0)
        else:
            value = reward + gamma * continues * model.two_hot.decode(model.value(following)).mean(0)
        rewards.append(alive * reward)
        values.append(alive * value)
        policy_actions.append(model.act(z, eps))
        masks.append(alive)
        z, alive = following, alive * continues
    scores = Scores(th.stack(rewards).squeeze(-1), th.stack(values).squeeze(-1).unsqueeze(0))
    return scores, th.stack(policy_actions), th.stack(masks)


def student_scores(model: FactoredWorldModel, z: th.Tensor, actions: th.Tensor) -> tuple[Scores, list[th.Tensor]]:
    """
    :param model: the factored model
    :param z: latent states of the expert ``[B, D]``
    :param actions: candidate sequences ``[H + 1, B, K, A]``
    :return: sums of the groups' scores, and the blocks of the predicted states, ``[G * B, K, m]`` each
    """
    groups = model.groups
    blocks = model.split(z).unsqueeze(1).expand(-1, actions.shape[2], -1)
    rewards, values, states = [], [], []
    for action in groups.split(actions, 1):
        states.append(blocks)
        rewards.append(groups.add(model.reward(blocks, action)))
        values.append(th.stack([groups.add(value) for value in model.value(blocks, action)]))
        blocks = model.next(blocks, action)
    return Scores(th.stack(rewards).squeeze(-1), th.stack(values, dim=1).squeeze(-1)), states


def ranking_loss(
    student: th.Tensor, expert: th.Tensor, spread: th.Tensor, temperature: float, reverse: bool
) -> th.Tensor:
    """
    KL divergence between the softmax distributions of student and expert over the candidates. Both use the expert's
    scale: with a scale of its own, the student's rewards and values could not be added in a plan.

    :param student: scores ``[..., K]``
    :param expert: scores, broadcastable to the student's
    :param spread: scale of the expert's scores
    :param temperature: temperature T of the distributions, in units of the spread
    :param reverse: KL(student, expert) as printed in the paper, instead of KL(expert, student)
    :return: divergences ``[...]``
    """
    log_p, log_q = (th.log_softmax(x / (temperature * spread), dim=-1) for x in (expert.expand_as(student), student))
    if reverse:
        log_p, log_q = log_q, log_p
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def imitation_loss(
    model: FactoredWorldModel, states: list[th.Tensor], expert_actions: th.Tensor, alive: th.Tensor
) -> th.Tensor:
    """
    Negative log-likelihood of the expert policy's actions; the gradient stops at the states.

    :param model: the factored model
    :param states: blocks of the predicted states ``[G * B, K, m]`` of each step
    :param expert_actions: ``[H + 1, B, K, A]``
    :param alive: 1 until the expert predicts a termination, then 0 ``[H + 1, B, K, 1]``
    :return: mean over states and action dimensions, a scalar
    """
    losses = []
    for blocks, action, weight in zip(states, expert_actions, alive, strict=True):
        mean, log_std = (model.groups.join(part) for part in model.prior(blocks.detach()))
        eps = (action - mean) * (-log_std).exp()
        losses.append((weight * -gaussian_log_prob(eps, log_std)).mean() / action.shape[-1])
    return th.stack(losses).mean()
