"""World models and planners of BMPC: a clamped Gaussian prior, and state values instead of action values."""

from typing import Any, ClassVar

import torch as th

from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.planner import MPPIPlanner


class ClampedPriorModel(WorldModel):
    """World model with a Gaussian prior whose sampled actions are clamped."""

    def gaussian(self, z: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: latent states ``[..., D]``
        :return: mean in [-1, 1] and log standard deviation of the prior, both ``[..., A]``
        """
        mean, log_std = self.prior(z)
        return th.tanh(mean), log_std

    def act(self, z: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param noise: standard normal draws ``[..., A]``; the mode of the prior if None
        :return: actions of the policy prior ``[..., A]`` in [-1, 1]
        """
        mean, log_std = self.gaussian(z)
        return mean if noise is None else (mean + noise * log_std.exp()).clamp(-1, 1)


class StateValueModel(ClampedPriorModel):
    """The same with an ensemble of state values in place of action values."""

    values_actions: ClassVar[bool] = False


class StateValuePlanner(MPPIPlanner):
    """MPPI with the value of the last state as terminal value; the arguments are those of its base class."""

    needs_terminal_action: ClassVar[bool] = False

    def terminal_value(self, z: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        :param z: latent states at the end of the horizon ``[E, N, D]``
        :param noise: not used
        :param members: pair of value networks ``[2]``
        :return: values ``[E, N, 1]``
        """
        model = self.world_model
        return self.reduce(model.two_hot.decode(model.value(z, members=self.networks(members))))


class ExploringPlanner(MPPIPlanner):
    """
    Planner of the reanalysis: the prior proposes actions with another range of standard deviations.

    :param args: arguments of the base class
    :param log_std_range: bounds of the log standard deviation of the proposals
    :param kwargs: arguments of the base class
    """

    world_model: ClampedPriorModel

    def __init__(self, *args: Any, log_std_range: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_std_range = log_std_range

    def act(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param noise: standard normal draws ``[..., A]``
        :return: proposed actions ``[..., A]`` in [-1, 1]
        """
        model, (low, high) = self.world_model, self.log_std_range
        mean, log_std = model.gaussian(z)
        position = (log_std - model.log_std_min) / (model.log_std_max - model.log_std_min)
        noise = model.mask_actions(z, noise)
        return (mean + noise * (low + (high - low) * position).exp()).clamp(-1, 1)


class ReanalyzePlanner(ExploringPlanner, StateValuePlanner):
    """:class:`ExploringPlanner` with state values; the arguments are the same."""
