"""Data on their way from the memory of the computer to that of the device."""

from typing import Any

import numpy as np
import torch as th


def with_index(device: th.device) -> th.device:
    """
    :param device: device, such as "cuda"
    :return: the same with its number, which does not change when another GPU becomes the current one
    """
    return th.device("cuda", th.cuda.current_device()) if device == th.device("cuda") else device


def in_float32(arrays: Any, device: th.device) -> Any:
    """
    :param arrays: array, or dict of them
    :param device: device that they are meant for
    :return: the same, in float32 instead of float64 unless they are meant for a CPU: half as much to copy, there is no
        float64 on MPS, and networks compute in float32 anyway
    """
    if device.type == "cpu":
        return arrays
    if isinstance(arrays, dict):
        return {key: in_float32(array, device) for key, array in arrays.items()}
    array = np.asarray(arrays)
    return array.astype(np.float32) if array.dtype == np.float64 else arrays


def to_device(array: np.ndarray, device: th.device) -> th.Tensor:
    """
    :param array: array, which is not changed later
    :param device: where it goes
    :return: tensor of it; a GPU copies from page-locked memory, while the program goes on
    """
    tensor = th.as_tensor(in_float32(array, device))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
