"""Elementwise operations that are slower in PyTorch on a CPU."""

import math
from functools import reduce
from typing import Any

import torch as th
import torch.nn.functional as F


class _CpuMish(th.autograd.Function):
    """Mish with one exponential: ``x n / (n + 2)`` with ``n = e^x (e^x + 2)``; PyTorch's CPU kernel takes three."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        e = x.clamp(max=20.0).exp_()  # beyond, mish(x) = x in single precision
        n = (e + 2).mul_(e)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, e)
        return n.div_(n + 2).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> th.Tensor:
        x, e = ctx.saved_tensors
        if th.is_grad_enabled():  # to be differentiated again: e is a constant for autograd, x is not
            return th.autograd.grad(F.mish(x), x, grad, create_graph=True)[0]
        n = (e + 2).mul_(e)
        inverse = (n + 2).reciprocal_()
        slope = (e + 1).mul_(e).mul_(inverse).mul_(inverse).mul_(x).mul_(4)
        return n.mul_(inverse).add_(slope).mul_(grad)


def mish(x: th.Tensor) -> th.Tensor:
    """
    :param x: any shape
    :return: ``x tanh(softplus(x))``, equal to ``torch.nn.functional.mish`` up to rounding
    """
    if x.device.type != "cpu" or x.dtype == th.float16:  # in which the exponential overflows
        return F.mish(x)
    # Compilers and tracers get the formula, which they fuse and differentiate themselves
    if th.compiler.is_compiling() or th.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        e = x.clamp(max=20.0).exp()
        n = e * (e + 2)
        return x * (n / (n + 2))
    return _CpuMish.apply(x)  # type: ignore[no-untyped-call]


def grouped_softmax(x: th.Tensor, group_size: int) -> th.Tensor:
    """
    :param x: ``[..., D]``
    :param group_size: number of neighbouring features in a group; divides D
    :return: softmax within each group ``[..., D]``
    """
    groups = x.view(*x.shape[:-1], x.shape[-1] // group_size, group_size)
    if x.device.type != "cpu":
        return F.softmax(groups, dim=-1).flatten(-2)
    if not th.compiler.is_compiling():  # PyTorch's CPU kernel is vectorised along the last dimension only if it is long
        return F.softmax(groups.transpose(-1, -2).contiguous(), dim=-2).transpose(-1, -2).flatten(-2)
    # PyTorch's compiler does not vectorise reductions over a few neighbours; written feature by feature it does
    exponentials = (groups - reduce(th.maximum, groups.unbind(-1)).unsqueeze(-1)).exp()
    return (exponentials / reduce(th.add, exponentials.unbind(-1)).unsqueeze(-1)).flatten(-2)


def dropout_mask(shape: tuple[int, ...], rate: float, generator: th.Generator) -> th.Tensor:
    """
    :param shape: shape of the mask
    :param rate: probability that an entry is dropped, in (0, 1)
    :param generator: source of randomness; the mask is made on its device
    :return: independent entries, 0 with probability ``rate`` and ``1 / (1 - rate)`` otherwise
    """
    scale = 1 / (1 - rate)
    if generator.device.type != "cpu":
        return th.empty(shape, device=generator.device).bernoulli_(1 - rate, generator=generator).mul_(scale)
    # On a CPU it is cheaper to draw the geometric gaps between the few dropped entries
    mask = th.full(shape, scale)
    count = mask.numel()
    draws = int(count * rate + 5 * math.sqrt(count * rate)) + 8
    last = -1
    while last < count - 1:
        gaps = th.empty(draws, dtype=th.float64).exponential_(-math.log1p(-rate), generator=generator).long() + 1
        dropped = gaps.cumsum(0) + last
        last = int(dropped[-1])
        mask.view(-1)[dropped[dropped < count]] = 0
    return mask
