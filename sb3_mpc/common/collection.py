"""Data collection with the planner, within SB3's off-policy loop."""

import time
import warnings
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.checks.data import check_finite_observation, check_observation_shape, raised_by_sb3
from sb3_mpc.common.estimate import (
    SECONDS_WORTH_COMPILING,
    SECONDS_WORTH_SAYING,
    RunEstimate,
    number_of_updates,
)
from sb3_mpc.common.execution.acceleration import choose_acceleration, is_large
from sb3_mpc.common.execution.processor import choose_threads, usable_cores
from sb3_mpc.common.planning.plan import Plan
from sb3_mpc.common.policies.views import PriorPolicy, ValueFunctions
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy


class Collection(OffPolicyAlgorithm):
    """
    Mixin of the algorithm that collects transitions by planning. It keeps the planner's warm start during training,
    separate from the one that evaluation passes through ``predict``. If ``episodic`` is "auto", the first observed
    termination creates the termination head.
    """

    # Provided by the algorithm
    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer
    episodic: bool | str
    compile: bool | str
    preset: str | None
    presets: ClassVar[dict[str, dict[str, Any]]]
    pretrain_gradient_steps: int | str

    staggers_episodes: bool = True  # see stagger_episodes()

    def forget_compiled(self) -> None:
        """Discard compiled functions; called whenever networks are replaced or added."""
        raise NotImplementedError

    def plan_to_store(self, plan: Plan) -> th.Tensor:
        """
        :param plan: plan for E environments
        :return: mean and standard deviation of the first action, for a :class:`PlanReplayBuffer` to store ``[2, E, A]``
        """
        raise NotImplementedError

    def plan_of_seeding(self, actions: np.ndarray) -> np.ndarray | None:
        """
        :param actions: random actions of E environments ``[E, A]``
        :return: mean and standard deviation to store in place of a plan ``[2, E, A]``; None to store none
        """
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plan_state: tuple[np.ndarray, ...] | None = None
        self._last_plan: Plan | None = None
        self._plan_seconds = 0.0
        self._threads: int | None = None
        self._estimate: RunEstimate | None = None
        self._together: bool | None = None  # whether the processes had termination heads when they were last equal

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        begins = reset_num_timesteps or self._last_obs is None
        if begins:
            self._plan_state = None
        # With optimize_memory_usage SB3 marks the newest transition as terminal before a reset. Our buffer detects
        # resets by itself, and a reset is not a termination
        dones = self.replay_buffer.dones.copy() if self.optimize_memory_usage and self.replay_buffer.size() else None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if dones is not None:
            self.replay_buffer.dones = dones
        if begins:
            self.stagger_episodes()
        if self._last_obs is not None:
            if self._vec_normalize_env is not None:  # it makes NaN of infinity
                original = self._vec_normalize_env.get_original_obs()
                check_finite_observation(original, "returned by reset()", batched=True)
            check_finite_observation(self._last_obs, "returned by reset()", batched=True)
        updates = number_of_updates(result[0], self.n_envs, self.train_freq, self.gradient_steps)  # type: ignore[arg-type]
        self._accelerate(result[0] // self.n_envs + updates)
        self._estimate = self._start_estimate(result[0]) if self.verbose > 0 or not progress_bar else None
        return result

    def stagger_episodes(self) -> None:
        """
        Called when all environments have been reset. Of several environments with a time limit, the first episodes then
        end one after the other, at equal distances, by that limit. Otherwise all would go through the same phases of an
        episode together, and a state that they do not leave by themselves, such as a robot on its back, would be all
        that the agent sees for the length of an episode.
        """
        if not self.staggers_episodes or self.env is None or self.n_envs == 1:
            return
        try:
            # By its name, because rl_zoo3 replaces the class, in some processes earlier than in others
            if all("TimeLimit<" in text for text in self.env.env_method("__str__")):
                for index, length in enumerate(self.env.get_attr("_max_episode_steps")):
                    past = int(length) * (self.n_envs - 1 - index) // self.n_envs
                    self.env.env_method("set_wrapper_attr", "_elapsed_steps", past, indices=index)
        except Exception:  # a VecEnv of somebody else need not do all this; its episodes stay as they are
            return

    def _start_estimate(self, decisions: int) -> RunEstimate:
        """
        :param decisions: number of decisions of the whole run, past ones included
        :return: estimate of the time that this call of ``learn`` takes
        """
        left, planned = (max(0, decisions - done) for done in (self.num_timesteps, self._first_planned()))
        updates = number_of_updates(planned, self.n_envs, self.train_freq, self.gradient_steps)  # type: ignore[arg-type]
        updates += int(self.pretrain_gradient_steps) if self._n_updates == 0 else 0
        steps, plans = left // self.n_envs, planned // self.n_envs
        return RunEstimate(steps, plans, updates, self.policy.acceleration.compiles)

    def _first_planned(self) -> int:
        return max(self.num_timesteps, int(self.learning_starts))

    def _tell_estimate(self) -> None:
        """
        Say once in a call of ``learn`` how long it will take, if that is more than a few minutes. With ``verbose=0`` it
        is a warning, unless there is a progress bar: it would be long before there is any other sign of it.
        """
        if self._estimate is None or (seconds := self._estimate.remaining()) is None:
            return
        estimate, self._estimate = self._estimate, None
        if seconds < SECONDS_WORTH_SAYING:
            return
        sentence = estimate.sentence(self._ways_to_shorten(seconds))
        if self.verbose > 0:
            print(sentence)
        else:
            warnings.warn(sentence, stacklevel=2)

    def _ways_to_shorten(self, seconds: float) -> list[str]:
        """
        :param seconds: length of the run
        :return: arguments that would make it shorter
        """
        fast = f'preset="{"best" if "best" in self.presets else "small"}" for easy tasks'
        reduced = {None: f'{fast} or preset="cpu"', "cpu": fast}
        many = self.gradient_steps < 0 or self.gradient_steps >= self.train_freq.frequency * self.n_envs  # type: ignore[union-attr]
        compilable = self.compile == "auto" and not self.policy.acceleration.compiles
        ways = {
            reduced.get(self.preset, ""): self.preset in reduced,
            "several environments by make_vec_env": self.n_envs == 1,
            "fewer updates by train_freq=2": many,
            "compile=True": compilable and seconds >= SECONDS_WORTH_COMPILING,
        }
        return [way for way, helps in ways.items() if helps]

    def _accelerate(self, calls: int) -> None:
        """
        :param calls: number of plans and updates of the whole run, past ones included, so that a resumed run computes
            as before
        """
        chosen = choose_acceleration(self.compile, self.policy.world_model, self.device, calls)
        if self.policy.acceleration.compiles:  # already compiled, at no further cost
            chosen = chosen._replace(compiles=True)
        if self.compile is not False and self.device.type == "cpu":
            # Kept, because sums over another number of threads are rounded otherwise
            self._threads = self._threads or chosen.threads or choose_threads(is_large(self.policy.world_model))
            chosen = chosen._replace(threads=self._threads and min(self._threads, len(usable_cores())))
        processes.join(self.device)
        if processes.joined():
            chosen = chosen._replace(compiles=False)  # a compiled update cannot wait for other processes
        self.policy.acceleration, self._together = chosen, None
        self.keep_together()
        if self.verbose > 0:
            print(f"Execution: {chosen.describe()}; compile=False is the float32 reference")

    def keep_together(self, updates: int = 0) -> None:
        """
        Called by all processes that train one agent, before updates: a termination that one has seen is one that all
        predict from then on, and parameters that are new become those of the first process.

        :param updates: number of updates that this process is about to make
        :raises ValueError: if another process is about to make more or less
        """
        if not processes.joined():
            return
        episodic, most, least = processes.greatest(self.policy.episodic, updates, -updates)
        if most != -least:
            raise ValueError(
                f"Processes that train together make different numbers of updates, {-int(least)} to {int(most)}: give "
                "train_freq in steps, and all of them as many environments."
            )
        if episodic and not self.policy.episodic:
            self.policy.enable_termination()
            self.forget_compiled()
        if self._together != bool(episodic):
            processes.broadcast(self.policy.state_dict().values())
            self._together = bool(episodic)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if processes.rank() > 0:  # the first process logs, evaluates and saves
            callback, progress_bar = None, False
        return super()._init_callback(callback, progress_bar)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """See SB3. The transition at which a callback stops training is stored, too, so that training can continue."""
        try:
            rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        except ValueError as error:
            if "broadcast" not in str(error) or not raised_by_sb3(error):
                raise
            raise ValueError(
                f"The environment returned an observation that does not fit its space {self.observation_space} "
                f"({error}): the shape must stay the same in every step."
            ) from error
        if not rollout.continue_training:
            names = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(callback.locals[name] for name in names))
        return rollout

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            unscaled = np.array([self.action_space.sample() for _ in range(n_envs)])
            actions = self.policy.scale_action(unscaled).astype(np.float32)
            self._plan_state, self._last_plan = None, None
        else:
            assert self._last_obs is not None, "self._last_obs was not set"
            size = (n_envs, self.policy.active()[1].horizon)  # which has changed if FacTDMPC's student acts from now on
            if self._plan_state is not None and self._plan_state[0].shape[:2] != size:
                self._plan_state = None
            started = time.perf_counter()
            when = f"at step {self.num_timesteps}, after {self._n_updates} updates"
            plan, _ = self.policy.plan_batch(self._last_obs, self._plan_state, self._last_episode_starts, context=when)
            actions = plan.action.cpu().numpy().reshape(n_envs, *self.action_space.shape)  # type: ignore[misc]
            self._plan_state = (plan.mean.cpu().numpy(),)
            self._last_plan, self._plan_seconds = plan, time.perf_counter() - started
            if self._estimate is not None:
                self._estimate.planned(self._plan_seconds)
                self._tell_estimate()
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
        trust_timeouts = self.replay_buffer.handle_timeout_termination
        timeouts = np.array([trust_timeouts and info.get("TimeLimit.truncated", False) for info in infos], dtype=bool)
        if self.episodic == "auto" and not self.policy.episodic and (dones & ~timeouts).any():
            self.policy.enable_termination()
            self.forget_compiled()
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if isinstance(replay_buffer, PlanReplayBuffer):
            if self._last_plan is None:
                stored = self.plan_of_seeding(buffer_action.reshape(self.n_envs, -1))
            else:
                stored = self.plan_to_store(self._last_plan).cpu().numpy()
            if stored is not None:
                replay_buffer.store_plans(stored)
        self._last_episode_starts = dones

    def _check_transition(
        self,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        :raises ValueError: if an observation or a reward is NaN or infinite, or an observation has a wrong shape; the
            message names the environment and the step
        """
        where = f"at step {self.num_timesteps}"
        if self._vec_normalize_env is not None:  # it makes NaN of infinity
            reward = self._vec_normalize_env.get_original_reward()
            original = self._vec_normalize_env.get_original_obs()
            check_finite_observation(original, f"returned by step() {where}", batched=True)
        for index in np.flatnonzero(~np.isfinite(reward)):
            raise ValueError(
                f"The reward of environment {index} {where} is {reward[index]}: rewards must be finite, check "
                "the environment's reward function."
            )
        check_observation_shape(new_obs, self.observation_space, len(dones), f"returned by step() {where}")
        check_finite_observation(new_obs, f"returned by step() {where}", batched=True)
        for i in np.flatnonzero(dones):
            final = infos[i].get("terminal_observation")
            if final is not None:
                check_finite_observation(final, f"that ended the episode of environment {i} {where}")

    def dump_logs(self) -> None:
        """Write the log; if verbose, also standard deviation, value and computing time in ms of the latest plan."""
        if self.verbose > 0 and self._last_plan is not None:
            self.logger.record("planner/std", self._last_plan.std.mean().item())
            self.logger.record("planner/elite_value", self._last_plan.elite_value.mean().item())
            self.logger.record("planner/latency_ms", 1e3 * self._plan_seconds)
        super().dump_logs()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        use_planner: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act by planning, or by the policy network alone, which is much faster. To evaluate the network with SB3's tools,
        pass ``model.actor`` to them.

        :param observation: one observation or a batch of them
        :param state: state returned by the previous call, None to plan without warm start
        :param episode_start: which environments begin an episode ``[n_envs]``
        :param deterministic: whether to act deterministically
        :param use_planner: whether to plan; if False, the policy network acts
        :return: actions in the action space and the state for the next call
        """
        if use_planner:
            return super().predict(observation, state, episode_start, deterministic)
        return self.actor.predict(observation, state, episode_start, deterministic)

    @property
    def actor(self) -> PriorPolicy:  # type: ignore[override]
        """:return: the policy prior, which acts without planning"""
        return self.policy.actor

    @property
    def critic(self) -> ValueFunctions:
        """:return: the value ensemble"""
        return self.policy.critic

    @property
    def critic_target(self) -> ValueFunctions:
        """:return: the target value ensemble"""
        return self.policy.critic_target
