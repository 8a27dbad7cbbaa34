"""
How networks express rewards and values: as a distribution over bins in symlog space (TD-MPC2, section 3.1; DreamerV3),
or as one number.
"""

import torch as th
import torch.nn.functional as F
from torch import nn


def symlog(x: th.Tensor) -> th.Tensor:
    """
    :param x: any shape
    :return: ``sign(x) ln(1 + |x|)``, same shape
    """
    return th.sign(x) * th.log1p(th.abs(x))


def symexp(x: th.Tensor) -> th.Tensor:
    """
    Inverse of :func:`symlog`.

    :param x: any shape
    :return: ``sign(x) (exp(|x|) - 1)``, same shape
    """
    return th.sign(x) * th.expm1(th.abs(x))


class TwoHot(nn.Module):
    """
    Coding of scalars as distributions over equidistant bins in symlog space, which cross-entropy trains.

    :param num_bins: number of bins K, at least 2
    :param vmin: symlog value of the first bin
    :param vmax: symlog value of the last bin
    """

    bins: th.Tensor

    def __init__(self, num_bins: int = 101, vmin: float = -10.0, vmax: float = 10.0) -> None:
        super().__init__()
        if num_bins < 2 or not vmin < vmax:
            raise ValueError(f"Two-hot coding needs num_bins >= 2 and vmin < vmax, got {num_bins=}, {vmin=}, {vmax=}.")
        self.num_bins, self.vmin, self.vmax = num_bins, vmin, vmax
        self.num_outputs = num_bins  # of a network
        self.bin_size = (vmax - vmin) / (num_bins - 1)
        self.register_buffer("bins", th.linspace(vmin, vmax, num_bins), persistent=False)

    def _locate(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param x: scalars ``[..., 1]``
        :return: lower bin, upper bin (both int64 ``[..., 1]``) and the weight of the upper one
        """
        position = (symlog(x).clamp(self.vmin, self.vmax) - self.vmin) / self.bin_size
        lower = position.floor().clamp(max=self.num_bins - 1)
        upper = (lower + 1).clamp(max=self.num_bins - 1)  # at vmax the upper bin has weight zero
        # NaN as an index would be out of bounds; it stays in the weight, so that the loss is NaN
        return lower.long().clamp(min=0), upper.long().clamp(min=0), position - lower

    def encode(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: scalars ``[..., 1]``
        :return: probabilities ``[..., K]``, non-zero in the two bins next to ``symlog(x)``
        """
        lower, upper, weight = self._locate(x)
        target = th.zeros(*x.shape[:-1], self.num_bins, dtype=x.dtype, device=x.device)
        return target.scatter_add_(-1, lower, 1 - weight).scatter_add_(-1, upper, weight)

    def decode(self, logits: th.Tensor) -> th.Tensor:
        """
        The expectation is taken in symlog space and then inverted.

        :param logits: ``[..., K]``
        :return: scalars ``[..., 1]``
        """
        # A sum, because a matrix product would be computed in bfloat16 in plans of reduced precision
        return symexp((th.softmax(logits, dim=-1) * self.bins).sum(-1, keepdim=True))

    def loss(self, logits: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Cross-entropy between the coding of ``x`` and the predicted distribution.

        :param logits: ``[..., K]``
        :param x: scalars ``[..., 1]``; leading dimensions are broadcast
        :return: ``[..., 1]``
        """
        lower, upper, weight = (part.expand(*logits.shape[:-1], 1) for part in self._locate(x))
        log_probs = th.log_softmax(logits, dim=-1)
        return -((1 - weight) * log_probs.gather(-1, lower) + weight * log_probs.gather(-1, upper))


class Regression(nn.Module):
    """
    One number in place of a distribution, which the squared error trains (an ablation of TD-MPC2's paper).

    :param symlog: whether the number is the symlog of the scalar
    """

    num_outputs = 1  # of a network

    def __init__(self, symlog: bool = True) -> None:
        super().__init__()
        self.symlog = symlog

    def encode(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: scalars ``[..., 1]``
        :return: what a network learns ``[..., 1]``
        """
        return symlog(x) if self.symlog else x

    def decode(self, output: th.Tensor) -> th.Tensor:
        """
        :param output: ``[..., 1]``
        :return: scalars ``[..., 1]``
        """
        return symexp(output) if self.symlog else output

    def loss(self, output: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        :param output: ``[..., 1]``
        :param x: scalars ``[..., 1]``; leading dimensions are broadcast
        :return: squared error ``[..., 1]``
        """
        return F.mse_loss(output, self.encode(x).expand_as(output), reduction="none")

    def extra_repr(self) -> str:
        """:return: arguments to show in ``repr``"""
        return f"symlog={self.symlog}"


def make_coding(num_bins: int, vmin: float = -10.0, vmax: float = 10.0) -> TwoHot | Regression:
    """
    :param num_bins: number of bins; as in the official code, 1 for a regression of the symlog, 0 for one of the scalar
    :param vmin: symlog value of the first bin
    :param vmax: symlog value of the last bin
    :return: coding of rewards and values
    """
    return Regression(symlog=num_bins == 1) if num_bins in (0, 1) else TwoHot(num_bins, vmin, vmax)
