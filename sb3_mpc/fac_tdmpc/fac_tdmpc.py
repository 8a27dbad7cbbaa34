"""Fac-TDMPC: a factored world model distilled from a trained agent."""

import inspect
import io
import pathlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import configure_logger

from sb3_mpc.common.algorithm import WorldModelAlgorithm, inherited
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.checks.arguments import check_argument, check_range, warn_of_changes
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.common.presets import PRESETS, takes_preset
from sb3_mpc.fac_tdmpc.inputs import check_data, check_expert
from sb3_mpc.fac_tdmpc.policies import FactoredCnnPolicy, FactoredMultiInputPolicy, FactoredPolicy
from sb3_mpc.fac_tdmpc.student_training import LOG_EVERY, MAX_DISTILL_STEPS, StudentTraining
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

SelfFacTDMPC = TypeVar("SelfFacTDMPC", bound="FacTDMPC")

# Arguments of the policy that the class sets, and its own for them
ARGUMENTS_OF_STUDENT = dict(
    action_groups="action_groups", student_learning_rate="distill_learning_rate", distilled="FacTDMPC.distill"
)
# Sizes and plans of the student in the preset "small"
STUDENT_OF_SMALL: dict[str, Any] = dict(
    student_net_arch=[64, 64],
    # Few samples, many of them elites, near the policy: wider plans and longer searches find what it overestimates
    student_planner_kwargs=dict(num_samples=40, num_elites=12, max_std=0.1, policy_start=1.0),
)
# Settings that the student takes from a given expert
SHARED_SETTINGS = (
    "gamma",
    "horizon",
    "batch_size",
    "iterations",
    "num_samples",
    "num_elites",
    "num_pi_trajs",
    "max_std",
    "temperature",
)


class FacTDMPC(StudentTraining):
    """
    Fac-TDMPC: a trained agent is distilled into a world model that is factored over action dimensions, so that each of
    them plans independently at a fraction of the cost.

    The first author's repository (mikezhang95/tdmpc2, commit 8d4e41e) holds code of the method, which settles points
    that the paper leaves open: sequences are ranked by KL(expert, student), perturbations have a standard deviation of
    0.5, the student encodes the expert's latent state (here that of a frozen copy of its encoder), and the expert's
    policy proposes sequences to the student's plans, by rollouts in the expert's model. Also there, groups' scores are
    averaged, not added as in the paper; temperatures are 0.5 for scores on their own scale; latent states are not
    normalised; plans have H actions, not H + 1; and runs have 500,000 updates.

    The student learns neither from rewards nor from TD targets: for segments of the replay buffer, K random
    perturbations of the actions are rolled out in both models, and the student learns to rank them as the expert does:

    ``L = E sum_h rho^h [c_R KL(R_h^expert, R_h) + c_Q KL(Q_h^expert, Q_h)]``

    with distributions over the K candidates, ``softmax(reward / (T s))`` and ``softmax(value / (T s))``, where s is the
    running spread of the expert's scores over the candidates (the paper states no temperature). A policy prior of each
    group imitates the expert's, to act without planning.

    The student ranks sequences best near those that its expert would choose, and a plan seeks what it overestimates.
    So the expert's policy proposes half of the sequences of its plans, which begin, with ``max_std=0.3``, halfway
    between the plan before and these proposals; ``policy_kwargs=dict(student_planner_kwargs=...)`` changes that.

    :meth:`learn` first trains a TD-MPC2 agent as expert and then distils it; if ``expert`` is given, that agent only
    collects data before, and in further calls its student does. :meth:`distill` needs no environment. Until the first
    distillation, the expert acts.

    The arguments of :class:`sb3_mpc.TDMPC2` belong to the expert, ``policy_kwargs`` and planner settings to both, but
    ``max_std`` and ``num_pi_trajs`` to the expert that is trained, or, if one is given, to the student. Arguments that
    are None take the value of the given expert (0 for ``learning_starts``, at most 6 for ``iterations``), or else
    TD-MPC2's default.

    :param expert: trained agent of this package to distil, with ``WorldModelPolicy``; None to train one
    :param action_groups: indices of the action dimensions that plan together, such as ``[[0, 1], [2, 3]]``; one group
        per dimension if None
    :param distill_steps: updates of the student after each :meth:`learn`; "auto" for one per environment step since the
        last distillation, at most the paper's 100,000; 0 for no distillation, so that the expert acts
    :param distill_batch_size: number of segments in a batch; "auto" for twice ``batch_size``, the paper's 512
    :param distill_learning_rate: learning rate of the student at the beginning of a distillation; it falls linearly to
        zero at the end (the paper: constant), because a plan needs a steady ranking
    :param distill_reward_coef: weight c_R of the divergence of the rewards
    :param distill_value_coef: weight c_Q of the divergence of the values
    :param distill_max_grad_norm: bound on the norms of the gradients of the student's model and of its policy prior
    :param num_candidates: number K of perturbations of a segment
    :param candidate_std: standard deviation of the perturbations, which are added to the actions; of several, such as
        ``(0.5, 2.0)``, the candidates of a segment have one after the other
    :param distill_temperature: temperature T of the distributions over the candidates
    :param kl_direction: "forward" as above, or "reverse" with student and expert exchanged, as the paper prints it
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FactoredPolicy,
        "CnnPolicy": FactoredCnnPolicy,
        "MultiInputPolicy": FactoredMultiInputPolicy,
    }
    kept_in_agent_files: ClassVar[tuple[str, ...]] = (
        *TDMPC2.kept_in_agent_files,
        "_distilled",
        "_expert_given",
        "_distill_seed",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {**PRESETS["cpu"], "distill_steps": "auto"},
        "small": {
            **PRESETS["small"],
            # A share of so small an expert would be too small for the groups of the student
            "policy_kwargs": {**PRESETS["small"]["policy_kwargs"], **STUDENT_OF_SMALL},
            **dict(distill_steps=10_000, distill_batch_size=64, distill_learning_rate=0.001),
        },
    }
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {
        **TDMPC2.ranges,
        "distill_batch_size": (1,),
        "distill_learning_rate": (0, 10),
        "num_candidates": (2,),
        "candidate_std": (1e-6,),
        "distill_temperature": (1e-6,),
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = dict(kl_direction=("forward", "reverse"))
    policy: FactoredPolicy

    @takes_preset
    def __init__(
        self,
        policy: str | type[WorldModelPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | str | None = None,
        batch_size: int | None = None,
        tau: float = 0.01,
        gamma: float | str | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        *,
        preset: str | None = None,
        horizon: int | None = None,
        rho: float = 0.5,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        enc_lr_scale: float = 0.3,
        max_grad_norm: float = 20.0,
        pretrain_gradient_steps: int | str = "auto",
        episodic: bool | str = "auto",
        iterations: int | None = None,
        num_samples: int | None = None,
        num_elites: int | None = None,
        num_pi_trajs: int | None = None,
        min_std: float = 0.05,
        max_std: float | None = None,
        temperature: float | None = None,
        compile: bool | str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        expert: WorldModelAlgorithm | None = None,
        action_groups: Sequence[Sequence[int]] | None = None,
        distill_steps: int | str = "auto",
        distill_batch_size: int | str = "auto",
        distill_learning_rate: float = 1e-4,
        distill_reward_coef: float = 0.5,
        distill_value_coef: float = 0.1,
        distill_max_grad_norm: float = 10.0,
        num_candidates: int = 10,
        candidate_std: float | Sequence[float] = 0.5,
        distill_temperature: float = 1.0,
        kl_direction: str = "forward",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = inherited(locals())
        for name, number in (("distill_steps", distill_steps), ("distill_batch_size", distill_batch_size)):
            if isinstance(number, str) and number != "auto":
                raise ValueError(f'{name}={number!r} is not understood: use a number or "auto".')
        for name, argument in ARGUMENTS_OF_STUDENT.items():
            if name in (policy_kwargs or {}):
                raise ValueError(f"policy_kwargs has {name}, which is an argument of the class: use {argument}.")
        self.action_groups, self.distill_steps = action_groups, distill_steps
        self.distill_batch_size: int | str = distill_batch_size
        self.distill_learning_rate, self.distill_max_grad_norm = distill_learning_rate, distill_max_grad_norm
        self.distill_reward_coef, self.distill_value_coef = distill_reward_coef, distill_value_coef
        self.num_candidates, self.candidate_std = num_candidates, candidate_std
        self.distill_temperature, self.kl_direction = distill_temperature, kl_direction
        self._distilled, self._expert_given = False, expert is not None
        self._distill_seed: int | None = None
        # Updates of the student, decisions at the end of its last distillation, and updates that num_timesteps counts
        self._student_updates, self._student_decisions, self._counted_updates = 0, 0, 0
        self._unfinished_updates = 0  # of a distillation that was interrupted
        self._given = expert
        if expert is not None:
            check_expert(expert)
            own = dict(policy_kwargs or {})
            plans = dict(max_std=max_std, num_pi_trajs=num_pi_trajs)  # the expert does not plan with them
            plans = {name: number for name, number in plans.items() if number is not None}
            if isinstance(own.setdefault("student_planner_kwargs", {}), dict):
                own["student_planner_kwargs"] = {**plans, **own["student_planner_kwargs"]}
            known = {k: v for k, v in expert.policy._init_kwargs.items() if k not in ARGUMENTS_OF_STUDENT}
            arguments["policy_kwargs"] = {**known, **own}
        for name in ("learning_starts", *SHARED_SETTINGS):
            if arguments[name] is None:
                arguments[name] = self._shared_setting(name)
        super().__init__(**arguments)

    @classmethod
    def preset_arguments(cls, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """As in the base class; with a given expert, what concerns the student and its distillation alone."""
        arguments = super().preset_arguments(name, given)
        policy, own = arguments["policy_kwargs"], given.get("policy_kwargs") or {}
        expert, plans = given.get("expert"), policy.get("student_planner_kwargs")
        if plans and isinstance(plans, dict):  # other arguments win, and so does an expert with fewer samples
            own_plans = own.get("student_planner_kwargs") or {}
            fewer = getattr(expert, "num_samples", np.inf) < plans.get("num_samples", 0)
            kept = own_plans.keys() | (set() if fewer else plans.keys() - given.keys())
            policy["student_planner_kwargs"] = {k: v for k, v in plans.items() if k in kept}
        if expert is None:
            return arguments
        sizes = {k: v for k, v in policy.items() if k in own or k.startswith("student_")}
        return {k: v for k, v in arguments.items() if k.startswith("distill_")} | {"policy_kwargs": sizes}

    def _shared_setting(self, name: str) -> Any:
        """:return: value of an argument that is None: the given expert's, or else TD-MPC2's default"""
        default = inspect.signature(TDMPC2).parameters[name].default
        if self._given is None:
            return default
        if name == "iterations":  # MBDPO's are many small ones
            return min(default, getattr(self._given, name))
        return 0 if name == "learning_starts" else getattr(self._given, name)

    def _setup_model(self) -> None:
        if self._given is not None:
            for kind in ("observation", "action"):
                trained, present = getattr(self._given, f"{kind}_space"), getattr(self, f"{kind}_space")
                if trained != present:
                    raise ValueError(
                        f"The expert was trained with the {kind} space {trained}, but the environment's is {present}: "
                        "give the environment that the expert was trained in."
                    )
        if isinstance(self.distill_batch_size, str):
            self.distill_batch_size = 2 * self.batch_size
        super()._setup_model()
        if isinstance(self.candidate_std, Sequence):
            if not 0 < len(self.candidate_std) <= self.num_candidates:
                raise ValueError(
                    f"candidate_std={self.candidate_std!r:.80} has {len(self.candidate_std)} numbers: use one, or at "
                    f"most num_candidates={self.num_candidates}."
                )
            for number in self.candidate_std:
                check_argument("candidate_std", number, {float}, (0,))
            self.candidate_std = [float(number) for number in self.candidate_std]
        if self._distilled and self._student_updates == 0:  # from an agent file, which does not say how many there were
            self._student_updates, self._student_decisions = 1, self.num_timesteps
        drawn = int(th.randint(2**31, ()).item())  # also when loading, so that global random numbers stay equal
        if self._distill_seed is None:
            self._distill_seed = drawn

    def policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy, those of the student included"""
        arguments = super().policy_arguments()
        student = dict(
            action_groups=self.action_groups,
            student_learning_rate=self.distill_learning_rate,
            student_planner_kwargs=self._student_plans(arguments.get("student_planner_kwargs") or {}),
            distilled=self._distilled,
        )
        return {**arguments, **student}

    def _make_policy(self) -> None:
        super()._make_policy()
        if self._given is not None:
            self.policy.copy_expert(self._given.policy)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "policy.student_optimizer", "policy.student_pi_optimizer"], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_given", "_counted_updates"]

    @classmethod
    def load(cls: type[SelfFacTDMPC], *args: Any, **kwargs: Any) -> SelfFacTDMPC:
        """
        See :meth:`sb3_mpc.TDMPC2.load`. The plans of a student are changed by
        ``policy_kwargs=dict(student_planner_kwargs=dict(max_std=0.1, policy_start=1.0))``.
        """
        model = super().load(*args, **kwargs)
        of_the_expert = kwargs.keys() & {
            "max_std",
            "num_pi_trajs",
            *(model.policy_kwargs.get("student_planner_kwargs") or {}),
        }
        if model._expert_given and of_the_expert:
            name = min(of_the_expert)
            raise ValueError(
                f"{name} would change plans of the expert, which does not act any more: use "
                f"policy_kwargs=dict(student_planner_kwargs=dict({name}=...)) for those of the student."
            )
        return model

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """See :meth:`sb3_mpc.TDMPC2.save`. A callback that saves during the distillation saves the student so far."""
        counted = self.num_timesteps
        self.num_timesteps -= self._counted_updates
        try:
            super().save(path, exclude, include)
        finally:
            self.num_timesteps = counted

    # -- Learning ------------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self._expert_given:
            plans = self.policy._init_kwargs["student_planner_kwargs"]
            own = {"max_std", "num_pi_trajs", *(self.policy_kwargs.get("student_planner_kwargs") or {})}
            warn_of_changes(plans, {k: v for k, v in self.planner_arguments().items() if k not in own})
        return super()._setup_learn(*args, **kwargs)

    def check_learning_rate(self) -> None:
        """See :meth:`sb3_mpc.TDMPC2.check_learning_rate`; an expert that was given does not learn."""
        if not self._expert_given:
            super().check_learning_rate()

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Train the expert, unless it was given; see :meth:`sb3_mpc.TDMPC2.train`. It acts until the next distillation,
        because the student is that of an earlier one.
        """
        if not self._expert_given:
            if self._distilled:
                self._use_student(False)
            super().train(gradient_steps, batch_size)

    def learn(
        self: SelfFacTDMPC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "FacTDMPC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfFacTDMPC:
        """
        Train the expert, or collect with it if it was given; then distil it. The student of an earlier call learns on;
        that of a given expert, which does not change any more, also collects, so that it learns what the expert would
        do in the states that it gets into itself. The arguments are those of :meth:`sb3_mpc.TDMPC2.learn`; with
        ``offline_data``, segments of the distillation are drawn from both, too.

        Callbacks see the agent that collects. Those of the class ``EvalCallback`` then evaluate the student, every
        ``eval_freq`` updates and after the last one: their best model is the student. Their number of steps goes on
        with the updates.
        """
        self._use_student(self._expert_given and self._student_updates > 0)
        if reset_num_timesteps:
            self._student_decisions = self._unfinished_updates = 0
        super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
            offline_data=offline_data,
            offline_fraction=offline_fraction,
            random_seeding=random_seeding,
        )
        windows = None
        if offline_data is not None:
            data = offline_data.windows(self.horizon, observation_space=self.observation_space)
            windows = self.mixture(data, offline_fraction)
        self._distil_what_was_learned(callback, log_interval, progress_bar, windows)
        return self

    def learn_offline(
        self: SelfFacTDMPC,
        data: RecordedData,
        gradient_steps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = LOG_EVERY,
        tb_log_name: str = "FacTDMPC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        batch_size: int | None = None,
    ) -> SelfFacTDMPC:
        """
        With a given expert, ``gradient_steps`` updates of the student, by segments of the data. Otherwise the expert
        learns from the data, by as many updates, and is then distilled as after :meth:`learn`. The arguments are those
        of :meth:`sb3_mpc.TDMPC2.learn_offline`.
        """
        if not self._expert_given:
            self._use_student(False)
            if reset_num_timesteps:
                self._student_decisions = self._unfinished_updates = 0
            super().learn_offline(
                data,
                gradient_steps,
                callback,
                log_interval,
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
                batch_size,
            )
            windows = data.windows(self.horizon, observation_space=self.observation_space)
            self._distil_what_was_learned(callback, log_interval, progress_bar, windows)
            return self
        check_range("gradient_steps", gradient_steps, 0)
        steps = int(gradient_steps)
        if reset_num_timesteps:
            self._student_decisions = self._unfinished_updates = 0
        _, calls = self._begin_offline(data, steps, callback, tb_log_name, reset_num_timesteps, False)
        windows = data.windows(self.horizon, observation_space=self.observation_space)
        try:
            self._distill(steps, calls, log_interval, progress_bar, windows, batch_size, True)
        finally:
            self._leave_data()
        return self

    @classmethod
    def distill(
        cls: type[SelfFacTDMPC],
        expert: WorldModelAlgorithm,
        replay_buffer: SequenceReplayBuffer | RecordedData | str | Path | None = None,
        steps: int = MAX_DISTILL_STEPS,
        callback: MaybeCallback = None,
        log_interval: int | None = LOG_EVERY,
        tb_log_name: str = "FacTDMPC",
        progress_bar: bool = False,
        logger: Logger | None = None,
        **kwargs: Any,
    ) -> SelfFacTDMPC:
        """
        Distil a trained agent from data, without collecting more. The paper's curve, 10 episodes every 5,000 updates::

            FacTDMPC.distill(expert, callback=EvalCallback(eval_env, n_eval_episodes=10, eval_freq=5_000))

        :param expert: trained agent
        :param replay_buffer: buffer with observations and actions, its file, or a :class:`sb3_mpc.offline.Dataset`; the
            expert's buffer if None
        :param steps: updates of the student
        :param callback: callback(s) called after every update, which count updates as steps and see the student act
        :param log_interval: updates between two lines of the log; None for no log
        :param tb_log_name: name of the run in ``tensorboard_log``, an argument of the class
        :param progress_bar: show a progress bar (needs tqdm)
        :param logger: where the log goes; by default standard output if verbose, and ``tensorboard_log`` if given
        :param kwargs: arguments of the class
        :return: the distilled agent
        :raises ValueError: if the buffer is empty or has other spaces
        """
        check_expert(expert)
        check_argument("steps", steps, {int}, (0,))
        extractor = expert.policy.default_features_extractor
        policy: Any = next(c for c in cls.policy_aliases.values() if c.default_features_extractor is extractor)  # type: ignore[attr-defined]
        settings: dict[str, Any] = dict(device=expert.device, verbose=expert.verbose, seed=expert.seed) | kwargs
        model = cls(policy, None, expert=expert, _init_setup_model=False, **settings)
        model.observation_space, model.action_space = expert.observation_space, expert.action_space
        model.n_envs, model._vec_normalize_env = expert.n_envs, expert.get_vec_normalize_env()
        model.env = expert.get_env()  # callbacks ask for it
        model._setup_model()
        data = check_data(replay_buffer, expert)
        model._logger = logger or configure_logger(model.verbose, model.tensorboard_log, tb_log_name)
        if model.env is None and isinstance(callback, (BaseCallback, list)):
            raise ValueError(
                "Callbacks ask for an environment and the expert has none: load it with one, by load(..., env=env)."
            )
        windows = None
        if isinstance(data, SequenceReplayBuffer):
            model.replay_buffer = data
        else:
            windows = data.windows(model.horizon, observation_space=model.observation_space)
        model._distill(steps, model._init_callback(callback), log_interval, progress_bar, windows)
        return model
