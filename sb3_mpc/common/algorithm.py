"""The class that all methods derive from: its arguments, the training step, and the hooks that a method fills in."""

import functools
import inspect
import time
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.her import HINDSIGHT_BUFFERS
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.checks.arguments import (
    Absent,
    check_action_space,
    check_argument,
    check_arguments,
    check_keywords,
    check_no_unknown_arguments,
    check_observation_space,
    check_policy_class,
    check_range,
    check_train_freq,
    known_arguments,
    make_env,
    warn_of_changes,
    warn_of_low_rate,
    without_defaults_of_sac,
)
from sb3_mpc.common.checks.data import CHECK_LOSSES_EVERY, check_finite_losses, check_weights
from sb3_mpc.common.collection import Collection
from sb3_mpc.common.discount import DEFAULT_GAMMA, discount_from_episode_length, episode_length
from sb3_mpc.common.execution.acceleration import choose_acceleration, compile_function, graphed, set_learning_rate
from sb3_mpc.common.execution.cuda_graphs import frozen_values
from sb3_mpc.common.execution.gradients import Gradients, apply_gradients, clipped_gradients, trained_parameters
from sb3_mpc.common.execution.transfer import with_index
from sb3_mpc.common.networks.losses import UpdateNoise, draw_update_noise, model_losses, time_slice, unroll
from sb3_mpc.common.offline_training import OfflineTraining
from sb3_mpc.common.persistence import Persistence
from sb3_mpc.common.planning.plan import Plan
from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy
from sb3_mpc.common.policies.world_model_policy import CnnPolicy, MultiInputPolicy, WorldModelPolicy
from sb3_mpc.common.presets import PRESETS, complete, find_preset, takes_preset
from sb3_mpc.common.tasks import SeveralTasks

# Random steps before the first update: 5 episodes, at least 1000 (official code)
SEED_EPISODES, MIN_SEED_STEPS = 5, 1000
# Arguments of the replay buffer that the agent sets itself
RESERVED = (
    "buffer_size",
    "observation_space",
    "action_space",
    "device",
    "n_envs",
    "optimize_memory_usage",
    "horizon",
)
# Parts of an update that are compiled, one graph each; optimisers are fused kernels already
COMPILED = ("model_gradients", "policy_gradients")

argument_names = functools.cache(known_arguments)  # asked for in every recorded update


def inherited(arguments: dict[str, Any]) -> dict[str, Any]:
    """
    :param arguments: ``locals()`` at the start of a method's constructor
    :return: the arguments of :class:`WorldModelAlgorithm`, and unknown ones, which it rejects
    """
    known = [name for name in inspect.signature(WorldModelAlgorithm).parameters if name != "unknown"]
    return {name: arguments[name] for name in known} | arguments["unknown"]


class WorldModelAlgorithm(Collection, OfflineTraining, Persistence, SeveralTasks, OffPolicyAlgorithm):
    """
    Base class of the methods: collects transitions with the planner, and updates model, values and policy on windows of
    consecutive transitions from the replay buffer.

    :meth:`train` and :meth:`update` are the training step of all methods. A method defines :meth:`value_target` and
    :meth:`policy_loss` and overrides other hooks where it differs; all hooks are listed under the heading "Hooks".
    Data collection is in :mod:`sb3_mpc.common.collection`, learning from recorded data in
    :mod:`sb3_mpc.common.offline_training`, saving and loading in :mod:`sb3_mpc.common.persistence`. The arguments are
    described in :class:`sb3_mpc.TDMPC2`.
    """

    log_ent_coef = Absent("the weight of the entropy is entropy_coef, a constant")
    ent_coef_optimizer = Absent("the weight of the entropy is entropy_coef, a constant that is not learned")

    # -- Construction --------------------------------------------------------------------------------------------------

    @takes_preset
    def __init__(
        self,
        policy: str | type[WorldModelPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | str = "auto",
        batch_size: int = 256,
        tau: float = 0.01,
        gamma: float | str = "auto",
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        *,
        preset: str | None = None,
        horizon: int = 3,
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
        iterations: int = 6,
        num_samples: int = 512,
        num_elites: int = 64,
        num_pi_trajs: int = 24,
        min_std: float = 0.05,
        max_std: float = 2.0,
        temperature: float = 0.5,
        compile: bool | str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        check_no_unknown_arguments(type(self), unknown, WorldModelAlgorithm)
        check_argument("verbose", verbose, {int}, self.ranges["verbose"])  # SB3 reads it before the others are checked
        env = make_env(env, verbose)
        if env is None and _init_setup_model:
            raise ValueError(f"{type(self).__name__} needs an environment: give env, or load() a saved agent.")
        if env is not None:
            check_action_space(env.action_space, type(self).__name__)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,  # resolved in _setup_model, as is gamma
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=processes.own_device(device),
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.preset = preset
        self.horizon, self.rho = horizon, rho
        self.consistency_coef, self.reward_coef, self.value_coef = consistency_coef, reward_coef, value_coef
        self.termination_coef, self.entropy_coef = termination_coef, entropy_coef
        self.enc_lr_scale, self.max_grad_norm = enc_lr_scale, max_grad_norm
        self.pretrain_gradient_steps, self.episodic, self.compile = pretrain_gradient_steps, episodic, compile
        self.iterations, self.num_samples, self.num_elites = iterations, num_samples, num_elites
        self.num_pi_trajs, self.min_std, self.max_std, self.temperature = num_pi_trajs, min_std, max_std, temperature
        self._compiled: dict[str, Callable[..., Any]] = {}
        if _init_setup_model:
            self._setup_model()
            self.replay_buffer.check_memory()

    def _setup_model(self) -> None:
        known = vars(self) | dict(stats_window_size=self._stats_window_size)
        check_arguments(type(self), known, self.ranges, self.relations, self.choices)
        vars(self).update({name: bool(value) for name, value in known.items() if isinstance(value, np.bool_)})
        self.seed = None if self.seed is None else int(self.seed)  # Python's generator knows no numbers of NumPy
        check_train_freq(self.train_freq)
        if not isinstance(self.learning_rate, (int, float)):
            check_range("The initial learning_rate", self.learning_rate(1.0), *self.ranges["learning_rate"])
        check_observation_space(self.observation_space, type(self).__name__)
        check_policy_class(self.policy_class, WorldModelPolicy, type(self).__name__)
        read: dict[str, Any] = self.policy_class.arguments_of_env(self.env)  # type: ignore[attr-defined]
        self.policy_kwargs = {**read, **self.policy_kwargs}
        check_keywords(
            "policy_kwargs",
            self.policy_class,
            without_defaults_of_sac(self.policy_class, self.policy_kwargs),
            ("observation_space", "action_space", "lr_schedule"),
        )
        policy_class: Any = self.policy_class
        check_arguments(policy_class, self.policy_kwargs, policy_class.ranges, policy_class.relations)
        self.device = with_index(self.device)
        if processes.rank() > 0:
            self.verbose, self.tensorboard_log = 0, None
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._resolve_auto()
        self._setup_buffer()
        self._make_policy()
        if self.env is not None:
            self.policy.check_env(self.env)
        if self.episodic is False:  # a given expert may have the head
            self.policy.disable_termination()
        self.forget_compiled()
        self.replay_buffer.seed(int(th.randint(2**31, ()).item()))
        self._seed_generators(processes.own_seed(self.seed, self.n_envs))
        self._convert_train_freq()

    def _make_policy(self) -> None:
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_arguments()
        ).to(self.device)
        self.policy.acceleration = choose_acceleration(self.compile, self.policy.world_model, self.device)

    def _resolve_auto(self) -> None:
        """Replace "auto" by numbers, once; they are saved with the model."""
        for name in ("gamma", "learning_starts", "pretrain_gradient_steps"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise ValueError(f'{name}={value!r} is not understood: use a number or "auto".')
        length = episode_length(self.env)
        seeding = max(MIN_SEED_STEPS, SEED_EPISODES * (length or 0))
        if isinstance(self.gamma, str):
            self.gamma = DEFAULT_GAMMA if length is None else discount_from_episode_length(length)
        if isinstance(self.pretrain_gradient_steps, str):
            # The paper's updates on the seeding data; with a given learning_starts, users expect as many as SAC makes
            self.pretrain_gradient_steps = seeding if isinstance(self.learning_starts, str) else 0
        if isinstance(self.learning_starts, str):
            self.learning_starts = seeding

    def _setup_buffer(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = self.buffer_class
        if self.replay_buffer_class is HerReplayBuffer:
            self.replay_buffer_class = HINDSIGHT_BUFFERS[self.buffer_class]
        if not issubclass(self.replay_buffer_class, self.buffer_class):
            raise ValueError(
                f"replay_buffer_class={self.replay_buffer_class.__name__} does not sample the sequences that "
                f"{type(self).__name__} needs: leave it out, use HerReplayBuffer for goals, or derive it "
                f"from {self.buffer_class.__name__} of sb3_mpc.common."
            )
        check_keywords("replay_buffer_kwargs", self.replay_buffer_class, self.replay_buffer_kwargs, RESERVED)
        length, rows = episode_length(self.env), self.buffer_size // self.n_envs
        if self.replay_buffer_kwargs.get("sampling") == "episodes" and length and rows < length + self.horizon:
            raise ValueError(
                f'buffer_size={self.buffer_size} is too small for sampling="episodes": use at least '
                f"{(length + self.horizon) * self.n_envs}, so that for each of {self.n_envs} environments an ended "
                f"episode is there while the next one, of up to {length} steps, is stored."
            )
        if self.replay_buffer is None:
            self.replay_buffer = self.replay_buffer_class(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                optimize_memory_usage=self.optimize_memory_usage,
                horizon=self.horizon,
                **self.replay_buffer_kwargs,
            )
        self.replay_buffer.set_env(self.env)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OffPolicyAlgorithm._wrap_env(make_env(env, verbose), verbose, monitor_wrapper)  # type: ignore[arg-type]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: environment to continue with, see SB3
        :param force_reset: whether training starts with a reset
        """
        env = self._wrap_env(env, self.verbose)
        self.policy.check_env(env)
        super().set_env(env, force_reset)
        self.replay_buffer.set_env(self.env)

    # -- Training ------------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        warn_of_changes(self.policy._init_kwargs["planner_kwargs"], self.policy_arguments()["planner_kwargs"])
        planned = self._total_timesteps
        result = super()._setup_learn(*args, **kwargs)
        if self._total_timesteps != planned:  # a run that is resumed goes on with the rate that was planned
            self.check_learning_rate()
        return result

    def check_learning_rate(self) -> None:
        """Called at the beginning of ``learn``, unless a run is resumed."""
        warn_of_low_rate(self.lr_schedule, self.num_timesteps / max(1, self._total_timesteps))

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        :param gradient_steps: number of updates; the first call also makes those on the seeding data
        :param batch_size: number of windows in a batch, the agent's ``batch_size`` if None
        :raises ValueError: if a loss becomes NaN or infinite; looked at every 100 updates, and at the end
        """
        if self.waits_for_episode():
            return
        batch_size = batch_size or self.batch_size
        self.keep_together(gradient_steps)
        self.prepare_updates()
        with self.policy.acceleration.applied():
            if self._n_updates == 0 and int(self.pretrain_gradient_steps) > 0:
                if self.verbose > 0:
                    print(f"Seeding finished: {self.pretrain_gradient_steps} updates on the collected data follow")
                self._timed_updates(int(self.pretrain_gradient_steps), batch_size, pretraining=True)
            self._timed_updates(gradient_steps, batch_size)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.policy.set_training_mode(False)

    def prepare_updates(self) -> None:
        """Training mode, the present learning rate, and compilation if it has been chosen."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.policy.model_optimizer, self.policy.pi_optimizer])
        if self.policy.acceleration.compiles and not self._compiled:
            self._compiled = {name: compile_function(getattr(self, name), takes_gradients=True) for name in COMPILED}
            self._compiled["update"] = graphed(self.update, self.recorded_constants)

    def _timed_updates(self, count: int, batch_size: int, pretraining: bool = False) -> None:
        """As :meth:`_updates`; the first ones of a run tell how long it will take."""
        for part in self._estimate.parts(count) if self._estimate is not None and pretraining else [count]:
            started = time.perf_counter()
            self._updates(part, batch_size, pretraining)
            if self._estimate is not None:
                self._estimate.updated(part, time.perf_counter() - started)
                self._tell_estimate()

    def _updates(self, count: int, batch_size: int, pretraining: bool = False) -> None:
        """
        :param count: number of updates
        :param batch_size: number of windows in a batch
        :param pretraining: whether these are the first updates, on the seeding data
        """
        sums: th.Tensor | None = None
        for done in range(1, count + 1):
            logs = self.update_once(batch_size, pretraining)
            values = th.stack([value.float() for value in logs.values()])
            sums = values if sums is None else sums + values
            if done % CHECK_LOSSES_EVERY == 0:  # a sum stays NaN or infinite once a loss was
                check_finite_losses(dict(zip(logs, sums.tolist(), strict=True)), self._n_updates)
        if sums is not None:  # the only other copy of the losses to the host
            means = dict(zip(logs, (sums / count).tolist(), strict=True))
            check_finite_losses(means, self._n_updates)
            for name, value in means.items():
                self.logger.record(f"train/{name}", value)
        if self._n_updates <= CHECK_LOSSES_EVERY or count > self._n_updates % CHECK_LOSSES_EVERY:
            check_weights(dict(self.policy.named_parameters()), self._n_updates)

    def update_once(self, batch_size: int, pretraining: bool = False) -> dict[str, th.Tensor]:
        """
        :param batch_size: number of windows in the batch
        :param pretraining: whether this is one of the first updates, on the seeding data
        :return: values to log of one update on newly drawn windows, scalars by name
        """
        batch_size = processes.share(batch_size)
        batch = self.windows.sample(batch_size, env=self._vec_normalize_env)
        batch = batch if pretraining else self.refresh_batch(batch)
        noise = self.draw_noise(batch_size)
        update: Callable[..., dict[str, th.Tensor]] = self._compiled.get("update", self.update)
        logs = update(batch._replace(buffer_index=None), noise, self.trains_policy_in_pretraining or not pretraining)
        self._n_updates += 1
        return logs

    def update(self, batch: SequenceBatch, noise: UpdateNoise, train_policy: bool = True) -> dict[str, th.Tensor]:
        """
        One gradient step on the model and the values, one on the policy, and one moving-average step of the target
        networks.

        :param batch: windows
        :param noise: random numbers, see :meth:`draw_noise`
        :param train_policy: whether the policy is updated, too
        :return: values to log, scalars by name
        """
        policy = self.policy
        policy.world_model.observe(batch.observations, batch.mask)
        parameters = trained_parameters(policy.model_optimizer)
        zs, gradients, logs = self.maybe_compiled("model_gradients")(batch, noise, parameters)
        apply_gradients(policy.model_optimizer, parameters, gradients)
        policy.world_model.constrain()
        if train_policy:
            parameters = trained_parameters(policy.pi_optimizer)
            gradients, more = self.maybe_compiled("policy_gradients")(zs, batch, noise, parameters)
            apply_gradients(policy.pi_optimizer, parameters, gradients)
            logs |= more
        policy.world_model.update_target(self.tau)
        return logs

    def model_gradients(
        self, batch: SequenceBatch, noise: UpdateNoise, parameters: list[th.Tensor]
    ) -> tuple[th.Tensor, Gradients, dict[str, th.Tensor]]:
        """
        :param batch: windows
        :param noise: random numbers
        :param parameters: parameters that the losses of the model train
        :return: predicted latent states ``[H + 1, B, D]`` without gradient, clipped gradients of the parameters, and
            values to log
        """
        model = self.policy.world_model
        with th.no_grad():
            next_z = model.encode(
                time_slice(batch.observations, slice(1, None)), None if noise.shift is None else noise.shift[1:]
            )
            targets = self.value_target(next_z, batch, noise)
        zs = unroll(model, batch, noise.shift)
        losses = model_losses(model, batch, zs, next_z, targets, self.rho, noise.value_dropout)
        losses |= self.extra_losses(zs, batch, noise)
        total = th.stack([getattr(self, f"{name}_coef") * loss for name, loss in losses.items()]).sum()
        gradients, norm = clipped_gradients(total, parameters, self.max_grad_norm)
        logs = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        return zs.detach(), gradients, logs | dict(grad_norm=norm)

    def policy_gradients(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise, parameters: list[th.Tensor]
    ) -> tuple[Gradients, dict[str, th.Tensor]]:
        """
        :param zs: predicted latent states ``[H + 1, B, D]``, without gradient
        :param batch: windows
        :param noise: random numbers
        :param parameters: parameters that the loss of the policy trains
        :return: clipped gradients of the parameters, and values to log
        """
        loss, logs = self.policy_loss(zs, batch, noise)
        gradients, norm = clipped_gradients(loss, parameters, self.max_grad_norm)
        logs |= dict(pi_loss=loss, pi_grad_norm=norm)
        return gradients, {name: value.detach() for name, value in logs.items()}

    def maybe_compiled(self, name: str) -> Callable[..., Any]:
        """:return: the method of this name, compiled if plans and updates are"""
        return self._compiled.get(name) or getattr(self, name)

    def recorded_constants(self) -> Hashable:
        """:return: what a recorded update holds besides tensors, such as arguments and options of the optimisers"""
        arguments = (getattr(self, name, None) for name in argument_names(type(self)))
        plain = tuple(value for value in arguments if isinstance(value, (bool, int, float, str)))
        optimizers = (part for part in vars(self.policy).values() if isinstance(part, th.optim.Optimizer))
        return plain, frozen_values(self.policy, *optimizers)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        recorded = self.policy.acceleration.compiles and self.device.type == "cuda"
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            set_learning_rate(optimizer, rate, recorded)

    def continues(self, batch: SequenceBatch) -> th.Tensor:
        """
        :param batch: windows
        :return: factor of the values that follow the transitions: 0 where one ended its episode by termination, 1
            elsewhere, and everywhere if ``episodic`` is False ``[H, B, 1]``
        """
        return th.ones_like(batch.terminated) if self.episodic is False else 1 - batch.terminated

    # -- Hooks: what a method defines or changes -----------------------------------------------------------------------

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": WorldModelPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MultitaskPolicy": MultitaskWorldModelPolicy,
    }
    policy_defaults: ClassVar[dict[str, Any]] = {}  # arguments of the policy whose defaults the method changes
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS  # in rl_zoo3's format
    buffer_class: ClassVar[type[SequenceReplayBuffer]] = SequenceReplayBuffer  # or one derived from it
    trains_policy_in_pretraining: ClassVar[bool] = True  # whether the updates on the seeding data train the policy
    # Attributes, plain values, that an agent file keeps besides the arguments and the policy's tensors
    kept_in_agent_files: ClassVar[tuple[str, ...]] = ("num_timesteps", "_n_updates", "_episode_num")
    # Smallest and, if any, largest allowed value of arguments; of others 0, and any finite number. Types are those of
    # the constructor
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {
        **dict.fromkeys(("horizon", "iterations"), (1, 1_000)),
        **dict.fromkeys(("batch_size", "num_samples", "num_elites"), (1, 10_000_000)),
        **dict.fromkeys(("buffer_size", "stats_window_size", "n_steps"), (1,)),
        **dict.fromkeys(("gamma", "tau", "rho"), (0, 1)),
        "learning_rate": (0, 10),
        "gradient_steps": (-1,),
        "verbose": (0,),
        "seed": (0, 2**32 - 1),
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}  # what arguments may be that are one of a few names
    relations: ClassVar[tuple[tuple[str, str], ...]] = (  # the first of two arguments must not be larger
        ("min_std", "max_std"),
        ("num_elites", "num_samples"),
        ("num_pi_trajs", "num_samples"),
        ("n_steps", "horizon"),
    )

    @classmethod
    def preset_arguments(cls, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """
        :param name: one of :attr:`presets`
        :param given: arguments that the user gives, which win
        :return: arguments that the preset adds, and ``policy_kwargs``, which are merged key by key
        :raises ValueError: if there is no such preset
        """
        return complete(find_preset(cls.presets, name), given)

    def value_target(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """
        :param next_z: encodings of the observations 1 to H ``[H, B, D]``
        :param batch: windows
        :param noise: random numbers
        :return: targets of the values ``[H, B, 1]``
        """
        raise NotImplementedError

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        :param zs: predicted latent states ``[H + 1, B, D]``, without gradient
        :param batch: windows
        :param noise: random numbers
        :return: loss of the policy prior, and values to log, scalars by name
        """
        raise NotImplementedError

    def extra_losses(self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """
        :param zs: predicted latent states ``[H + 1, B, D]``
        :param batch: windows
        :param noise: random numbers
        :return: further losses of the model by name, weighted by the attributes ``<name>_coef``
        """
        return {}

    def refresh_batch(self, batch: SequenceBatch) -> SequenceBatch:
        """
        Called before every update except the first ones on the seeding data.

        :param batch: windows as sampled
        :return: windows to train on
        """
        return batch

    def plan_to_store(self, plan: Plan) -> th.Tensor:
        """
        :param plan: plan for E environments
        :return: mean and standard deviation of the first action, for a :class:`PlanReplayBuffer` to store
            ``[2, E, A]``; the mean is the first action of the chosen elite
        """
        return th.stack([plan.elite_action, plan.std[:, 0]])

    def plan_of_seeding(self, actions: np.ndarray) -> np.ndarray | None:
        """
        :param actions: random actions of E environments ``[E, A]``
        :return: mean and standard deviation for a :class:`PlanReplayBuffer` to store in place of a plan ``[2, E, A]``;
            None to store none
        """
        return None

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """
        :param batch_size: number B of windows
        :return: random numbers of one update
        """
        shift = self.policy.draw_shift(self.horizon + 1, batch_size)
        return draw_update_noise(self.policy.world_model, self.horizon, batch_size, shift, self.policy.generator)

    def planner_arguments(self) -> dict[str, Any]:
        """:return: arguments of the planner"""
        return dict(
            horizon=self.horizon,
            gamma=self.gamma,
            iterations=self.iterations,
            num_samples=self.num_samples,
            num_elites=self.num_elites,
            num_pi_trajs=self.num_pi_trajs,
            min_std=self.min_std,
            max_std=self.max_std,
            temperature=self.temperature,
        )

    def policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy: the user's, and the planner's, so that it can plan after ``policy.load``"""
        arguments = dict(
            enc_lr_scale=self.enc_lr_scale,
            episodic=self.episodic is True,
            running_scale_tau=self.tau,
        )
        given = without_defaults_of_sac(self.policy_class, self.policy_kwargs)
        planner = {**self.planner_arguments(), **(given.get("planner_kwargs") or {})}
        return {**self.policy_defaults, **arguments, **given, "planner_kwargs": planner}

    def forget_compiled(self) -> None:
        """Discard compiled functions; called whenever networks are replaced or added."""
        self._compiled = {}
