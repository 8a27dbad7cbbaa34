"""Stored observations in the memory of the device, so that windows of them are not copied there for every update."""

from collections.abc import Mapping

import numpy as np
import torch as th

from sb3_mpc.common.execution.transfer import to_device


class DeviceCopy:
    """
    Copy of stored observations on the device, which the buffer keeps up to date.

    :param stored: observations ``[buffer_size, n_envs, *shape]`` by key
    :param rows: number of rows that are in use
    :param device: where the copy is
    :raises MemoryError: if it does not fit there
    """

    def __init__(self, stored: Mapping[str, np.ndarray], rows: int, device: th.device) -> None:
        self.device = device
        self.parts: dict[str, th.Tensor] = {}
        try:
            for key, part in stored.items():
                dtype = to_device(part[:0], device).dtype
                self.parts[key] = th.empty(part.shape, dtype=dtype, device=device)
                self.parts[key][:rows] = th.as_tensor(part[:rows])
        except th.OutOfMemoryError as error:
            size = sum(part.nbytes for part in stored.values()) / 1e9
            raise MemoryError(
                f"The observations of the replay buffer, {size:.1f} GB, do not fit on {device}: use a smaller "
                'buffer_size, or storage="host".'
            ) from error

    def write(self, row: int, observations: Mapping[str, np.ndarray]) -> None:
        """
        :param row: row of the buffer
        :param observations: its observations ``[n_envs, *shape]`` by key
        """
        for key, part in observations.items():
            self.parts[key][row] = to_device(part, self.parts[key].device)

    def read(self, key: str, rows: np.ndarray, envs: np.ndarray) -> th.Tensor:
        """
        :param key: part of the observation
        :param rows: rows of the buffer, any shape
        :param envs: environments, of the same shape
        :return: the observations ``[..., *shape]``
        """
        part = self.parts[key]
        index = to_device(rows * part.shape[1] + envs, part.device)
        return part.flatten(0, 1)[index]
