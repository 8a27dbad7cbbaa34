"""
Data of the official TD-MPC2 (https://www.tdmpc2.com/dataset): files ``chunk_*.pt`` with pickled TensorDicts of the
shape ``[episodes, rows]`` and the keys obs, action, reward and task. Row t has the observation t, and the action and
reward that led to it, which in row 0 are NaN. Nobody terminates.

TensorDict is not needed. Its pickles are read by an unpickler that knows tensors alone; whatever else a file names
becomes an inert container, so that nothing in it is executed.
"""

import collections
import pickle
import re
import types
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mpc.offline.layout import TASK

# Decisions in an episode of each task in the sets mt30 (DMControl) and mt80 (with Meta-World), by number of tasks
EPISODE_LENGTHS = {30: [500] * 30, 80: [500] * 30 + [100] * 50}
KEYS = ("obs", "action", "reward", "task")
EPISODES_AT_ONCE = 2_000


class Container(dict):
    """What stands for a class of TensorDict: it keeps its arguments and its state."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.arguments = (args, kwargs)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class TensorUnpickler(pickle.Unpickler):
    """Knows tensors, and containers for the classes of TensorDict."""

    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): th._utils._rebuild_tensor_v2,
        ("torch", "Size"): th.Size,
        ("torch", "device"): th.device,
    }

    def find_class(self, module: str, name: str) -> Any:
        """
        :param module: module of the class or function
        :param name: its name
        :return: what stands for it
        :raises pickle.UnpicklingError: if it is none of those known
        """
        if module.split(".")[0] == "tensordict":
            return Container
        if module == "torch" and isinstance(getattr(th, name, None), th.dtype):
            return getattr(th, name)
        try:
            return self.known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no tensor") from None


# What torch.load takes for the module pickle
_TENSORS_ONLY = types.SimpleNamespace(
    Unpickler=TensorUnpickler, UnpicklingError=pickle.UnpicklingError, __name__="pickle"
)


def read_chunk(path: Path) -> dict[str, th.Tensor]:
    """
    :param path: file ``chunk_*.pt``, which is mapped into memory and not loaded
    :return: the tensors obs ``[E, L, D]``, action ``[E, L, A]``, reward and task ``[E, L]``
    :raises ValueError: if it is no such file, or holds anything else
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError
        content = th.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_TENSORS_ONLY)
        found = next(_tensors(content, 0))
        shape = found["reward"].shape
        if len(shape) != 2 or shape[1] < 2 or any(found[key].shape[:2] != shape for key in KEYS):
            raise ValueError
        if found["task"].is_floating_point() or found["obs"].dim() != 3 or found["action"].dim() != 3:
            raise ValueError
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a hostile file brings about
        raise ValueError(
            f"{path} was refused, and nothing in it executed: it is damaged, or has no tensors obs, action, reward and "
            "task of the official data."
        ) from error
    return found


def _tensors(content: Any, depth: int) -> Iterator[dict[str, th.Tensor]]:
    """:return: what has the keys, wherever it is in a TensorDict"""
    if depth > 8:
        return
    if isinstance(content, dict) and all(isinstance(content.get(key), th.Tensor) for key in KEYS):
        yield {key: content[key] for key in KEYS}
    parts: list[Any] = list(content.values() if isinstance(content, dict) else content)
    if isinstance(content, Container):
        parts += [content.state, *content.arguments[0], *content.arguments[1].values()]
    for part in parts:
        if isinstance(part, (dict, list, tuple)):
            yield from _tensors(part, depth + 1)


def find_chunks(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """
    :param source: folder, file or files
    :return: the files, in the order of their numbers
    :raises FileNotFoundError: if there is none
    """
    given = [Path(source)] if isinstance(source, (str, Path)) else [Path(path) for path in source]
    files = [file for path in given for file in (path.glob("chunk_*.pt") if path.is_dir() else [path])]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"There is no file chunk_*.pt at {(missing or given)[0]}: give their folder.")
    return sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def infer(files: Sequence[Path]) -> tuple[spaces.Dict, spaces.Box, list[int] | None]:
    """
    :param files: the files
    :return: spaces of observations and actions, and lengths of the episodes of the tasks if the set is known
    """
    tasks, sizes = 0, (0, 0)
    for file in files:
        chunk = read_chunk(file)
        tasks = max(tasks, int(chunk["task"].max()) + 1)
        sizes = (chunk["obs"].shape[2], chunk["action"].shape[2])
    obs = spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32)
    space = spaces.Dict({"obs": obs, TASK: spaces.Discrete(tasks)})
    return space, spaces.Box(-1, 1, (sizes[1],), np.float32), EPISODE_LENGTHS.get(tasks)


def of_chunks(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """
    :param files: the files
    :return: episodes, many at once
    """
    for file in files:
        chunk = read_chunk(file)
        for start in range(0, len(chunk["reward"]), EPISODES_AT_ONCE):
            part = {key: value[start : start + EPISODES_AT_ONCE].numpy() for key, value in chunk.items()}
            count, length = part["reward"].shape
            task = part["task"].reshape(count, length)
            yield dict(
                observations={"obs": part["obs"].reshape(count * length, -1), TASK: task.reshape(-1)},
                actions=part["action"][:, 1:].reshape(count * (length - 1), -1),
                rewards=part["reward"][:, 1:].reshape(-1),
                terminated=False,
                truncated=True,
                lengths=np.full(count, length - 1),
                scaled=True,
            )
