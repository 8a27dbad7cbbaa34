"""The factored policy: decentralised planning in a factored world model."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule

from sb3_mpc.common.encoders import DictExtractor, PixelExtractor
from sb3_mpc.common.policies import WorldModelPolicy
from sb3_mpc.common.world_model import MODEL_SIZES, WorldModel
from sb3_mpc.fac_tdmpc.distillation import Spread
from sb3_mpc.fac_tdmpc.factored_model import ActionGroups, FactoredWorldModel
from sb3_mpc.fac_tdmpc.factored_planner import FactoredPlanner

MAX_SIMPLEX, MIN_WIDTH = 8, 32


def resolve_groups(action_groups: Sequence[Sequence[int]] | None, action_dim: int) -> list[list[int]]:
    """
    :param action_groups: the user's groups, each dimension for itself if None
    :param action_dim: number of action dimensions
    :return: the groups
    :raises ValueError: unless every dimension is in exactly one group
    """
    groups = [[i] for i in range(action_dim)] if action_groups is None else [list(group) for group in action_groups]
    if not all(groups) or sorted(i for group in groups for i in group) != list(range(action_dim)):
        raise ValueError(
            f"action_groups={action_groups} must name each of the {action_dim} action dimensions (0 to "
            f"{action_dim - 1}) exactly once, as in {[[0], list(range(1, action_dim))] if action_dim > 1 else [[0]]}."
        )
    return groups


class FactoredPolicy(WorldModelPolicy):
    """
    Policy that plans for each action group by itself, see :class:`FactoredPlanner`. ``state`` is that of
    :class:`WorldModelPolicy` with one action more.

    The sizes are those of the expert, of which each of the G groups gets a share: a block of ``latent_dim // G``
    features, and hidden layers of ``mlp_dim // G`` units, but not less than 32. (The paper gives the sum of the blocks;
    the width follows from its computing times.)

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param lr_schedule: learning rate schedule
    :param action_groups: indices of the action dimensions of each group; each dimension for itself if None
    :param model_size: see :class:`WorldModelPolicy`, as for all further arguments
    :param latent_dim: sum of the blocks, rounded down
    :param mlp_dim: sum of the widths of the groups' hidden layers
    :param net_arch: the same for any number of hidden layers
    :param kwargs: further arguments of :class:`WorldModelPolicy`; those of its value coding and prior have no effect
    """

    world_model: FactoredWorldModel  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        action_groups: Sequence[Sequence[int]] | None = None,
        model_size: int = 5,
        latent_dim: int | None = None,
        mlp_dim: int | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        groups = resolve_groups(action_groups, get_action_dim(action_space))
        sizes = MODEL_SIZES.get(model_size, MODEL_SIZES[5])  # a wrong size is complained about below
        block = (latent_dim or sizes["latent_dim"]) // len(groups)
        if block == 0:
            raise ValueError(f"latent_dim={latent_dim} is too small for {len(groups)} action groups: use a larger one.")
        arch = net_arch.get("qf") if isinstance(net_arch, dict) else net_arch
        hidden = arch if arch is not None else [mlp_dim or sizes["mlp_dim"]] * 2
        self._groups = groups
        kwargs |= dict(
            planner_class=FactoredPlanner,
            simnorm_dim=max(v for v in range(1, MAX_SIMPLEX + 1) if block % v == 0),  # no simplex belongs to two groups
            net_arch=[max(min(width, MIN_WIDTH), width // len(groups)) for width in hidden],
        )
        super().__init__(
            observation_space, action_space, lr_schedule, model_size, latent_dim=block * len(groups), **kwargs
        )
        self._init_kwargs |= dict(
            action_groups=action_groups,
            model_size=model_size,
            latent_dim=latent_dim,
            mlp_dim=mlp_dim,
            net_arch=net_arch,
        )
        self.spread = Spread().to(self.device)

    def make_world_model(self, **kwargs: Any) -> WorldModel:
        """:return: the factored world model"""
        names = ("encoder", "latent_dim", "hidden", "num_q")
        groups = ActionGroups(self._groups)
        model: Any = FactoredWorldModel(
            groups=groups, simnorm_dim=kwargs["simnorm_dim"], **{name: kwargs[name] for name in names}
        )
        return model

    def _build_optimizers(self, lr_schedule: Schedule, enc_lr_scale: float) -> None:
        kwargs = dict(self.optimizer_kwargs or {})
        if issubclass(self.optimizer_class, (th.optim.Adam, th.optim.AdamW)):
            kwargs = {"fused": True, **kwargs}
        self.model_optimizer = self.optimizer_class(self.world_model.parameters(), lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def enable_termination(self) -> None:
        """Does nothing: what the expert knows about terminations is part of the distilled rewards and values."""


class FactoredCnnPolicy(FactoredPolicy):
    """Factored policy on images; see :class:`FactoredPolicy` for the arguments."""

    default_features_extractor: type[BaseFeaturesExtractor] = PixelExtractor


class FactoredMultiInputPolicy(FactoredPolicy):
    """Factored policy on dict observations; see :class:`FactoredPolicy` for the arguments."""

    default_features_extractor: type[BaseFeaturesExtractor] = DictExtractor
