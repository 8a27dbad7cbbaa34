"""What users of SAC know as actor and critic: views on the world model that share its parameters."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mpc.common.checks import check_finite_observation
from sb3_mpc.common.world_model import WorldModel


class PriorPolicy(BasePolicy):
    """
    The policy prior with its encoder: acts without planning, for export and for comparison.

    It shares its parameters with the policy that it comes from.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param world_model: trained model
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Box, world_model: WorldModel) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.world_model = world_model
        self.features_extractor = world_model.encoder.features_extractor  # type: ignore[assignment]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space, action_space=self.action_space, world_model=self.world_model
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See SB3; a NaN in an observation is refused."""
        check_finite_observation(observation)
        return super().predict(observation, state, episode_start, deterministic)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``[B, *shape]``
        :param deterministic: the mode of the prior instead of a sample
        :return: actions ``[B, A]`` in [-1, 1]
        """
        z = self.world_model.encode(observation)
        noise = None if deterministic else th.randn(z.shape[0], self.world_model.action_dim, device=z.device)
        return self.world_model.act(z, noise)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)


class ValueFunctions(BaseModel):
    """
    The value ensemble with its encoder.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param world_model: trained model
    :param target: whether to look at the slowly moving copy
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, world_model: WorldModel, target: bool = False
    ) -> None:
        super().__init__(observation_space, action_space)
        self.world_model, self.target = world_model, target
        self.features_extractor = world_model.encoder.features_extractor  # type: ignore[assignment]

    def forward(self, observation: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param observation: ``[B, *shape]``
        :param actions: ``[B, A]`` in [-1, 1]
        :return: the value of each network ``[B, 1]``
        """
        model = self.world_model
        logits = model.value(model.encode(observation), actions, target=self.target)
        return tuple(model.two_hot.decode(logits))
