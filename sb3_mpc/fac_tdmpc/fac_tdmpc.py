"""Fac-TDMPC: a factored world model distilled from a trained agent."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from tqdm import trange

from sb3_mpc.common.acceleration import compile_function, resolve_compile
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.checks import check_finite_losses
from sb3_mpc.common.losses import at, temporal_weights
from sb3_mpc.common.policies import CnnPolicy, MultiInputPolicy, WorldModelPolicy
from sb3_mpc.common.sequence_buffer import SequenceBatch, SequenceReplayBuffer
from sb3_mpc.fac_tdmpc.distillation import expert_scores, imitation_loss, ranking_loss, student_scores
from sb3_mpc.fac_tdmpc.policies import FactoredCnnPolicy, FactoredMultiInputPolicy, FactoredPolicy
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

SelfFacTDMPC = TypeVar("SelfFacTDMPC", bound="FacTDMPC")

MAX_DISTILL_STEPS = 100_000  # the paper's number
EXPERT_CLASSES: dict[type[BasePolicy], type[WorldModelPolicy]] = {
    FactoredPolicy: WorldModelPolicy,
    FactoredCnnPolicy: CnnPolicy,
    FactoredMultiInputPolicy: MultiInputPolicy,
}


class FacTDMPC(TDMPC2):
    """
    Fac-TDMPC: a trained agent is distilled into a world model that is factored over action dimensions, so that each of
    them plans for itself at a fraction of the cost. There is no official code; open points are settled as said below.

    The student sees no reward and no target: for segments of the replay buffer, K random variations of the actions are
    rolled out in both models, and student and expert are to rank them alike:

    ``L = E sum_h rho^h [c_R KL(R_h^expert, R_h) + c_Q KL(Q_h^expert, Q_h)]``

    with distributions over the K candidates, ``softmax(reward / (T s))`` and ``softmax(value / (T s))``, where s is the
    running spread of the expert's scores over the candidates (the paper names no temperature). A policy prior for each
    group is fitted beside it, for acting without planning; planning does not use it.

    :meth:`learn` first trains a TD-MPC2 agent as expert and then distils it; with ``expert`` it only collects with that
    agent before. :meth:`distill` needs no environment. Until the student exists, the expert acts.

    The arguments of :class:`sb3_mpc.TDMPC2` belong to the expert; planner settings and ``policy_kwargs`` to both.

    :param expert: trained agent of this package to distil, with ``WorldModelPolicy``; None to train one
    :param action_groups: indices of the action dimensions that plan together, such as ``[[0, 1], [2, 3]]``; each
        dimension for itself if None
    :param distill_steps: updates of the student after each :meth:`learn`; "auto" for as many as environment steps, at
        most the paper's 100,000
    :param distill_batch_size: number of segments in a batch
    :param distill_learning_rate: learning rate of the student
    :param distill_reward_coef: weight c_R
    :param distill_value_coef: weight c_Q
    :param distill_max_grad_norm: bound on the norm of the student's gradient
    :param num_candidates: number K of variations of a segment
    :param candidate_std: standard deviation of the variations, added to the actions
    :param distill_temperature: temperature T
    :param kl_direction: "forward" as above, or "reverse" with student and expert exchanged, as the paper prints it
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FactoredPolicy,
        "CnnPolicy": FactoredCnnPolicy,
        "MultiInputPolicy": FactoredMultiInputPolicy,
    }
    expert: WorldModelPolicy
    student: FactoredPolicy

    def __init__(
        self,
        *args: Any,
        expert: WorldModelAlgorithm | None = None,
        action_groups: Sequence[Sequence[int]] | None = None,
        distill_steps: int | str = "auto",
        distill_batch_size: int = 512,
        distill_learning_rate: float = 1e-4,
        distill_reward_coef: float = 0.5,
        distill_value_coef: float = 0.1,
        distill_max_grad_norm: float = 10.0,
        num_candidates: int = 10,
        candidate_std: float = 0.5,
        distill_temperature: float = 1.0,
        kl_direction: str = "forward",
        **kwargs: Any,
    ) -> None:
        if kl_direction not in ("forward", "reverse"):
            raise ValueError(f'kl_direction={kl_direction!r} is unknown: use "forward" or "reverse".')
        if num_candidates < 2:
            raise ValueError(f"num_candidates={num_candidates} leaves nothing to rank: use at least 2.")
        if isinstance(distill_steps, str) and distill_steps != "auto":
            raise ValueError(f'distill_steps={distill_steps!r} is not understood: use a number or "auto".')
        self.action_groups, self.distill_steps, self.distill_batch_size = action_groups, distill_steps, distill_batch_size
        self.distill_learning_rate, self.distill_max_grad_norm = distill_learning_rate, distill_max_grad_norm
        self.distill_reward_coef, self.distill_value_coef = distill_reward_coef, distill_value_coef
        self.num_candidates, self.candidate_std = num_candidates, candidate_std
        self.distill_temperature, self.kl_direction = distill_temperature, kl_direction
        self.distilled, self._n_distill_updates = False, 0
        self._given = expert
        # What builds the policy of an expert that was given, so that a saved agent can be loaded without it
        self._expert_class = None if expert is None else type(expert.policy)
        self._expert_arguments = None if expert is None else expert.policy._get_constructor_parameters()
        super().__init__(*args, **kwargs)

    @property
    def policy(self) -> WorldModelPolicy:  # type: ignore[override]
        """:return: what acts: the student once it is distilled, the expert before and while it collects"""
        return self.student if self.distilled else self.expert

    def _setup_model(self) -> None:
        if self._given is not None and self.observation_space != self._given.observation_space:
            raise ValueError(
                f"The expert was trained with the observation space {self._given.observation_space}, the environment has "
                f"{self.observation_space}: give the environment that the expert was trained in."
            )
        super()._setup_model()

    def _make_policy(self) -> None:
        """Build student and expert, or take the expert that was given. They share their random numbers."""
        if self._given is not None:
            self.expert = self._given.policy
        else:
            expert_class = self._expert_class or EXPERT_CLASSES[self.policy_class]
            arguments = self._expert_arguments or self._policy_arguments()
        self.expert.compiles = self.student.compiles = resolve_compile(self.compile, self.device)
        self.student.generator = self.expert.generator
