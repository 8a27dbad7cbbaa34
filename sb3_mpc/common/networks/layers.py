"""Network blocks of the TD-MPC2 family: LayerNorm-Mish MLPs, simplicial latents and stacked ensembles."""

from collections.abc import Sequence

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mpc.common.execution.acceleration import full_precision
from sb3_mpc.common.execution.kernels import grouped_softmax, mish

INIT_STD = 0.02


class Mish(nn.Module):
    """Mish activation, ``x tanh(softplus(x))``."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: any shape
        :return: same shape
        """
        return mish(x)


class SimNorm(nn.Module):
    """
    Simplicial normalisation (TD-MPC2, section 3.1): softmax over groups of ``group_size`` features.

    :param group_size: features per simplex; must divide the size of the last dimension
    """

    def __init__(self, group_size: int = 8) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: features ``[..., D]``
        :return: ``[..., D]``, each group non-negative and summing to one
        """
        return grouped_softmax(x, self.group_size)

    def extra_repr(self) -> str:
        """:return: arguments to show in ``repr``"""
        return f"group_size={self.group_size}"


class NormedLinear(nn.Linear):
    """
    Linear layer followed by LayerNorm and an activation.

    :param in_features: size of the input
    :param out_features: size of the output
    :param activation: module applied last, Mish by default
    :param layer_norm: whether there is the LayerNorm
    """

    def __init__(
        self, in_features: int, out_features: int, activation: nn.Module | None = None, layer_norm: bool = True
    ) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features) if layer_norm else nn.Identity()
        self.activation = Mish() if activation is None else activation

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[..., in_features]``
        :return: ``[..., out_features]``
        """
        return self.finish(super().forward(x))

    def finish(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: linear output ``[..., out_features]``
        :return: the same after LayerNorm and activation
        """
        return self.activation(self.ln(x.to(self.weight.dtype)))


class OutputLinear(nn.Linear):
    """
    Linear output layer of a network. It is computed in float32 even if the layers before it are not, because values and
    rewards rounded to bfloat16 are too inexact for planning.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[..., in_features]``
        :return: ``[..., out_features]``
        """
        with full_precision(x):
            return super().forward(x)


def latent_norm(simnorm_dim: int | None) -> nn.Module:
    """
    :param simnorm_dim: features per simplex, None for latent states without SimNorm (an ablation of TD-MPC2's paper)
    :return: activation of the layers whose output is a latent state
    """
    return nn.Identity() if simnorm_dim is None else SimNorm(simnorm_dim)


def make_mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    out_activation: nn.Module | None = None,
    layer_norm: bool = True,
) -> nn.Sequential:
    """
    MLP of :class:`NormedLinear` layers with a plain linear output, or a normed one if ``out_activation`` is given.

    :param in_features: size of the input
    :param hidden: sizes of the hidden layers
    :param out_features: size of the output
    :param out_activation: activation after the LayerNorm of the output layer
    :param layer_norm: whether the layers have the LayerNorm
    :return: the network, initialised as in TD-MPC2
    """
    sizes = [in_features, *hidden]
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    layers: list[nn.Module] = [NormedLinear(n_in, n_out, layer_norm=layer_norm) for n_in, n_out in pairs]
    if out_activation is None:
        layers.append(OutputLinear(sizes[-1], out_features))
    else:
        layers.append(NormedLinear(sizes[-1], out_features, out_activation, layer_norm))
    return nn.Sequential(*layers).apply(init_linear)


def apply_to_parts(network: nn.Sequential, shared: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    Apply a network to a concatenation whose first part is the same for many rows; its product is computed once.

    :param network: see :func:`make_mlp`
    :param shared: first part of the input, broadcast to the other one ``[..., 1, S]``
    :param x: second part of the input ``[..., N, R]``
    :return: ``network(cat([shared, x]))`` up to rounding ``[..., N, out_features]``
    """
    first = network[0]
    if not isinstance(first, NormedLinear):  # a network without hidden layers
        return network(th.cat([shared.expand(*x.shape[:-1], -1), x], dim=-1))
    known, rest = first.weight[:, : shared.shape[-1]], first.weight[:, shared.shape[-1] :]
    x = first.finish(F.linear(shared, known, first.bias).float() + F.linear(x, rest))
    for layer in list(network)[1:]:
        x = layer(x)
    return x


def init_linear(module: nn.Module) -> None:
    """
    Initialise a linear layer as TD-MPC2 does: weights normal with std 0.02, biases zero. Other modules are left alone.

    (The official code calls a truncated normal with cuts at +-2, which at this std never truncates.)

    :param module: candidate module, as passed by ``nn.Module.apply``
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


def forget(network: nn.Module) -> None:
    """
    Initialise a network of this module as new.

    :param network: MLP
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, StackedLinear)):
            module.reset_parameters()
    network.apply(init_linear)


class StackedLinear(nn.Module):
    """
    ``num_members`` independent linear layers kept as one tensor, optionally with LayerNorm and an activation.

    :param num_members: size M of the ensemble
    :param in_features: size of the input
    :param out_features: size of the output
    :param normed: whether LayerNorm and the activation follow
    :param activation: Mish by default
    :param layer_norm: whether a normed layer has the LayerNorm; otherwise only the activation follows
    """

    def __init__(
        self,
        num_members: int,
        in_features: int,
        out_features: int,
        normed: bool = True,
        activation: nn.Module | None = None,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.empty(num_members, out_features, in_features))
        self.bias = nn.Parameter(th.empty(num_members, out_features))
        self.normed, self.layer_norm = normed, normed and layer_norm
        self.activation = Mish() if activation is None else activation
        if self.layer_norm:
            self.ln_weight = nn.Parameter(th.empty(num_members, out_features))
            self.ln_bias = nn.Parameter(th.empty(num_members, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the layer as new."""
        nn.init.normal_(self.weight, std=INIT_STD)
        nn.init.zeros_(self.bias)
        if self.layer_norm:
            nn.init.ones_(self.ln_weight)
            nn.init.zeros_(self.ln_bias)

    def forward(
        self, x: th.Tensor, members: th.Tensor | None, dropout_mask: th.Tensor | None, detach: bool
    ) -> th.Tensor:
        """
        :param x: ``[M or 1, N, in_features]``
        :param members: indices ``[K]`` of the members to evaluate, all of them if None
        :param dropout_mask: ``[K, N, out_features]``, multiplied into the linear output
        :param detach: treat the parameters as constants
        :return: ``[K, N, out_features]``
        """

        def pick(parameter: th.Tensor) -> th.Tensor:
            parameter = parameter.detach() if detach else parameter
            return parameter if members is None else parameter.index_select(0, members)

        weight, bias = pick(self.weight), pick(self.bias)
        if not self.normed:  # as in OutputLinear
            with full_precision(x):
                return self._multiply(x, weight, bias)
        x = self._multiply(x, weight, bias).to(weight.dtype)
        if dropout_mask is not None:
            x = x * dropout_mask
        if self.layer_norm:
            x = F.layer_norm(x, x.shape[-1:])
            x = th.addcmul(pick(self.ln_bias).unsqueeze(1), x, pick(self.ln_weight).unsqueeze(1))
        return self.activation(x)

    @staticmethod
    def _multiply(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        return th.baddbmm(bias.unsqueeze(1), x.expand(weight.shape[0], -1, -1), weight.transpose(1, 2))


class EnsembleMLP(nn.Module):
    """
    Ensemble of MLPs of equal shape, evaluated by batched matrix products. Only the members asked for are computed.

    The output layers start at zero, so that a new ensemble predicts the uniform distribution over bins.

    :param num_members: size M of the ensemble
    :param in_features: size of the input
    :param hidden: sizes of the hidden layers
    :param out_features: size of the output
    :param layer_norm: whether the hidden layers have the LayerNorm
    """

    def __init__(
        self, num_members: int, in_features: int, hidden: Sequence[int], out_features: int, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.num_members = num_members
        sizes = [in_features, *hidden]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleList(
            StackedLinear(num_members, n_in, n_out, layer_norm=layer_norm) for n_in, n_out in pairs
        )
        self.layers.append(StackedLinear(num_members, sizes[-1], out_features, normed=False))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(
        self,
        x: th.Tensor,
        members: th.Tensor | None = None,
        dropout_mask: th.Tensor | None = None,
        detach: bool = False,
    ) -> th.Tensor:
        """
        :param x: input shared by all members ``[..., in_features]``
        :param members: indices ``[K]`` of the members to evaluate, all of them if None
        :param dropout_mask: scaled keep mask of the first hidden layer ``[K, ..., hidden[0]]``
        :param detach: treat the parameters as constants, so that gradients reach ``x`` only
        :return: ``[K, ..., out_features]``
        """
        batch_shape = x.shape[:-1]
        out = x.reshape(1, -1, x.shape[-1])
        mask = None if dropout_mask is None else dropout_mask.flatten(1, -2)
        for i, layer in enumerate(self.layers):
            out = layer(out, members, mask if i == 0 else None, detach)
        return out.reshape(out.shape[0], *batch_shape, out.shape[-1])


def draw_members(count: int, num_q: int, generator: th.Generator) -> th.Tensor:
    """
    Draw pairs of different value networks.

    :param count: number of pairs
    :param num_q: number of networks; a single network is paired with itself
    :param generator: source of randomness; the result is on its device
    :return: indices ``[count, 2]``
    """
    if num_q == 1:
        return th.zeros(count, 2, dtype=th.long, device=generator.device)
    scores = th.rand(count, num_q, generator=generator, device=generator.device)
    return scores.argsort(dim=1)[:, :2]
