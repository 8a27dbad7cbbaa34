"""Learning from recorded data, without acting (`learn_offline`) or beside it (`learn` with `offline_data`)."""

import io
import math
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, configure_logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.buffers.sources import DataWindows, MixedWindows, RecordedData
from sb3_mpc.common.checks.arguments import check_flag, check_range
from sb3_mpc.common.checks.data import CHECK_LOSSES_EVERY, check_finite_losses
from sb3_mpc.common.networks.losses import time_slice
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy

SelfOfflineTraining = TypeVar("SelfOfflineTraining", bound="OfflineTraining")

LOG_EVERY = 1_000  # updates
MEASURED_EPISODES = 64  # whose returns the values are compared with
# Without random actions at first, decisions without an update if no episode ends; the least that random ones would be
MOST_WITHOUT_UPDATE = 1_000


class OfflineTraining(OffPolicyAlgorithm):
    """
    Mixin of the algorithm that learns from recorded data. An update draws its windows from :attr:`windows`: the replay
    buffer, or what the mixin puts in its place.
    """

    # Provided by the algorithm
    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer
    buffer_class: ClassVar[type[SequenceReplayBuffer]]
    horizon: int
    episodic: bool | str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._data: DataWindows | None = None  # windows of recorded data that are learned from at present
        self._data_source: RecordedData | None = None
        self._mixed: MixedWindows | None = None
        self._offline_state: dict[str, Any] | None = None  # of the last ones, to go on with
        self._pretrained = False

    def forget_compiled(self) -> None:
        """Discard compiled functions; called whenever networks are replaced or added."""
        raise NotImplementedError

    def prepare_updates(self) -> None:
        """Networks and optimisers are made ready for updates."""
        raise NotImplementedError

    def update_once(self, batch_size: int, pretraining: bool = False) -> dict[str, th.Tensor]:
        """:return: values to log of one update"""
        raise NotImplementedError

    def keep_together(self, updates: int = 0) -> None:
        """Called by all processes that train one agent, before updates."""
        raise NotImplementedError

    def _accelerate(self, calls: int) -> None:
        raise NotImplementedError

    @property
    def windows(self) -> Any:
        """:return: where updates draw windows from, and where new plans of these go: the replay buffer, as a rule"""
        return self._mixed or self._data or self.replay_buffer

    # -- Learning without acting ---------------------------------------------------------------------------------------

    def learn_offline(
        self: SelfOfflineTraining,
        data: RecordedData,
        gradient_steps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = LOG_EVERY,
        tb_log_name: str = "offline",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        batch_size: int | None = None,
    ) -> SelfOfflineTraining:
        """
        Learn from a data set, without acting. A step is an update here: ``num_timesteps`` counts updates, and callbacks
        are called after each of them, so that ``EvalCallback(eval_freq=5_000)`` evaluates every 5,000 updates and
        ``CheckpointCallback(save_freq=5_000)`` saves as often.

        To go on from such a file as if never interrupted, bit for bit on a CPU, load it and give the same data, the
        number of updates that are left, and ``reset_num_timesteps=False``.

        A later :meth:`learn` acts by planning from the first decision on. Beside the losses, the log has
        ``offline/value_of_data`` and ``offline/value_of_policy``, the values of the actions in the data and of the
        policy's in the first states of episodes, and ``offline/return_of_data``, the discounted return of these
        episodes: values far above it may be over-estimated.

        :param data: a :class:`sb3_mpc.offline.Dataset` with the spaces of the agent
        :param gradient_steps: number of updates
        :param callback: called after every update
        :param log_interval: updates between two lines of the log; None for no log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: start counting at zero, with new random windows
        :param progress_bar: show a progress bar with the time that is left (needs tqdm)
        :param batch_size: number of windows in a batch, the agent's ``batch_size`` if None
        :return: the trained model
        :raises ValueError: if the data have other spaces, or a loss becomes NaN or infinite
        """
        check_range("gradient_steps", gradient_steps, 0)
        total, callback = self._begin_offline(
            data, int(gradient_steps), callback, tb_log_name, reset_num_timesteps, progress_bar
        )
        try:
            callback.on_training_start(locals(), globals())
            self._offline_updates(total, callback, log_interval, batch_size or self.batch_size)
            callback.on_training_end()
        finally:
            self._leave_data()
        return self

    def _begin_offline(
        self,
        data: RecordedData,
        gradient_steps: int,
        callback: MaybeCallback,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> tuple[int, BaseCallback]:
        """:return: number of steps when the call ends, and the callback"""
        self._enter_data(data, reset_num_timesteps)
        if self.env is None:  # callbacks ask for one
            self.set_env(DummyVecEnv([lambda: self._env_of(data)] * self.n_envs))
        if reset_num_timesteps:
            self.num_timesteps = 0
        self.start_time = time.time_ns()
        self._num_timesteps_at_start = self.num_timesteps
        self._total_timesteps = self.num_timesteps + gradient_steps
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        self._accelerate(self._total_timesteps)
        self.keep_together()
        self._pretrained = self._pretrained or gradient_steps > 0
        parts: Any = [] if callback is None else callback if isinstance(callback, list) else [callback]
        return self._total_timesteps, self._init_callback([*parts, Progress()] if progress_bar else parts)

    def _env_of(self, data: RecordedData) -> gym.Env:
        """:return: environment of the data, with the bounds and precision of the agent's spaces"""
        env = data.as_env()
        env.observation_space, env.action_space = self.observation_space, self.action_space
        return env

    def _offline_updates(self, total: int, callback: BaseCallback, log_interval: int | None, batch_size: int) -> None:
        """
        :param total: number of steps when the updates end
        :param callback: called after every update
        :param log_interval: updates between two lines of the log, none if None
        :param batch_size: number of windows in a batch
        """
        assert self._data is not None
        measured = self._data.first_steps(MEASURED_EPISODES, self._vec_normalize_env)
        sums, counted = None, 0
        while self.num_timesteps < total:
            self._update_current_progress_remaining(self.num_timesteps, total)
            self.prepare_updates()
            with self.policy.acceleration.applied():
                logs = self.update_once(batch_size)
            values = th.stack([value.float() for value in logs.values()])
            sums, counted = values if sums is None else sums + values, counted + 1
            self.num_timesteps += 1
            if self.num_timesteps % CHECK_LOSSES_EVERY == 0:  # a sum stays NaN or infinite once a loss was
                check_finite_losses(dict(zip(logs, sums.tolist(), strict=True)), self._n_updates)
            if self.num_timesteps % (log_interval or LOG_EVERY) == 0 or self.num_timesteps == total:
                means = dict(zip(logs, (sums / counted).tolist(), strict=True))
                check_finite_losses(means, self._n_updates)
                if log_interval is not None:
                    self._log_offline(means, *measured)
                sums, counted = None, 0
            callback.update_locals(locals())
            if not callback.on_step():
                break
        self.policy.set_training_mode(False)

    def _log_offline(self, means: dict[str, float], first: Any, rewards: np.ndarray) -> None:
        """
        :param means: losses by name
        :param first: windows that start where episodes do
        :param rewards: rewards of these episodes ``[T, N]``
        """
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        for name, value in self._values_of_data(first, rewards).items():
            self.logger.record(f"offline/{name}", value)
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/updates_per_second", (self.num_timesteps - self._num_timesteps_at_start) / seconds)
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    @th.no_grad()
    def _values_of_data(self, first: Any, rewards: np.ndarray) -> dict[str, float]:
        """:return: values of the first states of episodes, and the discounted returns of these, averaged"""
        policy = self.policy
        policy.set_training_mode(False)
        observation, actor, critic = time_slice(first.observations, 0), policy.actor, policy.critic
        z = policy.world_model.encode(observation)
        gammas = th.as_tensor(policy.world_model.discount(z, float(self.gamma)), dtype=th.float64)
        powers = gammas.cpu().numpy().reshape(1, -1) ** np.arange(len(rewards))[:, None]
        actions = dict(data=first.actions[0], policy=actor(observation, deterministic=True))
        found = {f"value_of_{name}": th.stack(critic(observation, a)).mean().item() for name, a in actions.items()}
        return found | dict(return_of_data=float((powers * rewards).sum(axis=0).mean()))

    # -- Learning from data and experience -----------------------------------------------------------------------------

    def learn(
        self: SelfOfflineTraining,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfOfflineTraining:
        """See :meth:`sb3_mpc.TDMPC2.learn`."""
        check_flag("random_seeding", random_seeding, auto=True)
        if not random_seeding or (random_seeding == "auto" and self._pretrained):
            self.learning_starts = 0  # kept, so that a resumed run does the same
        if offline_data is not None:
            self._enter_data(offline_data, reset_num_timesteps)
            assert self._data is not None
            self._mixed = self.mixture(self._data, offline_fraction)
        try:
            return super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            )
        finally:
            self._leave_data()

    def mixture(self, data: DataWindows, offline_fraction: float | Schedule) -> MixedWindows:
        """
        :param data: windows of recorded data
        :param offline_fraction: part of a batch that is drawn from them, or its schedule
        :return: batches of these and of the replay buffer
        """
        share = offline_fraction if callable(offline_fraction) else FloatSchedule(fraction(offline_fraction))
        return MixedWindows(self.replay_buffer, data, lambda: fraction(share(self._current_progress_remaining)))

    def waits_for_episode(self) -> bool:
        """
        :return: whether an agent that has learned from data alone, and begins to act, leaves its networks as they are:
            a part of one episode is not yet worth learning from
        """
        few = self.replay_buffer.size() * self.n_envs < MOST_WITHOUT_UPDATE
        return self._pretrained and self.learning_starts == 0 and self._mixed is None and few and self._episode_num == 0

    # -- The data ------------------------------------------------------------------------------------------------------

    def _enter_data(self, data: RecordedData, anew: bool) -> None:
        """
        :param data: data to learn from
        :param anew: whether to draw other windows than a previous call, rather than to go on with it
        :raises ValueError: if the data do not fit the agent
        """
        check_fits(data, self.observation_space, self.action_space, getattr(self.policy, "task_names", None))
        before = self._offline_state
        windows = data.windows(
            self.horizon,
            self.replay_buffer.sampling,
            self.observation_space,
            self.device,
            issubclass(self.buffer_class, PlanReplayBuffer),
        )
        if anew or before is None or before["data"] != data.fingerprint:
            generator = self.policy.generator
            windows.seed(int(th.randint(2**31, (), generator=generator, device=generator.device).item()))
        elif processes.rank() > 0:  # that state is the first process's
            windows.seed(processes.seed_after(self._n_updates))
        else:
            windows.set_state(before["windows"])
        self._data, self._data_source = windows, data
        if self.episodic == "auto" and data.terminates and not self.policy.episodic:
            self.policy.enable_termination()
            self.forget_compiled()

    def _leave_data(self) -> None:
        self._keep_offline_state()
        self._data = self._data_source = self._mixed = None

    def _keep_offline_state(self) -> None:
        if self._data is not None and self._data_source is not None:
            self._offline_state = dict(data=self._data_source.fingerprint, windows=self._data.state())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_data", "_data_source", "_mixed"]

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """See :meth:`sb3_mpc.common.persistence.Persistence.save`."""
        self._keep_offline_state()
        super().save(path, exclude, include)


class Progress(BaseCallback):
    """Progress bar of updates, with the time that is left."""

    def _on_training_start(self) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        left = self.model._total_timesteps - self.model.num_timesteps
        self.bar = tqdm(total=left, unit="update", desc="Learning from data")

    def _on_step(self) -> bool:
        self.bar.update()
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def fraction(number: float) -> float:
    """
    :param number: part of the data in a batch
    :return: the same
    :raises ValueError: if it is not from 0 to 1
    """
    check_range("offline_fraction", number, 0, 1)
    return float(number)


def check_fits(
    data: RecordedData,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    task_names: Sequence[str] | None = None,
) -> None:
    """
    :param data: data to learn from
    :param observation_space: space of the agent's observations
    :param action_space: space of its actions
    :param task_names: names of its tasks, if it has several
    :raises ValueError: if the data have other spaces, or other tasks, or these in another order. Bounds and precision
        of observations may differ
    """
    if not hasattr(data, "windows") or not hasattr(data, "fingerprint"):
        raise ValueError(
            f"Data to learn from are a {type(data).__name__}: give a Dataset of sb3_mpc.offline, such as "
            "Dataset.load(path)."
        )
    if shapes(data.observation_space) != shapes(observation_space):
        raise ValueError(
            f"The data have observations {data.observation_space}, the agent {observation_space}: give data of the "
            "agent's environment."
        )
    own, other = action_space, data.action_space
    assert isinstance(own, spaces.Box) and isinstance(other, spaces.Box)
    same = own.shape == other.shape and np.allclose(own.low, other.low) and np.allclose(own.high, other.high)
    if not same:
        raise ValueError(f"The data have actions {other}, the agent {own}: give data of the agent's environment.")
    found = None if task_names is None else getattr(data.as_env(), "task_names", None)
    if task_names is not None and found is not None and list(found) != list(task_names):
        raise ValueError(
            f"The data have the tasks {', '.join(found)}, the agent {', '.join(task_names)}: merge data sets of the "
            "agent's tasks, in its order."
        )


def shapes(space: spaces.Space) -> Any:
    """
    :param space: space of observations
    :return: what must agree for networks: shapes, numbers of classes, and whether they are images
    """
    if isinstance(space, spaces.Dict):
        return {key: shapes(sub) for key, sub in space.spaces.items()}
    kind = "u1" if space.dtype == np.uint8 else "n"
    return (kind, space.shape, int(getattr(space, "n", 0)) if isinstance(space, spaces.Discrete) else math.inf)
