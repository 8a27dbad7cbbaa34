"""Discrete regression in symlog space (TD-MPC2, section 3.1; DreamerV3)."""

import torch as th
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
    Coding of scalars as distributions over equidistant bins in symlog space.

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

    def cross_entropy(self, logits: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Cross-entropy between the coding of ``x`` and the predicted distribution.

        :param logits: ``[..., K]``
        :param x: scalars ``[..., 1]``; leading dimensions are broadcast
        :return: ``[..., 1]``
        """
        lower, upper, weight = (part.expand(*logits.shape[:-1], 1) for part in self._locate(x))
        log_probs = th.log_softmax(logits, dim=-1)
        return -((1 - weight) * log_probs.gather(-1, lower) + weight * log_probs.gather(-1, upper))
