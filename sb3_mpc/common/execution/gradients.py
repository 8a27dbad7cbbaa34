"""Gradient steps in two parts: gradients, which can be compiled, and the optimiser, whose fused kernels need not be."""

import torch as th

from sb3_mpc.common import processes

Gradients = list[th.Tensor | None]  # of each parameter, None if it was not used


def trained_parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """:return: parameters of the optimiser that are not frozen"""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def clipped_gradients(loss: th.Tensor, parameters: list[th.Tensor], max_norm: float) -> tuple[Gradients, th.Tensor]:
    """
    :param loss: scalar
    :param parameters: parameters that it trains
    :param max_norm: bound on the norm of all gradients together
    :return: gradients, averaged over the processes that train together, and their norm before they are scaled to the
        bound
    """
    found = th.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    # Fused optimisers read gradients in the order of the parameters in memory; those of products may be transposed
    gradients = [gradient.contiguous() for gradient in found if gradient is not None]
    if not gradients:  # the user has frozen them
        return [], th.zeros((), device=loss.device)
    gradients = processes.average(gradients)
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm(gradients)))
    clipped = iter(th._foreach_mul(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0)))
    return [None if gradient is None else next(clipped) for gradient in found], norm


def apply_gradients(optimizer: th.optim.Optimizer, parameters: list[th.Tensor], gradients: Gradients) -> None:
    """
    :param optimizer: optimiser, which does not step without any gradient
    :param parameters: parameters that it trains
    :param gradients: their gradients
    """
    if gradients:
        optimizer.zero_grad()  # parameters that were frozen meanwhile would go on by their last gradient
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def gradient_step(optimizer: th.optim.Optimizer, loss: th.Tensor, max_norm: float) -> th.Tensor:
    """
    :param optimizer: optimiser of the parameters that the loss trains
    :param loss: scalar
    :param max_norm: bound on the norm of the gradients
    :return: norm of the gradients before they are scaled to the bound
    """
    parameters = trained_parameters(optimizer)
    gradients, norm = clipped_gradients(loss, parameters, max_norm)
    apply_gradients(optimizer, parameters, gradients)
    return norm
