"""Replay of windows of H consecutive transitions, masked past the end of the episode."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch.utils._pytree import tree_map_only

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.batch import SequenceBatch as SequenceBatch
from sb3_mpc.common.buffers.device_copy import DeviceCopy
from sb3_mpc.common.buffers.memory import check_memory
from sb3_mpc.common.execution.transfer import to_device

# Where the next observation of a transition is stored: in the next row, or in the head, which holds the newest
# observation of each environment; a value >= 0 is an index into the final observations
NEXT_ROW, HEAD = -1, -2


class StoredEpisode(NamedTuple):
    """
    T consecutive transitions of one episode, or of the part of it that is stored.

    :param observations: by key, ``""`` for a plain observation; the one behind the last transition included
        ``[T + 1, *shape]``
    :param actions: in [-1, 1] ``[T, A]``
    :param rewards: ``[T]``
    :param terminated: whether it ended by termination
    :param truncated: whether it ended by a time limit; an episode that still runs, or was cut by a reset, did neither
    :param plans: mean and standard deviation of the planned actions ``[T, 2, A]``, None if the buffer stores none
    :param planned: whether there is a plan ``[T]``, None if the buffer stores none
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    plans: np.ndarray | None = None
    planned: np.ndarray | None = None


class SequenceReplayBuffer(ReplayBuffer):
    """
    Ring buffer of transitions from ``n_envs`` environments that samples windows of consecutive transitions.

    Any stored transition may start a window. Each observation is stored once: the next observation of a transition is
    the observation of the next row, and only observations that end an episode (or the stored part of one) are stored
    separately. A row continues another one if its observation equals the other's next observation, so that resets, new
    environments and reloaded buffers need no special handling. Memory is allocated by the first :meth:`add`.

    :param buffer_size: number of transitions, divided among the environments
    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param device: device of the sampled tensors
    :param n_envs: number of environments
    :param optimize_memory_usage: accepted for compatibility: observations are never stored twice
    :param handle_timeout_termination: treat episodes cut by a time limit as not terminated
    :param horizon: number H of transitions in a window
    :param sampling: "transitions": any stored transition is equally likely to start a window, also the last ones of an
        episode and those of the running one. "episodes", as in the papers' official codes: first an episode is drawn,
        each with the same chance whatever its length, and then one of its windows; only episodes that have ended and
        have at least H transitions are drawn, and no window extends past their end
    :param storage: where windows of observations are put together. "host": in the memory of the computer, and then
        copied. "device": from a second copy of all observations on the device, which needs as much memory there; for
        images on a GPU. Observations that are normalised are put together in the host's memory anyway
    :raises ValueError: if the rule of sampling or the storage is unknown
    """

    storage: str = "host"
    _copy: DeviceCopy | None = None

    # Arrays with a row for each transition, besides the observations
    row_arrays: ClassVar[tuple[str, ...]] = ("actions", "rewards", "dones", "timeouts", "_next")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        horizon: int = 3,
        sampling: str = "transitions",
        storage: str = "host",
    ) -> None:
        # ReplayBuffer's constructor would allocate its own layout
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        if sampling not in ("transitions", "episodes"):
            raise ValueError(f'{sampling=} is unknown: use "transitions" or "episodes".')
        if storage not in ("host", "device"):
            raise ValueError(f'{storage=} is unknown: use "host" or "device".')
        self.horizon, self.sampling, self.storage = horizon, sampling, storage
        self._total = 0  # rows added so far, overwritten ones included
        self._episodes: np.ndarray | None = None
        self._is_dict = isinstance(observation_space, spaces.Dict)
        # A plain observation is stored as a dict of one entry, so that one code path serves both
        self._spaces: dict[str, spaces.Space] = (
            dict(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        )
        self._allocated = False
        self.seed(None)

    def seed(self, seed: int | None) -> None:
        """
        :param seed: seed of the sampling, taken from the operating system if None
        """
        self._rng = np.random.default_rng(seed)

    @property
    def nbytes(self) -> int:
        """:return: bytes of a full buffer, final observations not counted"""
        sizes = {key: int(np.prod(s.shape or (), dtype=np.int64)) for key, s in self._spaces.items()}
        per_step = sum(sizes[key] * np.dtype(s.dtype).itemsize for key, s in self._spaces.items())
        return self.buffer_size * self.n_envs * (per_step + 4 * self.action_dim + 3 * 4 + 4)

    def check_memory(self) -> None:
        """:raises MemoryError: if a full buffer would not fit into the available memory"""
        if not self._allocated:
            check_memory(self.nbytes, self.buffer_size * self.n_envs)

    def _allocate(self) -> None:
        self.check_memory()
        rows = (self.buffer_size, self.n_envs)
        self._observations = {
            key: np.zeros((*rows, *(s.shape or ())), dtype=s.dtype) for key, s in self._spaces.items()
        }
        self._head = {key: np.zeros((self.n_envs, *(s.shape or ())), dtype=s.dtype) for key, s in self._spaces.items()}
        self._final: dict[str, np.ndarray] = {key: head[:0] for key, head in self._head.items()}
        self._free: list[int] = []
        self.actions = np.zeros((*rows, self.action_dim), dtype=np.float32)
        self.rewards = np.zeros(rows, dtype=np.float32)
        self.dones = np.zeros(rows, dtype=np.float32)
        self.timeouts = np.zeros(rows, dtype=np.float32)
        self._next = np.full(rows, HEAD, dtype=np.int32)
        self._allocated, self._copy = True, None

    @property
    def observations(self) -> np.ndarray | dict[str, np.ndarray]:  # type: ignore[override]
        """:return: stored observations ``[buffer_size, n_envs, *shape]``, or a dict of them"""
        return self._observations if self._is_dict else self._observations[""]

    @property
    def next_observations(self) -> np.ndarray | dict[str, np.ndarray]:  # type: ignore[override]
        """:return: next observations of the stored transitions ``[size, n_envs, *shape]``, or a dict; a copy"""
        rows, envs = np.indices((self.size(), self.n_envs)).reshape(2, -1)
        size = (self.size(), self.n_envs)
        parts = {k: self._following(k, rows, envs).reshape(*size, *(s.shape or ())) for k, s in self._spaces.items()}
        return parts if self._is_dict else parts[""]

    def __getattr__(self, name: str) -> Any:
        if name not in (*type(self).row_arrays, "_observations") or self.__dict__.get("_allocated", True):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self._allocate()  # memory is allocated at first use
        return self.__dict__[name]

    def reset(self) -> None:
        """Remove all transitions."""
        super().reset()
        self._allocated, self._total, self._episodes, self._copy = False, 0, None, None

    def _split(self, obs: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        :param obs: observations of all environments
        :return: arrays ``[n_envs, *shape]`` of the stored dtype by key
        """
        parts = obs if isinstance(obs, dict) else {"": obs}
        return {
            key: np.asarray(parts[key]).reshape(self.n_envs, *(s.shape or ())).astype(s.dtype, copy=False)
            for key, s in self._spaces.items()
        }

    def _close_head(self, obs: dict[str, np.ndarray]) -> None:
        """
        Link the newest row of each environment to the next one, or store its next observation separately.

        :param obs: observations that the new transitions start from
        """
        head = (self.pos - 1) % self.buffer_size
        follows = self.dones[head] == 0
        for key, part in obs.items():
            follows &= (part == self._head[key]).reshape(self.n_envs, -1).all(axis=1)
        self._next[head, follows] = NEXT_ROW
        if not follows.all():
            self._episodes = None
        for i in np.flatnonzero(~follows):
            if not self._free:
                used, more = len(self._final[next(iter(obs))]), 64 + len(self._final[next(iter(obs))])
                for key, final in self._final.items():
                    self._final[key] = np.concatenate([final, np.zeros((more, *final.shape[1:]), dtype=final.dtype)])
                self._free.extend(range(used + more - 1, used - 1, -1))
            slot = self._free.pop()
            for key in obs:
                self._final[key][slot] = self._head[key][i]
            self._next[head, i] = slot

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        next_obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of each environment.

        :param obs: observations ``[n_envs, *shape]``
        :param next_obs: next observations, the final ones where an episode ended
        :param action: actions ``[n_envs, A]`` in [-1, 1]
        :param reward: ``[n_envs]``
        :param done: whether the episode ended ``[n_envs]``
        :param infos: one dict per environment; ``TimeLimit.truncated`` marks an end that is not a termination
        """
        row, obs, next_obs = self.pos, self._split(obs), self._split(next_obs)
        if self.size() > 0:
            self._close_head(obs)
            if self.full:
                self._free.extend(int(slot) for slot in self._next[row] if slot >= 0)
        for key in obs:
            self._observations[key][row] = obs[key]
            self._head[key][:] = next_obs[key]
        if self._copy is not None:
            self._copy.write(row, obs)
        self.actions[row] = np.asarray(action).reshape(self.n_envs, self.action_dim)
        self.rewards[row] = reward
        self.dones[row] = done
        if self.handle_timeout_termination:
            self.timeouts[row] = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        self._next[row] = HEAD
        self._total += 1
        if np.any(done):
            self._episodes = None
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def episodes(self) -> Iterator[StoredEpisode]:
        """:return: all that is stored, copied, one environment after the other and in the order of time"""
        size = self.size()
        order = (self.pos - size + np.arange(size)) % self.buffer_size
        for env in range(self.n_envs if size else 0):
            ends = np.flatnonzero(self._next[order, env] != NEXT_ROW) + 1
            for rows in np.split(order, ends[:-1]):
                yield self._episode(rows, env)

    def _episode(self, rows: np.ndarray, env: int) -> StoredEpisode:
        """
        :param rows: rows of consecutive transitions ``[T]``
        :param env: their environment
        :return: the transitions
        """
        last, index = rows[-1:], np.array([env])
        done, timeout = bool(self.dones[last[0], env]), bool(self.timeouts[last[0], env])
        observations = {
            key: np.concatenate([stored[rows, env], self._following(key, last, index)])
            for key, stored in self._observations.items()
        }
        actions, rewards = self.actions[rows, env], self.rewards[rows, env]
        return StoredEpisode(observations, actions, rewards, done and not timeout, done and timeout)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:  # type: ignore[override]
        """
        :param batch_size: number B of windows
        :param env: normalises observations and rewards, if given
        :return: windows drawn by the rule ``sampling``, with replacement
        :raises ValueError: if the buffer is empty
        :raises RuntimeError: if ``sampling`` is "episodes" and there is no episode to draw
        """
        if self.size() == 0:
            raise ValueError("The replay buffer is empty: collect transitions before sampling.")
        if self.sampling == "episodes":
            rows, envs = self._draw_from_episodes(batch_size)
            return self._get_samples(rows, env, envs)
        rows = self._rng.integers(self.size(), size=batch_size)
        return self._get_samples(rows, env, self._rng.integers(self.n_envs, size=batch_size))

    def _draw_from_episodes(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param batch_size: number B of windows
        :return: rows and environments of the first transitions of the windows ``[B]``
        :raises RuntimeError: if there is no episode to draw
        """
        if self._episodes is None:
            self._episodes = self._find_episodes()
        envs, starts, ends = self._episodes
        starts = np.maximum(starts, self._total - self.size())  # the oldest one may be overwritten in part
        windows = ends - starts - self.horizon + 1
        candidates = np.flatnonzero(windows > 0)
        if len(candidates) == 0:
            raise RuntimeError(
                f"No episode of {self.horizon} transitions or more has ended and is still stored: with "
                'sampling="episodes", choose a learning_starts that is greater than the length of an episode, a '
                "horizon that is not, and a buffer_size of more than one episode per environment (now "
                f"{self.buffer_size} steps)."
            )
        chosen = self._rng.choice(candidates, size=batch_size)
        first = starts[chosen] + self._rng.integers(windows[chosen])
        return (self.pos - self._total + first) % self.buffer_size, envs[chosen]

    def _find_episodes(self) -> np.ndarray:
        """
        :return: the environment, the number of the first row and that behind the last one of each ended episode
            ``[3, N]``; rows are numbered in the order in which they were added
        """
        size, oldest, newest = self.size(), self._total - self.size(), (self.pos - 1) % self.buffer_size
        rows, envs = np.nonzero(self._next[:size] >= 0)
        ended = np.flatnonzero(self.dones[newest])
        rows, envs = np.append(rows, np.full_like(ended, newest)), np.append(envs, ended)
        ends = oldest + (rows - self.pos) % size + 1
        order = np.lexsort((ends, envs))
        envs, ends = envs[order], ends[order]
        starts = np.roll(ends, 1)
        starts[np.diff(envs, prepend=-1) > 0] = oldest  # the first one of each environment
        return np.stack([envs, starts, ends])

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None, env_inds: np.ndarray | None = None
    ) -> SequenceBatch:
        """
        :param batch_inds: rows of the first transitions of the windows ``[B]``
        :param env: normalises observations and rewards, if given
        :param env_inds: environments of the windows ``[B]``, the first one if None
        :return: the windows
        """
        rows, envs = batch_inds, np.zeros_like(batch_inds) if env_inds is None else env_inds
        alive = np.ones(len(rows), dtype=bool)
        steps: list[tuple[np.ndarray, ...]] = []
        buffer_index = []
        for _ in range(self.horizon):
            buffer_index.append((rows, envs))
            terminated = self.dones[rows, envs] * (1 - self.timeouts[rows, envs])
            steps.append((self.actions[rows, envs], self.rewards[rows, envs], terminated, alive))
            follows = self._next[rows, envs] == NEXT_ROW
            rows = np.where(follows, (rows + 1) % self.buffer_size, rows)
            alive = alive & follows
        read = self._read_copied if self.storage == "device" and env is None else self._read
        stacked: Any = {key: read(key, *np.array(buffer_index).swapaxes(0, 1)) for key in self._spaces}
        actions, rewards, terminated, mask = (np.stack(parts).astype(np.float32) for parts in zip(*steps, strict=True))
        self._relabel(stacked, rewards, buffer_index)
        stacked = self._normalize_obs(stacked if self._is_dict else stacked[""], env)
        rewards = self._normalize_reward(rewards, env)
        batch = SequenceBatch(
            tree_map_only(np.ndarray, lambda part: self.to_torch(part, copy=False), stacked),
            self.to_torch(actions, copy=False),
            self.to_torch(rewards[..., None], copy=False),
            self.to_torch(terminated[..., None], copy=False),
            self.to_torch(mask[..., None], copy=False),
        )
        return self._add_plans(batch, buffer_index)

    def _read(self, key: str, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        :param key: part of the observation
        :param rows: rows of the transitions of windows ``[H, B]``
        :param envs: their environments ``[H, B]``
        :return: observations of the windows ``[H + 1, B, *shape]``
        """
        following = self._following(key, rows.flatten(), envs.flatten())
        first = self._observations[key][rows[:1], envs[:1]]
        return np.concatenate([first, following.reshape(*rows.shape, *following.shape[1:])])

    def _read_copied(self, key: str, rows: np.ndarray, envs: np.ndarray) -> th.Tensor:
        """As :meth:`_read`, on the device; only observations that end an episode are in the host's memory."""
        device = th.device(self.device)
        if self._copy is None or self._copy.device != device:
            self._copy = DeviceCopy(self._observations, self.size(), device)
        link = self._next[rows, envs]
        next_rows = (rows + (link == NEXT_ROW)) % self.buffer_size
        read = self._copy.read(key, np.concatenate([rows[:1], next_rows]), np.concatenate([envs[:1], envs]))
        apart = np.flatnonzero(link != NEXT_ROW)
        if len(apart):
            following = self.to_torch(self._following(key, rows.flat[apart], envs.flat[apart]), copy=False)
            read[1:].flatten(0, 1).index_copy_(0, self.to_torch(apart, copy=False), following)
        return read

    def _following(self, key: str, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        :param key: part of the observation
        :param rows: rows of transitions ``[B]``
        :param envs: their environments ``[B]``
        :return: next observations of the transitions ``[B, *shape]``
        """
        link = self._next[rows, envs]
        following = self._observations[key][(rows + (link == NEXT_ROW)) % self.buffer_size, envs]
        final, head = np.flatnonzero(link >= 0), np.flatnonzero(link == HEAD)
        following[final] = self._final[key][link[final]]
        following[head] = self._head[key][envs[head]]
        return following

    def _relabel(
        self,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        buffer_index: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """
        Change windows in place before they are normalised; for derived buffers, does nothing here.

        :param observations: ``[H + 1, B, *shape]`` by key
        :param rewards: ``[H, B]``
        :param buffer_index: rows ``[B]`` and environments ``[B]`` of the transitions of each of the H steps
        """

    def _add_plans(self, batch: SequenceBatch, buffer_index: list[tuple[np.ndarray, np.ndarray]]) -> SequenceBatch:
        """
        :param batch: windows
        :param buffer_index: rows ``[B]`` and environments ``[B]`` of the transitions of each of the H steps
        :return: windows with the plans that a derived buffer stores; unchanged here
        """
        return batch

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """
        :param array: array
        :param copy: whether the tensor must not share its memory; sampled windows are the buffer's own copies
        :return: tensor on the buffer's device, see :func:`sb3_mpc.common.execution.transfer.to_device`
        """
        return to_device(array.copy() if copy else array, th.device(self.device))

    def set_env(self, env: VecEnv | None) -> None:
        """
        :param env: the agent's environment, for derived buffers; not used here
        """

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_copy": None}
        if self._allocated:  # unused rows are not saved
            for name in self.row_arrays:
                state[name] = state[name][: self.size()]
            state["_observations"] = {key: stored[: self.size()] for key, stored in self._observations.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = {name: state.pop(name) for name in (*self.row_arrays, "_observations")} if state["_allocated"] else {}
        kept: dict[str, Any] = {name: state[name] for name in ("_head", "_final", "_free") if name in state}
        self.__dict__.update(state)
        if processes.rank() > 0:  # that state is the first process's
            self.seed(processes.seed_after(self._total))
        if stored:
            self._allocated = False
            self._allocate()
            self.__dict__.update(kept)
            for key, part in stored.pop("_observations").items():
                self._observations[key][: self.size()] = part
            for name, part in stored.items():
                getattr(self, name)[: self.size()] = part
