"""The policy of Fac-TDMPC: an expert, and the factored student that replaces it."""

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_mpc.common.networks.encoders import DictExtractor, PixelExtractor
from sb3_mpc.common.networks.sizes import MODEL_SIZES, check_layers
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.policies.views import ValueFunctions, share_parts
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.fac_tdmpc.distillation import Spread
from sb3_mpc.fac_tdmpc.planner import FactoredPlanner
from sb3_mpc.fac_tdmpc.world_model import ActionGroups, FactoredWorldModel, StudentEncoder

SIMPLEX, MIN_SIZE, STUDENT_NUM_Q = 8, 32, 2


def resolve_groups(action_groups: Sequence[Sequence[int]] | None, action_dim: int) -> list[list[int]]:
    """
    :param action_groups: the user's groups, one per dimension if None
    :param action_dim: number of action dimensions
    :return: the groups
    :raises ValueError: if not every dimension is in exactly one group
    """
    try:
        given = ((i,) for i in range(action_dim)) if action_groups is None else action_groups
        groups = [[operator.index(i) for i in group if not isinstance(i, (bool, np.bool_))] for group in given]
        complete = all(groups) and sorted(i for group in groups for i in group) == list(range(action_dim))
    except TypeError:  # not a sequence of sequences of whole numbers
        complete = False
    if not complete:
        raise ValueError(
            f"action_groups={action_groups} must name each of the {action_dim} action dimensions (0 to "
            f"{action_dim - 1}) exactly once, and no group may be empty."
        )
    return groups


class FactoredValueFunctions(ValueFunctions):
    """
    The student's value networks, applied to encoded observations; each is a sum over the action groups.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param world_model: the student
    :param target: whether to use a copy of the networks made now, because the student has no target networks
    """

    world_model: FactoredWorldModel  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        world_model: FactoredWorldModel,
        target: bool = False,
    ) -> None:
        BaseModel.__init__(self, observation_space, action_space)
        share_parts(self, world_model)  # type: ignore[arg-type]
        self.target, self.n_critics = target, world_model.num_q
        networks = copy.deepcopy(world_model.q_heads) if target else world_model.q_heads
        self.q_networks: nn.ModuleList = networks  # type: ignore[assignment]

    def forward(self, observation: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param observation: ``[B, *shape]``
        :param actions: ``[B, A]`` in [-1, 1]
        :return: the value of each network ``[B, 1]``
        """
        model = self.world_model
        blocks, groups = model.split(model.encode(observation)), model.groups
        x = th.cat([blocks, groups.split(actions, 0)], dim=-1).unsqueeze(1)
        return tuple(groups.add(model.apply_groups(network, x).squeeze(1)) for network in self.q_networks)


class FactoredPolicy(WorldModelPolicy):
    """
    A :class:`WorldModelPolicy`, the expert, with a factored student. The expert acts until the student is distilled;
    after that the student acts, whose ``state`` has one action more than the expert's.

    The sizes of the expert are divided among the G groups of the student, unless ``student_latent_dim`` and
    ``student_net_arch`` are given: each has a block of ``latent_dim // G`` latent features and hidden layers of
    ``mlp_dim // G`` units, but at least 32 of both, or all that the expert has. (The paper states the sum of the
    blocks; the width is inferred from its computing times, and the least sizes are ours, for small experts.)

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param lr_schedule: learning rate schedule of the expert
    :param action_groups: indices of the action dimensions of each group; one group per dimension if None
    :param student_latent_dim: number of latent features of all groups together, at least 8 for each; as above if None
    :param student_net_arch: sizes of the hidden layers of each group's networks; the expert's divided by G if None
    :param student_learning_rate: learning rate of the student
    :param student_planner_kwargs: arguments of the student's planner
    :param distilled: whether the student acts
    :param kwargs: arguments of :class:`WorldModelPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        action_groups: Sequence[Sequence[int]] | None = None,
        student_latent_dim: int | None = None,
        student_net_arch: Sequence[int] | None = None,
        student_learning_rate: float = 1e-4,
        student_planner_kwargs: dict[str, Any] | None = None,
        distilled: bool = False,
        **kwargs: Any,
    ) -> None:
        self._groups = resolve_groups(action_groups, get_action_dim(action_space))
        check_layers("student_net_arch", student_net_arch)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._init_kwargs |= dict(
            action_groups=action_groups,
            student_latent_dim=student_latent_dim,
            student_net_arch=student_net_arch,
            student_learning_rate=student_learning_rate,
            student_planner_kwargs=student_planner_kwargs,
        )
        self.reset_student()
        self.use_student(distilled)

    def reset_student(self) -> None:
        """Initialise the student and its optimisers again."""
        init = self._init_kwargs
        sizes = {name: init[name] or size for name, size in MODEL_SIZES[init["model_size"]].items()}
        count = len(self._groups)
        least = SIMPLEX if init["student_latent_dim"] else min(sizes["latent_dim"], MIN_SIZE)
        block = max((init["student_latent_dim"] or sizes["latent_dim"]) // count, least, SIMPLEX)
        if block > SIMPLEX and all(block % v for v in range(2, SIMPLEX + 1)):
            block -= block % SIMPLEX  # a simplex of one feature is always 1
        simplex = max(v for v in range(1, SIMPLEX + 1) if block % v == 0)  # no simplex belongs to two groups
        arch = init["net_arch"].get("qf") if isinstance(init["net_arch"], dict) else init["net_arch"]
        shares = [max(min(w, MIN_SIZE), w // count) for w in (arch or [sizes["mlp_dim"]] * 2)]
        hidden = shares if init["student_net_arch"] is None else list(init["student_net_arch"])
        expert = self.world_model
        encoder = StudentEncoder(expert.encoder, expert.latent_dim, [sizes["enc_dim"]], block * count, simplex)
        student = FactoredWorldModel(encoder, ActionGroups(self._groups), block * count, hidden, STUDENT_NUM_Q, simplex)
        self.student = student.to(next(self.world_model.parameters()).device).train(self.training)
        self.spread = Spread().to(self.device)
        self.student_planner = FactoredPlanner(self.student, expert, **(init["student_planner_kwargs"] or {}))
        kwargs = dict(self.optimizer_kwargs or {})
        if issubclass(self.optimizer_class, (th.optim.Adam, th.optim.AdamW)):
            kwargs = {"fused": True, **kwargs}
        prior = list(self.student.prior_net.parameters())
        known = {id(parameter) for parameter in prior}
        kwargs["lr"] = init["student_learning_rate"]
        self.student_optimizer = self.optimizer_class(
            [p for p in self.student.parameters() if p.requires_grad and id(p) not in known], **kwargs
        )
        self.student_pi_optimizer = self.optimizer_class(prior, **kwargs)

    def use_student(self, distilled: bool) -> None:
        """
        :param distilled: whether the student acts from now on, or the expert
        """
        self.distilled = self._init_kwargs["distilled"] = distilled
        self._bank, self._compiled_plan = None, None

    def active(self) -> tuple[WorldModel, MPPIPlanner]:
        """:return: model and planner of the student after the distillation, of the expert before"""
        if not self.distilled:
            return super().active()
        model: Any = self.student
        return model, self.student_planner

    @property
    def critic(self) -> ValueFunctions:
        """
        :return: the values of the model that acts. The student's values rank actions; their level is not the expert's,
            because the distillation does not determine it.
        """
        return self._factored_values("critic") if self.distilled else super().critic

    @property
    def critic_target(self) -> ValueFunctions:
        """:return: target networks of the expert, or a copy of the student's networks, which has none"""
        return self._factored_values("critic_target", target=True) if self.distilled else super().critic_target

    def _factored_values(self, name: str, **kwargs: Any) -> ValueFunctions:
        model: Any = self.student
        return self._view(FactoredValueFunctions, name, model, **kwargs)

    def copy_expert(self, expert: WorldModelPolicy) -> None:
        """
        :param expert: policy whose parameters are copied to the expert of this policy
        :raises ValueError: if its networks have other sizes
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith(("student.", "spread."))}
        try:
            self.load_state_dict({**expert.state_dict(), **own})
        except RuntimeError as error:
            raise ValueError(
                "The policy_kwargs give network sizes other than the expert's: leave them out, and set those of the "
                "student by student_latent_dim and student_net_arch."
            ) from error


class FactoredCnnPolicy(FactoredPolicy):
    """Factored policy on images; see :class:`FactoredPolicy` for the arguments."""

    default_features_extractor: type[BaseFeaturesExtractor] = PixelExtractor


class FactoredMultiInputPolicy(FactoredPolicy):
    """Factored policy on dict observations; see :class:`FactoredPolicy` for the arguments."""

    default_features_extractor: type[BaseFeaturesExtractor] = DictExtractor
