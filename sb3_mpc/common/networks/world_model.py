"""The implicit world model of TD-MPC2 (Hansen et al. 2024, section 3.1)."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch as th
from torch import nn

from sb3_mpc.common.networks.encoders import Encoder
from sb3_mpc.common.networks.gaussian import bound_log_std
from sb3_mpc.common.networks.layers import EnsembleMLP, apply_to_parts, latent_norm, make_mlp
from sb3_mpc.common.networks.two_hot import make_coding

# Initial bias of the termination head, P(termination) of about 2 %: untrained, it should not end plans
TERMINATION_BIAS = -4.0


class WorldModel(nn.Module):
    """
    Encoder h, latent dynamics d, reward R, value ensemble Q, policy prior p and, if it was added, termination head c.

    Every method accepts any number of leading dimensions.

    :param encoder: module from observations to latent states ``[..., D]``
    :param action_dim: number of action dimensions A
    :param latent_dim: size D of the latent state
    :param hidden: sizes of the hidden layers of every head
    :param prior_hidden: sizes of the hidden layers of the policy prior, ``hidden`` if None
    :param num_q: number M of value networks
    :param num_bins: number K of bins of the two-hot coding; 1 and 0 for a regression, see
        :func:`~sb3_mpc.common.networks.two_hot.make_coding`
    :param vmin: symlog value of the first bin
    :param vmax: symlog value of the last bin
    :param simnorm_dim: features per simplex, None for no SimNorm
    :param dropout: dropout rate of the first layer of the value networks while training
    :param log_std_min: smallest log standard deviation of the prior
    :param log_std_max: largest log standard deviation of the prior
    :param layer_norm: whether hidden layers and latent states are normed by LayerNorm
    :param context_dim: size C of features that a derived model adds to the latent state in :meth:`inputs`
    """

    values_actions: ClassVar[bool] = True  # whether values are of actions (Q) or of states (V)

    def __init__(
        self,
        encoder: nn.Module,
        action_dim: int,
        latent_dim: int = 512,
        hidden: Sequence[int] = (512, 512),
        prior_hidden: Sequence[int] | None = None,
        num_q: int = 5,
        num_bins: int = 101,
        vmin: float = -10.0,
        vmax: float = 10.0,
        simnorm_dim: int | None = 8,
        dropout: float = 0.01,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
        layer_norm: bool = True,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.action_dim, self.hidden = latent_dim, action_dim, list(hidden)
        self.input_dim = latent_dim + context_dim
        self.num_q, self.dropout = num_q, dropout
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.two_hot = make_coding(num_bins, vmin, vmax)
        self.make_mlp = partial(make_mlp, layer_norm=layer_norm)  # also of the planner's networks
        self.encoder = encoder
        self.dynamics = self.make_mlp(self.input_dim + action_dim, hidden, latent_dim, latent_norm(simnorm_dim))
        self.reward_head = self.make_mlp(self.input_dim + action_dim, hidden, self.two_hot.num_outputs)
        nn.init.zeros_(self.reward_head[-1].weight)  # type: ignore[arg-type]
        self.prior_net = self.make_mlp(self.input_dim, hidden if prior_hidden is None else prior_hidden, 2 * action_dim)
        value_dim = self.input_dim + (action_dim if self.values_actions else 0)
        values = (num_q, value_dim, hidden, self.two_hot.num_outputs, layer_norm)
        self.q_ensemble = EnsembleMLP(*values)
        self.q_target = EnsembleMLP(*values).requires_grad_(False)
        self.q_target.load_state_dict(self.q_ensemble.state_dict())
        self.termination_head: nn.Sequential | None
        # A place for it from the start: another thread may go through the modules when it is added
        self.register_module("termination_head", None)

    def add_termination_head(self) -> None:
        """Create the termination head; its parameters come last, so that optimisers keep their order."""
        if self.termination_head is None:
            head = self.make_mlp(self.input_dim, self.hidden, 1)
            nn.init.constant_(head[-1].bias, TERMINATION_BIAS)  # type: ignore[arg-type]
            self.termination_head = head.to(next(self.prior_net.parameters()).device)

    def encode(self, observations: th.Tensor | dict[str, th.Tensor], shift: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: ``[..., *shape]`` or a dict of them
        :param shift: random shifts of image observations ``[..., 2]``, none if None
        :return: latent states ``[..., D]``
        """
        return self.encoder(observations, shift)

    def observe(self, observations: th.Tensor | dict[str, th.Tensor], mask: th.Tensor) -> None:
        """
        See :meth:`sb3_mpc.common.networks.encoders.Encoder.observe`; an encoder of another class keeps no statistics.

        :param observations: of replayed windows ``[H + 1, B, *shape]``
        :param mask: of the windows ``[H, B, 1]``
        """
        if isinstance(self.encoder, Encoder):
            self.encoder.observe(observations, mask)

    def inputs(self, z: th.Tensor, action: th.Tensor | None = None) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param action: ``[..., A]``, for the networks that take one
        :return: input of the networks after the encoder ``[..., D + C]`` or ``[..., D + C + A]``
        """
        return z if action is None else th.cat([z, action], dim=-1)

    def constrain(self) -> None:
        """Called after every step of the model's optimiser: bring parameters back to where they belong."""

    def mask_actions(self, z: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param x: one entry for each action dimension ``[..., A]``
        :return: x, set to zero in action dimensions that the task does not have; unchanged here
        """
        return x

    def mask_gaussian(self, z: th.Tensor, mean: th.Tensor, std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: latent states ``[..., D]``
        :param mean: means of Gaussians over actions ``[..., A]``
        :param std: their standard deviations ``[..., A]``
        :return: both, 0 and 1 in action dimensions that the task does not have, as the prior is; unchanged here
        """
        return mean, std

    def num_actions(self, z: th.Tensor) -> th.Tensor | int:
        """
        :param z: latent states ``[..., D]``
        :return: number of action dimensions that the task has, for all states or for each ``[..., 1]``
        """
        return self.action_dim

    def discount(self, z: th.Tensor, gamma: float) -> th.Tensor | float:
        """
        :param z: latent states ``[..., D]``
        :param gamma: discount factor of the agent
        :return: discount factor of the task, for all states or for each ``[..., 1]``
        """
        return gamma

    def apply_head(self, head: nn.Sequential, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param head: network of states and actions
        :param z: latent states ``[..., D]``; if one is expanded to many actions, products with it are computed once
        :param action: ``[..., A]``
        :return: output of the network ``[..., out]``
        """
        expanded = z.ndim > 1 and z.shape[-2] > 1 and z.stride(-2) == 0
        if expanded and type(self).inputs is WorldModel.inputs:  # others may treat actions in a way of their own
            return apply_to_parts(head, z[..., :1, :], action)
        return head(self.inputs(z, action))

    def next(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param action: ``[..., A]``
        :return: predicted next latent states ``[..., D]``
        """
        return self.apply_head(self.dynamics, z, action)

    def reward(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param action: ``[..., A]``
        :return: reward logits ``[..., K]``; ``two_hot.decode`` turns them into scalars
        """
        return self.apply_head(self.reward_head, z, action)

    def termination(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]`` reached by an action
        :return: logit of the probability that the episode terminated there ``[..., 1]``
        """
        assert self.termination_head is not None, "the termination head does not exist yet"
        return self.termination_head(self.inputs(z))

    def continues(self, z: th.Tensor) -> th.Tensor | float:
        """
        :param z: latent states ``[..., D]`` reached by an action
        :return: 0 where the episode is predicted to have terminated, 1 elsewhere ``[..., 1]``
        """
        if self.termination_head is None:
            return 1.0
        logit = self.termination(z)
        return (logit <= 0).to(z.dtype) + 0 * logit.detach()  # not finite where the logit is not: plans look at that

    def prior(self, z: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: latent states ``[..., D]``
        :return: mean before tanh and log standard deviation of the policy prior, both ``[..., A]``
        """
        # Slices and not chunk(): PyTorch's exporter would write a file of opset 17 that ONNX Runtime refuses
        out = self.prior_net(self.inputs(z))
        mean, raw = out[..., : self.action_dim], out[..., self.action_dim :]
        return mean, bound_log_std(raw, self.log_std_min, self.log_std_max)

    def mode_before_tanh(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :return: mode of the policy prior before tanh ``[..., A]``
        """
        return self.prior(z)[0]

    def act(self, z: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param noise: standard normal draws ``[..., A]``; the mode of the prior if None
        :return: actions of the policy prior ``[..., A]`` in [-1, 1]
        """
        mean, log_std = self.prior(z)
        return th.tanh(mean if noise is None else mean + noise * log_std.exp())

    def value(
        self,
        z: th.Tensor,
        action: th.Tensor | None = None,
        members: th.Tensor | None = None,
        dropout_mask: th.Tensor | None = None,
        target: bool = False,
        detach: bool = False,
    ) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param action: ``[..., A]``; ignored by state values
        :param members: indices ``[M']`` of the value networks to evaluate, all of them if None
        :param dropout_mask: see :meth:`EnsembleMLP.forward`
        :param target: whether to use the target networks
        :param detach: gradients reach ``z`` and ``action``, not the parameters
        :return: value logits ``[M', ..., K]``
        """
        ensemble = self.q_target if target else self.q_ensemble
        return ensemble(self.inputs(z, action if self.values_actions else None), members, dropout_mask, detach)

    @th.no_grad()
    def update_target(self, tau: float) -> None:
        """
        :param tau: step of the target value networks towards the online ones
        """
        th._foreach_lerp_(list(self.q_target.parameters()), list(self.q_ensemble.parameters()), tau)
