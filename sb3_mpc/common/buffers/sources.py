"""What updates may draw their windows from besides the replay buffer: recorded data, and a mixture of both."""

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer

# In place of an environment in ``buffer_index``: the row is one of recorded data
OF_DATA = -2


class DataWindows(Protocol):
    """Windows of recorded data, see :class:`sb3_mpc.offline.windows.Windows`."""

    horizon: int
    device: th.device

    def seed(self, seed: int | None) -> None:
        """Seed the sampling."""

    def size(self) -> int:
        """:return: number of transitions"""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:
        """:return: windows"""

    def store_plans(self, plans: np.ndarray, rows: np.ndarray, envs: np.ndarray | None = None) -> None:
        """Keep plans of transitions."""

    def state(self) -> dict[str, Any]:
        """:return: what a resumed run needs"""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    def first_steps(self, count: int, env: VecNormalize | None = None) -> tuple[SequenceBatch, np.ndarray]:
        """:return: first windows of episodes, and the rewards of these ``[T, N]``"""


class RecordedData(Protocol):
    """Data that an agent learns from without having collected them, see :class:`sb3_mpc.offline.Dataset`."""

    observation_space: spaces.Space
    action_space: spaces.Space

    @property
    def fingerprint(self) -> str:
        """:return: what only these data have"""

    @property
    def terminates(self) -> bool:
        """:return: whether an episode ended by termination"""

    def windows(
        self,
        horizon: int = 3,
        sampling: str = "transitions",
        observation_space: spaces.Space | None = None,
        device: th.device | str = "cpu",
        plans: bool = False,
        seed: int | None = None,
    ) -> DataWindows:
        """:return: windows to draw"""

    def as_env(self) -> gym.Env:
        """:return: an environment that has the spaces alone"""


class MixedWindows:
    """
    Batches of which a part is of recorded data, and the rest of the replay buffer. As long as the buffer has nothing to
    draw, all of it is of the data.

    :param buffer: the replay buffer
    :param data: windows of the data
    :param fraction: function that returns the part of the data, from 0 to 1
    """

    def __init__(self, buffer: SequenceReplayBuffer, data: DataWindows, fraction: Callable[[], float]) -> None:
        self.buffer, self.data, self.fraction = buffer, data, fraction

    @property
    def parts(self) -> list[Any]:
        """:return: what the windows are drawn from"""
        return [self.buffer, self.data]

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:
        """
        :param batch_size: number B of windows
        :param env: normalises observations and rewards, if given
        :return: windows of the data first, then those of the buffer
        """
        of_data = min(batch_size, max(0, round(self.fraction() * batch_size)))
        own = self._own(batch_size - of_data, env)
        if own is None:
            return self.data.sample(batch_size, env)
        return own if of_data == 0 else join(self.data.sample(of_data, env), own)

    def _own(self, count: int, env: VecNormalize | None) -> SequenceBatch | None:
        if count == 0 or self.buffer.size() == 0:
            return None
        try:
            return self.buffer.sample(count, env)
        except RuntimeError:  # no episode has ended yet
            return None

    def store_plans(self, plans: np.ndarray, rows: np.ndarray, envs: np.ndarray) -> None:
        """Store plans where their transitions are; see the replay buffer."""
        of_data = envs == OF_DATA
        if of_data.any():
            self.data.store_plans(plans[:, of_data], rows[of_data], envs[of_data])
        if not of_data.all():
            self.buffer.store_plans(plans[:, ~of_data], rows[~of_data], envs[~of_data])


def join(first: SequenceBatch, second: SequenceBatch) -> SequenceBatch:
    """
    :param first: windows
    :param second: further windows of the same shapes
    :return: both, side by side
    """

    def both(a: Any, b: Any, dim: int = 1) -> Any:
        if a is None or b is None:
            return None
        if isinstance(a, dict):
            return {key: both(part, b[key]) for key, part in a.items()}
        return np.concatenate([a, b], axis=dim) if isinstance(a, np.ndarray) else th.cat([a, b], dim=dim)

    at_two = ("plans", "buffer_index")
    pairs = zip(first._fields, first, second, strict=True)
    return SequenceBatch(**{name: both(a, b, 2 if name in at_two else 1) for name, a, b in pairs})
