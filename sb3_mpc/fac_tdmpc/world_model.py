"""A factored world model: one small model for each group of action dimensions."""

import copy
from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_mpc.common.networks.gaussian import bound_log_std
from sb3_mpc.common.networks.layers import SimNorm, StackedLinear, make_mlp

LOG_STD_MIN, LOG_STD_MAX = -3.0, 1.0


class GroupedMLP(nn.Module):
    """
    One MLP for each of G groups, evaluated by batched matrix products; equal to a loop over G independent MLPs.

    :param num_groups: number G of groups
    :param in_features: size of the input of each
    :param hidden: sizes of the hidden layers
    :param out_features: size of the output
    :param out_activation: activation after a LayerNorm of the output; a plain linear output that starts at zero if None
    """

    def __init__(
        self,
        num_groups: int,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        out_activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        layers = [StackedLinear(num_groups, n_in, n_out) for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)]
        layers.append(StackedLinear(num_groups, sizes[-1], out_features, out_activation is not None, out_activation))
        if out_activation is None:
            nn.init.zeros_(layers[-1].weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[G, N, in_features]``
        :return: ``[G, N, out_features]``
        """
        for layer in self.layers:
            x = layer(x, None, None, False)
        return x


class ActionGroups(nn.Module):
    """
    Groups of action dimensions. Smaller groups are padded with zeros to the size a of the largest one.

    :param groups: indices of the action dimensions of each of the G groups
    """

    index: th.Tensor
    mask: th.Tensor
    place: th.Tensor

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        width = max(len(group) for group in groups)
        self.num_groups, self.width = len(groups), width
        self.action_dim = sum(len(group) for group in groups)
        padded = [[*group, *[group[0]] * (width - len(group))] for group in groups]
        self.register_buffer("index", th.tensor(padded), persistent=False)
        mask = [[1.0] * len(group) + [0.0] * (width - len(group)) for group in groups]
        self.register_buffer("mask", th.tensor(mask), persistent=False)
        place = {dim: g * width + i for g, group in enumerate(groups) for i, dim in enumerate(group)}
        self.register_buffer("place", th.tensor([place[dim] for dim in range(self.action_dim)]), persistent=False)

    def split(self, x: th.Tensor, dim: int) -> th.Tensor:
        """
        :param x: entries of all action dimensions ``[..., E, ..., A]``
        :param dim: which dimension E is, counted from the front
        :return: entries of the groups ``[..., G * E, ..., a]``, the E rows of the first group first
        """
        parts = (x[..., self.index] * self.mask).movedim(-2, dim)  # [..., G, E, ..., a]
        return parts.flatten(dim, dim + 1)

    def join(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: entries of the groups ``[G * E, ..., a]``
        :return: entries of all action dimensions ``[E, ..., A]``
        """
        parts = x.reshape(self.num_groups, -1, *x.shape[1:]).movedim(0, -2)  # [E, ..., G, a]
        return parts.flatten(-2)[..., self.place]

    def add(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: contributions of the groups ``[G * E, ...]``
        :return: sums over the groups ``[E, ...]``
        """
        return x.reshape(self.num_groups, -1, *x.shape[1:]).sum(0)


class StudentEncoder(nn.Module):
    """
    The student sees what its expert sees: a frozen copy of the expert's encoder, and an MLP that learns. Rankings of
    actions alone teach an encoder of observations slowly.

    :param encoder: the expert's encoder
    :param latent_dim: size of the expert's latent state
    :param hidden: sizes of the hidden layers
    :param student_latent_dim: size G * m of the student's latent state
    :param simnorm_dim: features per simplex
    """

    def __init__(
        self, encoder: nn.Module, latent_dim: int, hidden: Sequence[int], student_latent_dim: int, simnorm_dim: int
    ) -> None:
        super().__init__()
        self.copy = copy.deepcopy(encoder).requires_grad_(False)
        self.head = make_mlp(latent_dim, hidden, student_latent_dim, SimNorm(simnorm_dim))

    def follow(self, encoder: nn.Module) -> None:
        """
        :param encoder: the expert's encoder, which may have learned since it was copied
        """
        self.copy.load_state_dict(encoder.state_dict())

    @property
    def features_extractor(self) -> Any:
        """:return: features extractor of the copy"""
        return self.copy.features_extractor

    def forward(self, observations: PyTorchObs, shift: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: ``[..., *shape]`` or a dict of them
        :param shift: random shifts of image observations ``[..., 2]``, none if None
        :return: latent states of the expert ``[..., D]``; the head makes the student's of them
        """
        with th.no_grad():
            return self.copy(observations, shift)


class FactoredWorldModel(nn.Module):
    """
    Shared encoder, and dynamics, reward and value networks of each action group on its own block of the latent state
    (Fac-TDMPC, section 4.1). Rewards and values are sums over the groups.

    The methods take the blocks of E states as rows ``[G * E, N, m]``, the E rows of the first group first.

    :param encoder: from observations to latent states of the expert, with a head that makes the student's of them
    :param groups: the action groups
    :param latent_dim: size G * m of the latent state
    :param hidden: sizes of the hidden layers of each group's networks
    :param num_q: number M of value networks
    :param simnorm_dim: features per simplex; must divide m
    """

    termination_head = None  # the distilled rewards and values include the expert's terminations

    def __init__(
        self,
        encoder: StudentEncoder,
        groups: ActionGroups,
        latent_dim: int,
        hidden: Sequence[int],
        num_q: int,
        simnorm_dim: int,
    ) -> None:
        super().__init__()
        self.encoder, self.groups = encoder, groups
        self.latent_dim, self.action_dim, self.num_q = latent_dim, groups.action_dim, num_q
        self.hidden = list(hidden)
        block = latent_dim // groups.num_groups
        inputs = block + groups.width

        def mlp(in_features: int, out_features: int, out_activation: nn.Module | None = None) -> GroupedMLP:
            return GroupedMLP(groups.num_groups, in_features, hidden, out_features, out_activation)

        self.dynamics = mlp(inputs, block, SimNorm(simnorm_dim))
        self.reward_head = mlp(inputs, 1)
        self.q_heads = nn.ModuleList(mlp(inputs, 1) for _ in range(num_q))
        self.prior_net = mlp(block, 2 * groups.width)

    def encode(self, observations: th.Tensor | dict[str, th.Tensor], shift: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: ``[..., *shape]`` or a dict of them
        :param shift: random shifts of image observations ``[..., 2]``, none if None
        :return: latent states of the expert ``[..., D]``
        """
        return self.encoder(observations, shift)

    def split(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states of the expert ``[E, D]``
        :return: those of the student, as blocks of the groups ``[G * E, m]``
        """
        z = self.encoder.head(z)
        block = z.shape[-1] // self.groups.num_groups
        # Slices, because ONNX's recipe of Stable-Baselines3 does not take chunk()
        return th.cat([z[..., i * block : (i + 1) * block] for i in range(self.groups.num_groups)])

    def apply_groups(self, network: nn.Module, x: th.Tensor) -> th.Tensor:
        """
        :param network: a grouped MLP
        :param x: ``[G * E, N, in]``
        :return: ``[G * E, N, out]``
        """
        out = network(x.reshape(self.groups.num_groups, -1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])  # not -1: there may be no states

    def next(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: blocks of latent states ``[G * E, N, m]``
        :param action: actions of the groups ``[G * E, N, a]``
        :return: predicted next blocks ``[G * E, N, m]``
        """
        return self.apply_groups(self.dynamics, th.cat([z, action], dim=-1))

    def reward(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: blocks of latent states ``[G * E, N, m]``
        :param action: actions of the groups ``[G * E, N, a]``
        :return: contribution of each group to the reward ``[G * E, N, 1]``
        """
        return self.apply_groups(self.reward_head, th.cat([z, action], dim=-1))

    def value(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: blocks of latent states ``[G * E, N, m]``
        :param action: actions of the groups ``[G * E, N, a]``
        :return: contribution of each group to the values ``[M, G * E, N, 1]``
        """
        x = th.cat([z, action], dim=-1)
        return th.stack([self.apply_groups(head, x) for head in self.q_heads])

    def prior(self, z: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: blocks of latent states ``[G * E, N, m]``
        :return: mean in [-1, 1] and log standard deviation of the groups' policies, both ``[G * E, N, a]``
        """
        out = self.apply_groups(self.prior_net, z)
        mean, raw = out[..., : self.groups.width], out[..., self.groups.width :]
        return th.tanh(mean), bound_log_std(raw, LOG_STD_MIN, LOG_STD_MAX)

    def mode_before_tanh(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states of the expert ``[B, D]``
        :return: modes of the groups' policies before tanh ``[B, A]``
        """
        out = self.apply_groups(self.prior_net, self.split(z).unsqueeze(1))
        return self.groups.join(out[..., : self.groups.width].squeeze(1))

    def act(self, z: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """
        :param z: latent states of the expert ``[..., D]``
        :param noise: standard normal draws ``[..., A]``; the mode if None
        :return: joint actions of the groups' policies ``[..., A]``
        """
        blocks = self.split(z.reshape(-1, z.shape[-1])).unsqueeze(1)
        parts = (self.groups.join(part.squeeze(1)) for part in self.prior(blocks))
        mean, log_std = (part.reshape(*z.shape[:-1], part.shape[-1]) for part in parts)
        return mean if noise is None else (mean + noise * log_std.exp()).clamp(-1, 1)

    def mask_actions(self, z: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        :param z: blocks of latent states ``[G * E, m]``
        :param x: one entry for each action of the groups ``[..., G * E, a]``
        :return: x, set to zero where a smaller group is padded
        """
        return x * self.groups.mask.repeat_interleave(len(z) // self.groups.num_groups, dim=0)
