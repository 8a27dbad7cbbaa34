"""The class that all methods derive from: arguments, networks, replay buffer."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_mpc.common.acceleration import choose_acceleration
from sb3_mpc.common.arguments import show_inherited_arguments
from sb3_mpc.common.checks import (
    check_action_space,
    check_keywords,
    check_no_unknown_arguments,
    check_policy_class,
    check_range,
    make_env,
    warn_of_changes,
)
from sb3_mpc.common.discount import discount_from_episode_length, episode_length
from sb3_mpc.common.her import HINDSIGHT_BUFFERS
from sb3_mpc.common.learning import LearningAlgorithm
from sb3_mpc.common.multitask import MultitaskWorldModelPolicy
from sb3_mpc.common.policies import CnnPolicy, MultiInputPolicy, WorldModelPolicy

# Random steps before the first update: 5 episodes, at least 1000 (official code)
SEED_EPISODES, MIN_SEED_STEPS = 5, 1000
DEFAULT_GAMMA = 0.99  # for environments that do not tell their episode length
# Arguments of the replay buffer that the agent gives it
TO_BUFFER = (
    "buffer_size",
    "observation_space",
    "action_space",
    "device",
    "n_envs",
    "optimize_memory_usage",
    "horizon",
)


class WorldModelAlgorithm(LearningAlgorithm):
    """
    Base of the methods: collects with the planner, and updates model, value and policy on windows of the replay buffer.

    A method defines :meth:`value_target` and :meth:`policy_loss`, and overrides what else it does differently (see
    :mod:`sb3_mpc.common.learning`). The arguments are described in :class:`sb3_mpc.TDMPC2`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": WorldModelPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MultitaskPolicy": MultitaskWorldModelPolicy,
    }
    policy_defaults: ClassVar[dict[str, Any]] = {}  # what the method changes in the defaults of the policy
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {  # least, and most where there is one, of what users set
        **dict.fromkeys(("buffer_size", "batch_size", "horizon", "iterations"), (1,)),
        **dict.fromkeys(("gamma", "tau", "rho"), (0, 1)),
        **dict.fromkeys(
            ("learning_starts", "pretrain_gradient_steps", "temperature", "min_std", "max_grad_norm"), (0,)
        ),
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        show_inherited_arguments(cls)

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
        **unknown: Any,
    ) -> None:
        check_no_unknown_arguments(type(self), unknown)
        env = make_env(env, verbose)
        if env is None and _init_setup_model:
            raise ValueError(f"{type(self).__name__} needs an environment: give env, or load() a saved agent.")
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
        self._plan_state, self._last_plan, self._plan_seconds = None, None, 0.0
        if _init_setup_model:
            self._setup_model()
            self.replay_buffer.check_memory()

    def _setup_model(self) -> None:
        if self.n_steps != 1:
            raise ValueError(
                f"n_steps={self.n_steps} is not supported: the model looks ahead by itself, use n_steps=1."
            )
        if self.episodic not in (True, False, "auto"):
            raise ValueError(f'episodic={self.episodic!r} is not understood: use True, False or "auto".')
        for name, limits in self.ranges.items():
            check_range(name, getattr(self, name), *limits)
        check_policy_class(self.policy_class, WorldModelPolicy, type(self).__name__)
        check_keywords(
            "policy_kwargs", self.policy_class, self.policy_kwargs, ("observation_space", "action_space", "lr_schedule")
        )
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._resolve_auto()
        self._setup_buffer()
        self._make_policy()
        self._compiled_update = None
        self.replay_buffer.seed(int(th.randint(2**31, ()).item()))
        self._seed_generators(self.seed)
        self._convert_train_freq()

    def _make_policy(self) -> None:
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self._policy_arguments()
        ).to(self.device)
        self.policy.acceleration = choose_acceleration(self.compile, self.policy.world_model, self.device)

    def _resolve_auto(self) -> None:
        """Replace "auto" by values, once: they are saved with the model."""
        for name in ("gamma", "learning_starts", "pretrain_gradient_steps"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise ValueError(f'{name}={value!r} is not understood: use a number or "auto".')
        length = episode_length(self.env)
        seeding = max(MIN_SEED_STEPS, SEED_EPISODES * (length or 0))
        if isinstance(self.gamma, str):
            self.gamma = DEFAULT_GAMMA if length is None else discount_from_episode_length(length)
        if isinstance(self.pretrain_gradient_steps, str):
            # The burst belongs to the paper's seeding; who sets learning_starts expects SAC's bookkeeping
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
        check_keywords("replay_buffer_kwargs", self.replay_buffer_class, self.replay_buffer_kwargs, TO_BUFFER)
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

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: environment to go on with, see SB3
        :param force_reset: whether training starts with a reset
        """
        super().set_env(env, force_reset)
        self.replay_buffer.set_env(self.env)

    def _planner_arguments(self) -> dict[str, Any]:
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

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        warn_of_changes(self.policy._init_kwargs["planner_kwargs"], self._policy_arguments()["planner_kwargs"])
        return super()._setup_learn(*args, **kwargs)

    def _policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy: the user's, and those that let it act on its own after ``policy.load``"""
        arguments = dict(
            enc_lr_scale=self.enc_lr_scale,
            episodic=self.episodic is True,
            running_scale_tau=self.tau,
            planner_kwargs=self._planner_arguments(),
        )
        return {**self.policy_defaults, **arguments, **self.policy_kwargs}
