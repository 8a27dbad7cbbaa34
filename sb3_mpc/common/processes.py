"""
Several processes that train one agent together, as ``torchrun`` starts them.

Each process has environments, data and random numbers of its own; gradients are averaged, so that all of them have the
same parameters. What is estimated from a batch is estimated from the batches of all. The first process, of rank 0,
logs, evaluates and saves. With one process, everything here has no effect.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
import torch.distributed as dist

_joined = False  # set by `join`


def size() -> int:
    """:return: number of processes that train together; torchrun sets it for each of them"""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """:return: number of this process, from 0 on"""
    return int(os.environ["RANK"]) if size() > 1 else 0


def joined() -> bool:
    """:return: whether there are several processes and they are connected; a constant for compiled functions"""
    return _joined


def own_device(device: th.device | str) -> th.device | str:
    """
    :param device: device that the user wants
    :return: the GPU of this process if there are several processes and it is "auto" or "cuda"
    """
    if size() == 1 or str(device) not in ("auto", "cuda") or not th.cuda.is_available():
        return device
    return th.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % th.cuda.device_count())


def own_seed(seed: int | None, n_envs: int = 1) -> int | None:
    """
    :param seed: seed of the run
    :param n_envs: number of environments of each process
    :return: seed of this process; environments have consecutive ones, across the processes, too
    """
    return None if seed is None else seed + rank() * n_envs


def seed_after(updates: int) -> int:
    """
    :param updates: number of updates before
    :return: seed of this process for what follows, when it goes on from a checkpoint of another one
    """
    return int(np.random.SeedSequence([rank(), updates]).generate_state(1)[0]) % 2**31


def share(batch_size: int) -> int:
    """
    :param batch_size: number of windows in a batch
    :return: those that this process draws
    :raises ValueError: if they cannot be divided equally
    """
    if joined() and batch_size % size():
        raise ValueError(f"batch_size={batch_size} cannot be divided among {size()} processes: choose a multiple.")
    return batch_size // size() if joined() else batch_size


def part(number: int) -> int:
    """
    :param number: how many of something are done in an update
    :return: how many this process does, rounded up
    """
    return -(-number // size()) if joined() else number


def join(device: th.device) -> None:
    """
    Connect the processes. Does nothing if there is one, or if they are connected.

    :param device: device of the agent
    """
    global _joined
    if size() > 1 and not joined():
        if device.type == "cuda":
            th.cuda.set_device(device)
        with _together():
            if not dist.is_initialized():  # as it is if the user's script has connected them
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        _joined = True


@contextmanager
def _together() -> Iterator[None]:
    """Explain in one sentence why the processes cannot work together."""
    try:
        yield
    except RuntimeError as error:  # of a lost connection, or of one that does not answer in time
        reason = " ".join(str(error).split())[:160]
        raise RuntimeError(
            f"Process {rank()} of {size()} stops, because another one has ended or does not answer: its own message "
            f"says why; continue the run from its last checkpoint ({reason})."
        ) from error


@th.no_grad()
def average(tensors: list[th.Tensor]) -> list[th.Tensor]:
    """
    :param tensors: as many and as large ones in all processes, such as gradients
    :return: their means over the processes, by one exchange
    """
    if not joined() or not tensors:
        return tensors
    flat = th.cat([tensor.flatten() for tensor in tensors])
    with _together():
        dist.all_reduce(flat)
    pieces = th.split(flat.div_(size()), [tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


@th.no_grad()
def gather(x: th.Tensor, dim: int = 0) -> th.Tensor:
    """
    :param x: part of this process, of the same shape in all
    :param dim: dimension of the parts
    :return: the parts of all processes, concatenated
    """
    if not joined():
        return x
    parts = [th.empty_like(x, memory_format=th.contiguous_format) for _ in range(size())]
    with _together():
        dist.all_gather(parts, x.contiguous())
    return th.cat(parts, dim)


def greatest(*numbers: float) -> list[float]:
    """
    :param numbers: as many in all processes
    :return: the greatest of each over the processes
    """
    if not joined():
        return list(numbers)
    found = th.tensor(numbers, dtype=th.float64)
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


@th.no_grad()
def broadcast(tensors: Iterable[th.Tensor]) -> None:
    """
    :param tensors: as many and as large ones in all processes; they become those of the first one
    """
    if joined():
        with _together():
            for tensor in tensors:
                dist.broadcast(tensor, 0)
