"""Observation and action spaces as plain JSON."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

MAX_SIZE = 2**22  # largest number of entries of a space, more than an observation has
MAX_PARTS, MAX_DEPTH = 1_000, 10  # of a Dict


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    :param space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them
    :return: description from which :func:`space_from_json` rebuilds the space
    :raises ValueError: if it is another kind of space
    """
    if isinstance(space, spaces.Dict):
        return dict(type="Dict", spaces=[[key, space_to_json(sub)] for key, sub in space.spaces.items()])
    described: dict[str, Any] = dict(type=type(space).__name__, dtype=str(space.dtype))
    if isinstance(space, spaces.Box):
        return described | dict(shape=list(space.shape), low=_numbers(space.low), high=_numbers(space.high))
    if isinstance(space, spaces.Discrete):
        return described | dict(n=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return described | dict(nvec=space.nvec.tolist(), start=space.start.tolist())
    if isinstance(space, spaces.MultiBinary):
        return described | dict(n=space.n if isinstance(space.n, int) else list(space.n))
    raise ValueError(f"The space {space} cannot be written to a file: use Box, Discrete, MultiDiscrete or MultiBinary.")


def space_from_json(described: dict[str, Any], depth: int = 0) -> spaces.Space:
    """
    :param described: as returned by :func:`space_to_json`
    :param depth: number of spaces that it is in
    :return: the space
    :raises ValueError: if it does not describe a space
    """
    kind, dtype = described["type"], np.dtype(described.get("dtype", "float32"))
    if dtype.kind not in "fiub":
        raise ValueError(f"a space cannot hold {dtype}")
    if kind == "Dict":
        if depth > MAX_DEPTH or len(described["spaces"]) > MAX_PARTS:
            raise ValueError("a Dict has too many spaces in it")
        return spaces.Dict([(str(key), space_from_json(sub, depth + 1)) for key, sub in described["spaces"]])
    if kind == "Box":
        shape = tuple(int(size) for size in described["shape"])
        if any(size < 0 for size in shape) or math.prod(shape) > MAX_SIZE:
            raise ValueError(f"a space of the shape {shape} is too large")
        low, high = (_array(described[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(described["n"]), start=int(described["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(described["nvec"], dtype.type, start=described["start"])
    if kind == "MultiBinary":
        if np.prod(described["n"]) > MAX_SIZE:
            raise ValueError(f"a space of {described['n']} entries is too large")
        return spaces.MultiBinary(described["n"])
    raise ValueError(f"unknown space {kind!r}")


def _numbers(bounds: np.ndarray) -> Any:
    """:return: flat list of the bounds, or one number if all are equal; infinite bounds as "inf" and "-inf" """
    flat = [x if math.isfinite(x) else str(x) for x in bounds.reshape(-1).tolist()]
    return flat[0] if len(set(flat)) == 1 else flat


def _array(numbers: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    flat = [float(x) if isinstance(x, str) else x for x in (numbers if isinstance(numbers, list) else [numbers])]
    return np.broadcast_to(np.array(flat, dtype), (math.prod(shape),)).reshape(shape)
