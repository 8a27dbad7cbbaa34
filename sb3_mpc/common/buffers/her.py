"""Hindsight experience replay (HER): some windows are replayed with a goal that their episode has reached."""

import copy
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import NEXT_ROW, SequenceReplayBuffer

GOAL_KEYS = ("achieved_goal", "desired_goal")


class HerSequenceReplayBuffer(SequenceReplayBuffer, HerReplayBuffer):  # type: ignore[misc]
    """
    SB3's ``HerReplayBuffer`` (https://arxiv.org/abs/1707.01495) for windows. Besides those below, the arguments are
    those of :class:`SequenceReplayBuffer`.

    A relabelled window has one goal, which replaces the desired goal in all of its observations, and the environment
    computes the rewards of all steps again. Only finished episodes are sampled; an episode cut off by a reset counts as
    finished. Terminations are those of the stored episode, as in SB3.

    :param n_sampled_goal: number of relabelled windows per window with its original goal
    :param goal_selection_strategy: "future" for a goal reached at the first transition of the window or later, "final"
        for the last one of the episode, "episode" for any of them; or SB3's ``GoalSelectionStrategy``
    :param copy_info_dict: keep the info dicts for ``compute_reward``, which costs memory and time
    :raises ValueError: if the observations have no goals of one shape, or an argument is out of range
    """

    row_arrays: ClassVar[tuple[str, ...]] = (*SequenceReplayBuffer.row_arrays, "ep_start", "ep_length", "infos")

    def __init__(
        self,
        *args: Any,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.sampling != "transitions":
            raise ValueError(
                f"HerReplayBuffer draws transitions of ended episodes: leave sampling={self.sampling!r} out."
            )
        if self.storage != "host":
            raise ValueError(f"HerReplayBuffer changes goals in the host's memory: leave storage={self.storage!r} out.")
        goals = [self._spaces.get(key, spaces.Space()) for key in GOAL_KEYS]
        if goals[0].shape is None or goals[0].shape != goals[1].shape:
            raise ValueError(
                f"HerReplayBuffer needs observations with an achieved_goal and a desired_goal of one shape, got "
                f"{self.observation_space}: use a goal-conditioned environment, or leave replay_buffer_class out."
            )
        strategy: object = goal_selection_strategy
        if isinstance(strategy, str):
            strategy = KEY_TO_GOAL_STRATEGY.get(strategy.lower())
        if not isinstance(strategy, GoalSelectionStrategy):
            raise ValueError(f"{goal_selection_strategy=} is unknown: use one of {list(KEY_TO_GOAL_STRATEGY)}.")
        if n_sampled_goal < 0:
            raise ValueError(f"{n_sampled_goal=} must be a number of goals: use 0 or more.")
        self.goal_selection_strategy = strategy
        self.n_sampled_goal, self.copy_info_dict = n_sampled_goal, copy_info_dict
        self.her_ratio = 1 - 1 / (n_sampled_goal + 1)
        self.env: VecEnv | None = None
        self._current_ep_start = np.zeros(self.n_envs, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """:return: bytes of a full buffer, final observations and info dicts not counted"""
        return super().nbytes + self.buffer_size * self.n_envs * (2 * 4 + 8)

    def set_env(self, env: VecEnv | None) -> None:
        """
        :param env: environment whose ``compute_reward`` :meth:`sample` uses
        :raises ValueError: if it has no such method
        """
        if env is not None and not env.has_attr("compute_reward"):
            raise ValueError(
                "HerReplayBuffer needs the environment's method compute_reward(achieved_goal, desired_goal, info): "
                "add it as in gymnasium_robotics.GoalEnv, or leave replay_buffer_class out."
            )
        self.env = env

    def _allocate(self) -> None:
        super()._allocate()
        rows = (self.buffer_size, self.n_envs)
        self.ep_start = np.zeros(rows, dtype=np.int32)
        self.ep_length = np.zeros(rows, dtype=np.int32)  # 0 in episodes that are not finished, or partly overwritten
        self.infos = np.empty(rows, dtype=object)

    def reset(self) -> None:
        """Remove all transitions."""
        super().reset()
        self._current_ep_start[:] = 0

    def _close_head(self, obs: dict[str, np.ndarray]) -> None:
        super()._close_head(obs)
        cut = self._next[(self.pos - 1) % self.buffer_size] != NEXT_ROW
        for i in np.flatnonzero(cut & (self._current_ep_start != self.pos)):
            self._compute_episode_length(int(i))

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        next_obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of each environment; see :class:`SequenceReplayBuffer`."""
        if not self._allocated:
            self._allocate()
        row = self.pos
        for i in np.flatnonzero(self.ep_length[row]):  # this episode is overwritten from here on and no longer sampled
            end = self.ep_start[row, i] + self.ep_length[row, i]
            self.ep_length[np.arange(row, end) % self.buffer_size, i] = 0
        super().add(obs, next_obs, action, reward, done, infos)
        self.ep_start[row] = self._current_ep_start
        if self.copy_info_dict:
            self.infos[row] = infos
        for i in np.flatnonzero(done):
            self._compute_episode_length(int(i))

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:  # type: ignore[override]
        """
        :param batch_size: number B of windows, the last ``int(her_ratio * B)`` of which are relabelled
        :param env: normalises observations and rewards, if given
        :return: windows that start at transitions of finished episodes, drawn uniformly, with replacement
        :raises RuntimeError: before the end of the first episode
        """
        finished = np.flatnonzero(self.ep_length[: self.size()]) if self._allocated else np.empty(0, dtype=np.int64)
        if len(finished) == 0:
            raise RuntimeError(
                "Unable to sample before the end of the first episode. We recommend choosing a value "
                "for learning_starts that is greater than the maximum number of timesteps in the environment."
            )
        rows, envs = np.divmod(self._rng.choice(finished, size=batch_size), self.n_envs)
        return self._get_samples(rows, env, envs)

    def _relabelled(self, batch_size: int) -> slice:
        """
        :param batch_size: number of windows
        :return: slice of the relabelled windows
        """
        return slice(batch_size - int(self.her_ratio * batch_size), batch_size)

    def _relabel(
        self,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        buffer_index: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        windows = self._relabelled(rewards.shape[1])
        rows, envs = np.array(buffer_index)[:, :, windows].swapaxes(0, 1)  # [H, N]
        if rows.size == 0:
            return
        if self.env is None:
            raise ValueError(
                "HerReplayBuffer needs the environment to compute rewards: give env to load(), or set_env()."
            )
        observations["desired_goal"][:, windows] = self._sample_goals(rows[0], envs[0])
        # One copy each: compute_reward may change them, and a transition may be drawn twice
        infos = [copy.deepcopy(info) if self.copy_info_dict else {} for info in self.infos[rows, envs].flat]
        achieved, desired = (
            observations[key][1:, windows].reshape(rows.size, *get_obs_shape(self._spaces[key])) for key in GOAL_KEYS
        )
        # All environments compute rewards in the same way: ask the first one
        computed = np.asarray(self.env.env_method("compute_reward", achieved, desired, infos, indices=[0])[0])
        if computed.size != rows.size:
            raise ValueError(
                f"compute_reward of the environment returned {computed.size} rewards for {rows.size} goals: it must "
                "accept arrays of goals, one per row, and a list of infos."
            )
        rewards[:, windows] = computed.reshape(rows.shape)

    def _sample_goals(self, batch_indices: np.ndarray, env_indices: np.ndarray) -> np.ndarray:
        """
        :param batch_indices: rows of the first transitions of the windows ``[N]``
        :param env_indices: their environments ``[N]``
        :return: goals that were reached in the same episodes ``[N, *shape]``
        """
        start, length = self.ep_start[batch_indices, env_indices], self.ep_length[batch_indices, env_indices]
        if self.goal_selection_strategy == GoalSelectionStrategy.FINAL:
            index = length - 1
        elif self.goal_selection_strategy == GoalSelectionStrategy.FUTURE:
            index = self._rng.integers((batch_indices - start) % self.buffer_size, length)
        else:
            index = self._rng.integers(length)
        return self._following("achieved_goal", (start + index) % self.buffer_size, env_indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "env": None}  # environments need not be pickleable


class HerPlanReplayBuffer(HerSequenceReplayBuffer, PlanReplayBuffer):  # type: ignore[misc]
    """
    :class:`HerSequenceReplayBuffer` that also stores plans. A relabelled window keeps its stored plans, since following
    them has led to its goal. New plans for such a window are not stored: the stored transition has another goal.
    """

    row_arrays: ClassVar[tuple[str, ...]] = (*HerSequenceReplayBuffer.row_arrays, "plans", "planned")

    def _add_plans(self, batch: SequenceBatch, buffer_index: list[tuple[np.ndarray, np.ndarray]]) -> SequenceBatch:
        batch = super()._add_plans(batch, buffer_index)
        assert batch.buffer_index is not None
        batch.buffer_index[:, :, self._relabelled(batch.buffer_index.shape[2])] = -1
        return batch

    def store_plans(self, plans: np.ndarray, rows: np.ndarray | None = None, envs: np.ndarray | None = None) -> None:
        """Store plans, except those of relabelled windows; see :class:`PlanReplayBuffer`."""
        if rows is not None and envs is not None:
            own = rows >= 0
            plans, rows, envs = plans[:, own], rows[own], envs[own]
        super().store_plans(plans, rows, envs)


# The buffer to use in place of SB3's HerReplayBuffer, by the buffer class that the method needs
HINDSIGHT_BUFFERS: dict[type[SequenceReplayBuffer], type[HerSequenceReplayBuffer]] = {
    SequenceReplayBuffer: HerSequenceReplayBuffer,
    PlanReplayBuffer: HerPlanReplayBuffer,
}
