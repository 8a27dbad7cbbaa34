"""The training loop shared by all methods: SB3's off-policy loop around a world model and its planner."""

import io
import pathlib
import time
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_mpc.common.acceleration import compile_function, dropout_mask, resolve_compile
from sb3_mpc.common.checkpoints import atomic_target, explain_damage
from sb3_mpc.common.losses import UpdateNoise, at, model_losses, unroll
from sb3_mpc.common.planning import Plan, draw_members
from sb3_mpc.common.policies import (
    CnnPolicy,
    MultiInputPolicy,
    PriorPolicy,
    WorldModelPolicy,
    check_finite_observation,
    check_policy_kwargs,
)
from sb3_mpc.common.sequence_buffer import SequenceBatch, SequenceReplayBuffer
from sb3_mpc.common.setup import check_action_space, discount_from_episode_length, episode_length, make_env

SelfWorldModelAlgorithm = TypeVar("SelfWorldModelAlgorithm", bound="WorldModelAlgorithm")

# Random steps before the first update: 5 episodes, at least 1000 (official code)
SEED_EPISODES, MIN_SEED_STEPS = 5, 1000
DEFAULT_GAMMA = 0.99  # for environments that do not tell their episode length


class WorldModelAlgorithm(OffPolicyAlgorithm):
    """
    Base of the methods: collects with the planner, and updates model, value and policy on windows of the replay buffer.

    A method defines :meth:`value_target` and :meth:`policy_loss`, and overrides what else it does differently. The
    arguments are described in :class:`sb3_mpc.TDMPC2`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": WorldModelPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer  # type: ignore[assignment]

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
    ) -> None:
        env = make_env(env, verbose)
        if env is not None:
            check_action_space(env.action_space, type(self).__name__)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,
            buffer_size,
            learning_starts,  # type: ignore[arg-type]  # resolved in _setup_model, as is gamma
            batch_size,
            tau,
            gamma,  # type: ignore[arg-type]
            train_freq,  # type: ignore[arg-type]
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
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.horizon, self.rho = horizon, rho
        self.consistency_coef, self.reward_coef, self.value_coef = consistency_coef, reward_coef, value_coef
        self.termination_coef, self.entropy_coef = termination_coef, entropy_coef
        self.enc_lr_scale, self.max_grad_norm = enc_lr_scale, max_grad_norm
        self.pretrain_gradient_steps, self.episodic, self.compile = pretrain_gradient_steps, episodic, compile
        self.iterations, self.num_samples, self.num_elites = iterations, num_samples, num_elites
        self.num_pi_trajs, self.min_std, self.max_std, self.temperature = num_pi_trajs, min_std, max_std, temperature
        # Warm start of the planner in training; evaluation carries its own through `predict`
        self._plan_state: tuple[np.ndarray, ...] | None = None
        self._last_plan: Plan | None = None
        self._plan_seconds = 0.0
        if _init_setup_model:
            self._setup_model()
            self.replay_buffer.check_memory()

    def _setup_model(self) -> None:
        if self.n_steps != 1:
            raise ValueError(f"n_steps={self.n_steps} is not supported: value targets look ahead in the model, use n_steps=1.")
        if self.episodic not in (True, False, "auto"):
            raise ValueError(f'episodic={self.episodic!r} is not understood: use True, False or "auto".')
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._resolve_auto()
        self._setup_buffer()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self._policy_arguments()
        ).to(self.device)
        self.policy.compile = resolve_compile(self.compile, self.device)
        self._compiled_update = None
        self.replay_buffer.seed(int(th.randint(2**31, ()).item()))
        self._seed_generators(self.seed)
        self._convert_train_freq()

    def _resolve_auto(self) -> None:
        """Replace "auto" by values, once: they are saved with the model."""
        length = episode_length(self.env)
        if self.gamma == "auto":
            self.gamma = DEFAULT_GAMMA if length is None else discount_from_episode_length(length)
        seeding = max(MIN_SEED_STEPS, SEED_EPISODES * (length or 0))
        if self.pretrain_gradient_steps == "auto":
            # The burst belongs to the paper's seeding; who sets learning_starts expects SAC's bookkeeping
            self.pretrain_gradient_steps = seeding if self.learning_starts == "auto" else 0
        if self.learning_starts == "auto":
            self.learning_starts = seeding

    def _setup_buffer(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = SequenceReplayBuffer
        if not issubclass(self.replay_buffer_class, SequenceReplayBuffer):
            raise ValueError(
                f"replay_buffer_class={self.replay_buffer_class.__name__} does not sample sequences: leave it out, or derive it "
                "from sb3_mpc.common.sequence_buffer.SequenceReplayBuffer (HerReplayBuffer is not supported yet)."
            )
        if self.replay_buffer is None:
            self.replay_buffer = self.replay_buffer_class(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                optimize_memory_usage=self.optimize_memory_usage,
                **{"horizon": self.horizon, **self.replay_buffer_kwargs},
            )

    def _policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy: the user's, and those that let it act on its own after ``policy.load``"""
        planner_kwargs = dict(
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
        arguments = dict(
            enc_lr_scale=self.enc_lr_scale,
            episodic=self.episodic is True,
            running_scale_tau=self.tau,
            planner_kwargs=planner_kwargs,
        )
        return {**arguments, **self.policy_kwargs}

    @property
    def actor(self) -> PriorPolicy:  # type: ignore[override]
        """:return: the policy prior, which acts without planning"""
        return self.policy.actor

    # -- Randomness ----------------------------------------------------------------------------------------------------

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of Python, NumPy, PyTorch, the environment and the agent's own generators; nothing if None
        """
        super().set_random_seed(seed)
        self._seed_generators(seed)

    def _seed_generators(self, seed: int | None) -> None:
        if seed is not None and "policy" in self.__dict__:
            self.policy.seed(seed)
            self.replay_buffer.seed(seed)
            self.action_space.seed(seed)

    # -- Collecting ----------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            self._plan_state = None
        # With optimize_memory_usage SB3 marks the newest transition as terminal before a reset; here the buffer sees
        # resets by itself, and a reset is no termination
        dones = self.replay_buffer.dones.copy() if self.optimize_memory_usage and self.replay_buffer.size() else None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if dones is not None:
            self.replay_buffer.dones = dones
        if self._last_obs is not None:
            check_finite_observation(self._last_obs, "returned by reset()")
        return result

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any
    ) -> RolloutReturn:
        """See SB3. Transitions at which a callback stops the training are stored, too, so that it can be continued."""
        try:
            rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        except ValueError as error:
            if "broadcast" not in str(error):
                raise
            raise ValueError(
                f"The environment returned an observation that does not fit its observation_space {self.observation_space} "
                f"({error}): the shape must stay the same in every step."
            ) from error
        if not rollout.continue_training:
            step = callback.locals
            self._store_transition(
                self.replay_buffer, step["buffer_actions"], step["new_obs"], step["rewards"], step["dones"], step["infos"]
            )
        return rollout

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            unscaled = np.array([self.action_space.sample() for _ in range(n_envs)])
            actions = self.policy.scale_action(unscaled).astype(np.float32)
            self._plan_state = None
        else:
            assert self._last_obs is not None, "self._last_obs was not set"
            if self._plan_state is not None and len(self._plan_state[0]) != n_envs:
                self._plan_state = None
            started = time.perf_counter()
            plan, _ = self.policy.decide(self._last_obs, self._plan_state, self._last_episode_starts)
            actions = plan.action.cpu().numpy().reshape(n_envs, *self.action_space.shape)  # type: ignore[misc]
            self._plan_state = (plan.mean.cpu().numpy(),)
            self._last_plan, self._plan_seconds = plan, time.perf_counter() - started
        if action_noise is not None:
            actions = np.clip(actions + action_noise(), -1, 1).astype(np.float32)
        return self.policy.to_env_actions(actions), actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_transition(new_obs, reward, dones, infos)
        if self.episodic == "auto" and not self.policy.episodic:
            if any(done and not info.get("TimeLimit.truncated", False) for done, info in zip(dones, infos, strict=True)):
                self.policy.enable_termination()
                self._compiled_update = None
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)  # type: ignore[arg-type]
        self._last_episode_starts = dones

    def _check_transition(
        self, new_obs: np.ndarray | dict[str, np.ndarray], reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """
        :raises ValueError: if an observation or a reward is NaN or infinite, with the environment and the step
        """
        where = f"at step {self.num_timesteps}"
        if not np.isfinite(reward).all():
            index = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise ValueError(
                f"The reward of environment {index} {where} is {reward[index]}: rewards must be finite, check the environment's "
                "reward function."
            )
        check_finite_observation(new_obs, f"returned by step() {where} (first index: environment)")
        for index in np.flatnonzero(dones):
            final = infos[index].get("terminal_observation")
            if final is not None:
                check_finite_observation(final, f"that ended the episode of environment {index} {where}")

    def dump_logs(self) -> None:
        """Write log data, with the latest plan's when verbose."""
        if self.verbose > 0 and self._last_plan is not None:
            self.logger.record("planner/std", self._last_plan.std.mean().item())
            self.logger.record("planner/elite_value", self._last_plan.elite_value.mean().item())
            self.logger.record("planner/latency_ms", 1e3 * self._plan_seconds)
        super().dump_logs()

    # -- Learning ------------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        :param gradient_steps: number of updates; the first call adds those of the seeding phase
        :param batch_size: number of windows in a batch
        """
        if self._n_updates == 0 and int(self.pretrain_gradient_steps) > 0:
            gradient_steps += int(self.pretrain_gradient_steps)
            if self.verbose > 0:
                print(f"Seeding done: {gradient_steps} updates on the collected transitions follow")
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.policy.model_optimizer, self.policy.pi_optimizer])
        if self.policy.compile and self._compiled_update is None:
            self._compiled_update = compile_function(self.update)
        update = self._compiled_update or self.update
        history: dict[str, list[th.Tensor]] = {}
        for _ in range(gradient_steps):
            batch = self.refresh(self.replay_buffer.sample(batch_size, env=self._vec_normalize_env))
            for name, value in update(batch, self.draw_noise(batch_size)).items():
                history.setdefault(name, []).append(value)
        self._n_updates += gradient_steps
        # The only time that losses travel to the host
        means = th.stack([th.stack(values).mean() for values in history.values()]).tolist()
        for name, value in zip(history, means, strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.policy.set_training_mode(False)

    def update(self, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """
        One gradient step on the model and the values, one on the policy, and one of the target networks.

        :param batch: windows
        :param noise: random numbers
        :return: what to log, scalars by name
        """
        policy, model = self.policy, self.policy.world_model
        with th.no_grad():
            next_z = model.encode(at(batch.observations, slice(1, None)), None if noise.shift is None else noise.shift[1:])
            targets = self.value_target(next_z, batch, noise)
        zs = unroll(model, batch, noise.shift)
        losses = model_losses(model, batch, zs, next_z, targets, self.rho, noise.value_dropout)
        losses |= self.extra_losses(zs, batch, noise)
        total = th.stack([getattr(self, f"{name}_coef") * loss for name, loss in losses.items()]).sum()
        grad_norm = self._step(policy.model_optimizer, total)
        pi_loss, logs = self.policy_loss(zs.detach(), batch, noise)
        pi_grad_norm = self._step(policy.pi_optimizer, pi_loss)
        model.update_target(self.tau)
        logs |= {f"{name}_loss": loss for name, loss in losses.items()}
        logs |= dict(pi_loss=pi_loss, grad_norm=grad_norm, pi_grad_norm=pi_grad_norm)
        return {name: value.detach() for name, value in logs.items()}

    def _step(self, optimizer: th.optim.Optimizer, loss: th.Tensor) -> th.Tensor:
        """
        :param optimizer: optimiser of the parameters that the loss trains
        :param loss: scalar
        :return: norm of the gradient before clipping
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()
        return norm

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """
        :param batch_size: number B of windows
        :return: random numbers of one update
        """
        policy, model, horizon = self.policy, self.policy.world_model, self.horizon
        generator = policy.generator

        def normal(steps: int) -> th.Tensor:
            return th.randn(steps, batch_size, model.action_dim, generator=generator, device=generator.device)

        def keep(members: int, steps: int) -> th.Tensor | None:
            if model.dropout == 0 or not model.hidden:
                return None
            return dropout_mask((members, steps, batch_size, model.hidden[0]), model.dropout, generator)

        members = draw_members(2, model.num_q, generator)
        return UpdateNoise(
            shift=policy.draw_shift(horizon + 1, batch_size),
            target_actions=normal(horizon),
            target_members=members[0],
            policy_actions=normal(horizon + 1),
            policy_members=members[1],
            value_dropout=keep(model.num_q, horizon),
            policy_dropout=keep(2, horizon + 1),
        )

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] *= group.get("lr_scale", 1.0)

    # -- What a method defines -----------------------------------------------------------------------------------------

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
        :return: loss of the policy prior, and what to log
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

    def refresh(self, batch: SequenceBatch) -> SequenceBatch:
        """
        :param batch: windows as sampled
        :return: windows to train on
        """
        return batch

    # -- Persistence ---------------------------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compiled_update", "_last_plan"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.model_optimizer", "policy.pi_optimizer"], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model as SB3 does, with the state of its random numbers. An earlier file stays whole until this one is.

        :param path: file to write, ``.zip`` is appended if it has no suffix
        :param exclude: names of attributes to leave out, besides the usual ones
        :param include: names of attributes to keep that are usually left out
        """
        self._rng_state = dict(policy=self.policy.get_rng_state(), action_space=self.action_space.np_random)
        with atomic_target(path, "zip") as target:
            super().save(target, exclude, include)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfWorldModelAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfWorldModelAlgorithm:
        """
        Load a model, see SB3. Its random numbers continue where they stopped, unless another ``seed`` is given.

        :param path: file to read
        :param env: environment to go on with
        :param device: device of the model
        :param custom_objects: replacements for saved objects
        :param print_system_info: whether to print the systems of then and now
        :param force_reset: whether training starts with a reset
        :param kwargs: arguments to change
        :return: the model
        :raises ValueError: if the file is damaged, or the environment is another one
        """
        with explain_damage(path, f"{cls.__name__} model"):
            try:
                model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
            except ValueError as error:
                if "spaces do not match" not in str(error):
                    raise
                raise ValueError(f"{path} was trained in another environment than the one given to load(): {error}.") from error
        state = getattr(model, "_rng_state", None)
        if state is not None and "seed" not in kwargs:
            model.policy.set_rng_state(state["policy"])
            model.action_space._np_random = state["action_space"]
        return model

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        :param path: file to write, ``.pkl`` is appended if it has no suffix
        """
        with atomic_target(path, "pkl") as target:
            super().save_replay_buffer(target)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """
        :param path: file written by :meth:`save_replay_buffer`
        :param truncate_last_traj: has no effect: the buffer sees by itself whether an episode goes on
        :raises ValueError: if the file is damaged or does not fit; the present buffer is kept
        """
        current = self.replay_buffer
        try:
            with explain_damage(path, "replay buffer"):
                super().load_replay_buffer(path, truncate_last_traj)
            loaded = self.replay_buffer
            if not isinstance(loaded, SequenceReplayBuffer):
                raise ValueError(f"{path} holds a {type(loaded).__name__}, not a SequenceReplayBuffer of this package.")
            for name, saved, wanted in (
                ("observation space", loaded.observation_space, self.observation_space),
                ("action space", loaded.action_space, self.action_space),
                ("number of environments", loaded.n_envs, self.n_envs),
            ):
                if saved != wanted:
                    raise ValueError(f"{path} does not fit this model: its {name} is {saved}, the model's is {wanted}.")
            loaded.horizon = self.horizon
        except Exception:
            self.replay_buffer = current
            raise
