"""Actor and critic, as users of SAC know them: views of the world model that share its parameters."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mpc.common.checks.arguments import check_flag
from sb3_mpc.common.checks.data import check_finite_observation
from sb3_mpc.common.execution.transfer import in_float32
from sb3_mpc.common.networks.world_model import WorldModel


def share_parts(view: BaseModel, world_model: WorldModel) -> None:
    """
    :param view: view that uses the model; parts that are its parameters are registered separately
    :param world_model: the model
    """
    object.__setattr__(view, "world_model", world_model)
    object.__setattr__(view, "features_extractor", world_model.encoder.features_extractor)


class _View(BaseModel):
    """A view has no optimiser of its own: says which one trains its part."""

    trained_by: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(
                f"The {type(self).__name__} is a part of the policy and has no optimizer of its own: "
                f"use {self.trained_by}."
            )
        return super().__getattr__(name)


class PriorPolicy(_View, BasePolicy):
    """
    The policy prior with its encoder: acts without planning, for export and comparison.

    It shares its parameters with the policy that it comes from: those of the encoder and of the prior.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param world_model: trained model
    """

    world_model: WorldModel
    trained_by = "policy.pi_optimizer, or one of your own for actor.parameters()"

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Box, world_model: WorldModel) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        share_parts(self, world_model)
        self.encoder, self.prior_net = world_model.encoder, world_model.prior_net

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space, action_space=self.action_space, world_model=self.world_model
        )

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """See SB3; raises ValueError if an observation is not finite."""
        check_finite_observation(observation)
        return super().obs_to_tensor(in_float32(observation, self.device))

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``[..., *shape]``
        :param deterministic: the mode of the prior instead of a sample
        :return: actions ``[..., A]`` in [-1, 1]
        """
        z = self.world_model.encode(observation)
        noise = None if deterministic else th.randn(*z.shape[:-1], self.world_model.action_dim, device=z.device)
        return self.world_model.act(z, noise)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        check_flag("deterministic", deterministic)
        actions: th.Tensor = self(observation, deterministic)
        if not actions.isfinite().all():
            raise ValueError(
                "The policy prior gives an action that is NaN or infinite, so no action was taken: load an earlier "
                "checkpoint, with a lower learning_rate or smaller rewards."
            )
        return actions


class ValueFunctions(_View):
    """
    The value ensemble, applied to encoded observations. The encoder is not among its parameters.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param world_model: trained model
    :param target: whether to use the target networks
    """

    world_model: WorldModel
    trained_by = "policy.model_optimizer, which trains the whole model"

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, world_model: WorldModel, target: bool = False
    ) -> None:
        super().__init__(observation_space, action_space)
        share_parts(self, world_model)
        self.target, self.n_critics = target, world_model.num_q
        self.q_networks = world_model.q_target if target else world_model.q_ensemble

    def forward(self, observation: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param observation: ``[..., *shape]``
        :param actions: ``[..., A]`` in [-1, 1]
        :return: the value of each network ``[..., 1]``
        """
        model = self.world_model
        logits = model.value(model.encode(observation), actions, target=self.target)
        return tuple(model.two_hot.decode(logits))

    def q1_forward(self, observation: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """:return: the value of the first network ``[B, 1]``"""
        return self(observation, actions)[0]
