"""Windows of a data set, as the replay buffer gives them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.sources import OF_DATA
from sb3_mpc.offline.layout import TASK, observation_columns, tells_task

if TYPE_CHECKING:
    from sb3_mpc.offline.dataset import Dataset

SAMPLING = ("transitions", "episodes")


class PlanTable:
    """
    Plans made anew for transitions of a data set, which itself is never changed. Memory is taken for those rows alone,
    and four bytes for each row of the pages they are in.

    :param rows: number of transitions of the data set
    :param action_dim: number A of action dimensions
    """

    def __init__(self, rows: int, action_dim: int) -> None:
        self._place = np.zeros(rows, np.int32)  # of a row's plan, counted from 1; 0 without. Taken page by page
        self._rows = np.zeros(0, np.int64)
        self._plans = np.zeros((0, 2, action_dim), np.float32)
        self._count = 0

    def store(self, rows: np.ndarray, plans: np.ndarray) -> None:
        """
        :param rows: transitions ``[N]``, of which the last one counts if one occurs twice
        :param plans: ``[N, 2, A]``
        """
        new = np.unique(rows[self._place[rows] == 0])
        if self._count + len(new) > len(self._rows):
            more = max(len(new), len(self._rows), 1024)
            self._rows = np.concatenate([self._rows, np.zeros(more, np.int64)])
            self._plans = np.concatenate([self._plans, np.zeros((more, *self._plans.shape[1:]), np.float32)])
        self._rows[self._count : self._count + len(new)] = new
        self._place[new] = self._count + 1 + np.arange(len(new))
        self._count += len(new)
        self._plans[self._place[rows] - 1] = plans

    def apply(self, rows: np.ndarray, plans: np.ndarray, planned: np.ndarray) -> None:
        """
        :param rows: transitions ``[...]``
        :param plans: their plans ``[..., 2, A]``, replaced where there is a new one
        :param planned: whether there is a plan ``[...]``, likewise
        """
        if self._count == 0:
            return
        place = self._place[rows]
        known = place > 0
        plans[known], planned[known] = self._plans[place[known] - 1], True

    def state(self) -> dict[str, np.ndarray]:
        """:return: rows and plans"""
        return dict(rows=self._rows[: self._count].copy(), plans=self._plans[: self._count].copy())


class Windows:
    """
    Draws windows of a data set, with the memory of one batch. It is used as a replay buffer: see
    :class:`sb3_mpc.common.buffers.sequence_buffer.SequenceReplayBuffer` for windows and for the rules of sampling. All
    episodes count as ended.

    :param data: the data set
    :param horizon: number H of transitions in a window
    :param sampling: "transitions": any transition is equally likely to start a window; "episodes": first an episode is
        drawn, each with the same chance whatever its length, and then one of its windows
    :param observation_space: space of the model, whose types observations get; that of the data if None
    :param device: device of the sampled tensors
    :param plans: whether batches have plans
    :param seed: seed of the sampling, taken from the operating system if None
    :raises ValueError: if the rule of sampling is unknown, or no episode is long enough for it
    """

    def __init__(
        self,
        data: "Dataset",
        horizon: int = 3,
        sampling: str = "transitions",
        observation_space: spaces.Space | None = None,
        device: th.device | str = "cpu",
        plans: bool = False,
        seed: int | None = None,
    ) -> None:
        if sampling not in SAMPLING:
            raise ValueError(f'{sampling=} is unknown: use "transitions" or "episodes".')
        self.data, self.horizon, self.sampling, self.plans = data, horizon, sampling, plans
        self.observation_space = observation_space or data.observation_space
        self.action_space = data.action_space
        self.device = get_device(device)
        self._ends = np.cumsum(data.episodes["length"])  # of the episodes, if only these had rows
        self._long = np.flatnonzero(data.episodes["length"] >= horizon) if sampling == "episodes" else np.empty(0, int)
        if sampling == "episodes" and len(self._long) == 0:
            raise ValueError(
                f'No episode of {data.path} has {horizon} transitions or more: with sampling="episodes", choose a '
                "smaller horizon."
            )
        self._table: PlanTable | None = None
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        """
        :param seed: seed of the sampling, taken from the operating system if None
        """
        self._rng = np.random.default_rng(seed)

    def size(self) -> int:
        """:return: number of transitions"""
        return self.data.rows

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:
        """
        :param batch_size: number B of windows
        :param env: normalises observations and rewards, if given
        :return: windows drawn by the rule ``sampling``, with replacement
        """
        return self.at(*self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """:return: episodes and first steps of the windows ``[B]``"""
        if self.sampling == "episodes":
            episodes = self._long[self._rng.integers(len(self._long), size=batch_size)]
            return episodes, self._rng.integers(self.data.episodes["length"][episodes] - self.horizon + 1)
        rows = self._rng.integers(self.data.rows, size=batch_size)
        episodes = np.searchsorted(self._ends, rows, side="right")
        return episodes, rows - self._ends[episodes] + self.data.episodes["length"][episodes]

    def at(self, episodes: np.ndarray, steps: np.ndarray, env: VecNormalize | None = None) -> SequenceBatch:
        """
        :param episodes: numbers of the episodes of the windows ``[B]``
        :param steps: steps of these episodes that the windows start with ``[B]``
        :param env: normalises observations and rewards, if given
        :return: the windows
        """
        data, index = self.data, self.data.episodes
        first, left = index["start"][episodes] + steps, index["length"][episodes] - steps
        step = np.arange(self.horizon + 1)[:, None]
        seen, taken = np.minimum(step, left), np.minimum(step[:-1], left - 1)  # [H + 1, B], [H, B]
        terminated = (taken == left - 1) & index["terminated"][episodes]
        stored = observation_columns(data.observation_space)
        first_seen = first + data.numbers[episodes]
        parts: Any = {key: data.readers[name].read(first_seen, seen) for key, (name, _) in stored.items()}
        if tells_task(data.observation_space):
            parts[TASK] = np.broadcast_to(index["task"][episodes].astype(np.int64), seen.shape).copy()
        observations: Any = ReplayBuffer._normalize_obs(self._typed(parts), env)
        rewards = ReplayBuffer._normalize_reward(data.readers["rewards"].read(first, taken), env)
        batch = SequenceBatch(
            {key: self._tensor(part) for key, part in observations.items()}
            if isinstance(observations, dict)
            else self._tensor(observations),
            self._tensor(data.readers["actions"].read(first, taken)),
            self._tensor(rewards[..., None]),
            self._tensor(terminated[..., None].astype(np.float32)),
            self._tensor((step[:-1] < left)[..., None].astype(np.float32)),
        )
        return self._with_plans(batch, first + taken) if self.plans else batch

    def _typed(self, parts: dict[str, np.ndarray]) -> Any:
        """:return: observations of the types of the model's space"""
        if not isinstance(self.observation_space, spaces.Dict):
            return parts[""].astype(self.observation_space.dtype, copy=False)
        return {key: parts[key].astype(sub.dtype, copy=False) for key, sub in self.observation_space.spaces.items()}

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, device=self.device)

    def _with_plans(self, batch: SequenceBatch, rows: np.ndarray) -> SequenceBatch:
        columns, dim = self.data.columns, batch.actions.shape[-1]
        if "plans" in columns:
            plans, planned = columns["plans"][rows], columns["planned"][rows]
        else:
            plans, planned = np.full((*rows.shape, 2, dim), np.nan, np.float32), np.zeros(rows.shape, bool)
        if self._table is not None:
            self._table.apply(rows, plans, planned)
        return batch._replace(
            plans=self._tensor(np.ascontiguousarray(np.moveaxis(plans, 2, 0))),
            buffer_index=np.stack([rows, np.full_like(rows, OF_DATA)]),
            planned=self._tensor(planned[..., None]),
        )

    def store_plans(self, plans: np.ndarray, rows: np.ndarray, envs: np.ndarray | None = None) -> None:
        """
        Keep plans in memory; the data set stays as it is.

        :param plans: mean and standard deviation of N actions ``[2, N, A]``
        :param rows: their transitions ``[N]``
        :param envs: has no meaning here
        :raises ValueError: if a plan is NaN or infinite
        """
        if not np.isfinite(plans).all():
            raise ValueError("A plan is NaN or infinite: the model has diverged, load an earlier checkpoint.")
        if self._table is None:
            self._table = PlanTable(len(self.data.columns["rewards"]), plans.shape[-1])
        self._table.store(rows, plans.swapaxes(0, 1))

    def state(self) -> dict[str, Any]:
        """:return: what a resumed run needs to draw the same windows with the same plans"""
        table = None if self._table is None else self._table.state()
        return dict(rng=self._rng.bit_generator.state, plans=table)

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: as returned by :meth:`state`
        """
        self._rng.bit_generator.state = state["rng"]
        if state["plans"] is not None:
            self.store_plans(state["plans"]["plans"].swapaxes(0, 1), state["plans"]["rows"])

    def first_steps(self, count: int, env: VecNormalize | None = None) -> tuple[SequenceBatch, np.ndarray]:
        """
        :param count: most episodes that are looked at, spread over the data set
        :param env: normalises observations and rewards, if given
        :return: windows that start where these episodes start, and their rewards, with zeros behind their ends
            ``[T, N]``
        """
        chosen = np.unique(np.linspace(0, len(self.data.episodes) - 1, count, dtype=np.int64))
        index = self.data.episodes[chosen]
        rewards = np.zeros((int(index["length"].max()), len(chosen)))
        for i, (start, length) in enumerate(zip(index["start"], index["length"], strict=True)):
            rewards[:length, i] = self.data.columns["rewards"][start : start + length]
        return self.at(chosen, np.zeros_like(chosen), env), ReplayBuffer._normalize_reward(rewards, env)
