"""Running estimate of the spread of the values (TD-MPC2, section 3.1)."""

import torch as th
from torch import nn

from sb3_mpc.common import processes


class RunningScale(nn.Module):
    """
    Moving average S of the range between the 5th and the 95th percentile, never below one.

    S is a buffer of the policy, so that it is part of every checkpoint.

    :param tau: weight of a new estimate
    """

    value: th.Tensor

    def __init__(self, tau: float = 0.01) -> None:
        super().__init__()
        self.tau = tau
        self.register_buffer("value", th.ones(1))
        self.register_buffer("_quantiles", th.tensor([0.05, 0.95]), persistent=False)

    @th.no_grad()
    def update(self, x: th.Tensor) -> None:
        """
        :param x: values of the first time step ``[B, 1]``
        """
        low, high = th.quantile(processes.gather(x.detach().flatten()), self._quantiles)  # type: ignore[arg-type]
        self.value.lerp_((high - low).clamp(min=1.0).reshape(1), self.tau)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: values, any shape
        :return: ``x / S``
        """
        return x / self.value
