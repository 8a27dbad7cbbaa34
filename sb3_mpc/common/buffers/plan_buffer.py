"""Replay of windows with their plans, for methods that learn from their planner."""

from typing import Any, ClassVar

import numpy as np

from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer, StoredEpisode


class PlanReplayBuffer(SequenceReplayBuffer):
    """
    Sequence buffer that stores the planner's Gaussian with each transition; the arguments are those of its base class.

    ``planned`` tells where there is a plan; elsewhere, as in transitions that a user has added, ``plans`` is NaN. (NaN
    alone does not say so: a plan that became NaN by accident is still a plan, and makes the loss NaN.)
    """

    row_arrays: ClassVar[tuple[str, ...]] = (*SequenceReplayBuffer.row_arrays, "plans", "planned")
    plans: np.ndarray  # [buffer_size, n_envs, 2, A]
    planned: np.ndarray  # [buffer_size, n_envs], bool

    @property
    def nbytes(self) -> int:
        """:return: bytes of a full buffer, final observations not counted"""
        return super().nbytes + self.buffer_size * self.n_envs * (2 * 4 * self.action_dim + 1)

    def _allocate(self) -> None:
        super()._allocate()
        self.plans = np.full((self.buffer_size, self.n_envs, 2, self.action_dim), np.nan, dtype=np.float32)
        self.planned = np.zeros((self.buffer_size, self.n_envs), dtype=bool)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one transition of each environment, without a plan; see :class:`SequenceReplayBuffer`."""
        row = self.pos
        super().add(*args, **kwargs)
        self.plans[row], self.planned[row] = np.nan, False

    def store_plans(self, plans: np.ndarray, rows: np.ndarray | None = None, envs: np.ndarray | None = None) -> None:
        """
        :param plans: mean and standard deviation of N actions ``[2, N, A]``
        :param rows: rows of their transitions ``[N]``; the newest row of every environment if None
        :param envs: their environments ``[N]``
        :raises ValueError: if a plan is NaN or infinite
        """
        if not np.isfinite(plans).all():
            raise ValueError(
                "A plan for the replay buffer is NaN or infinite: the model has diverged, load an earlier checkpoint, "
                "with a lower learning_rate or smaller rewards."
            )
        buffer_index = (self.pos - 1) % self.buffer_size if rows is None else (rows, envs)
        self.plans[buffer_index], self.planned[buffer_index] = plans.swapaxes(0, 1), True

    def _episode(self, rows: np.ndarray, env: int) -> StoredEpisode:
        return super()._episode(rows, env)._replace(plans=self.plans[rows, env], planned=self.planned[rows, env])

    def _add_plans(self, batch: SequenceBatch, buffer_index: list[tuple[np.ndarray, np.ndarray]]) -> SequenceBatch:
        index = np.array(buffer_index).swapaxes(0, 1)  # [2, H, B]
        plans = np.moveaxis(self.plans[index[0], index[1]], 2, 0)
        planned = self.planned[index[0], index[1]][..., None]
        return batch._replace(
            plans=self.to_torch(np.ascontiguousarray(plans), copy=False),
            buffer_index=index,
            planned=self.to_torch(planned, copy=False),
        )
