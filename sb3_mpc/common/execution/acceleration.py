"""Choice of precision and compilation, in one place."""

import math
import os
import shutil
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_mpc.common.execution.cuda_graphs import GraphedFunction

# Compiling takes one to two minutes and saves up to half the time of a plan or an update on a CPU (zoo/benchmarks); it
# pays off from this number of plans and updates
CALLS_WORTH_COMPILING = 30_000
# Smaller networks are limited by overheads that reduced precision does not remove
PARAMETERS_WORTH_REDUCING = 500_000
# Features of processors that multiply matrices in bfloat16 faster than in float32
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
# Largest output of a layer that is computed at once, in float32 numbers: 1 MB on a CPU, the cache budget per core, and
# 256 MB on a GPU, where a plan holds about a dozen of them
LARGEST_OUTPUT = {"cpu": 2**18, "cuda": 2**26}


class Acceleration(NamedTuple):
    """
    How plans and updates are executed.

    :param compiles: whether plan and update are compiled
    :param bfloat16: whether plans are made in bfloat16
    """

    compiles: bool
    bfloat16: bool


def choose_acceleration(compile: bool | str, model: nn.Module, device: th.device, calls: int = 0) -> Acceleration:
    """
    :param compile: the user's switch: False is the eager float32 reference, True compiles, "auto" compiles where that
        pays off; True and "auto" plan in bfloat16 if the processor supports it in hardware
    :param model: the networks
    :param device: device of the model
    :param calls: number of plans and updates of the run
    :return: the choice; "auto" does not compile short runs, nor on GPUs (not measured); small networks stay in float32
    :raises ValueError: if the switch has another value
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f'compile={compile!r} is not understood: use True, False or "auto".')
    large = sum(parameter.numel() for parameter in model.parameters()) >= PARAMETERS_WORTH_REDUCING
    pays = compile == "auto" and device.type == "cpu" and calls >= CALLS_WORTH_COMPILING and has_compiler()
    return Acceleration(
        compiles=compile is True or pays,
        bfloat16=compile is not False and large and has_bfloat16_units(device),
    )


def has_bfloat16_units(device: th.device) -> bool:
    """
    :param device: device of the model
    :return: whether it is a processor that supports bfloat16 in hardware
    """
    if device.type != "cpu" or not hasattr(th.cpu, "get_capabilities"):
        return False
    capabilities = th.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in BFLOAT16_UNITS)


def number_of_parts(device: th.device, count: int, numbers: int) -> int:
    """
    :param device: device of the model
    :param count: number of inputs
    :param numbers: size of a layer's output for one input
    :return: number of parts to split the inputs into, so that the output for a part is not too large
    """
    largest = LARGEST_OUTPUT.get(device.type, 2**26)
    return math.ceil(count / max(1, largest // numbers))


def full_precision(x: th.Tensor, wanted: bool = True) -> AbstractContextManager:
    """
    :param x: input of the computation in the context
    :param wanted: if False, the context has no effect
    :return: context in which matrix products keep the precision of their operands, also while planning in bfloat16
    """
    kind = x.device.type
    return th.autocast(kind, enabled=False) if wanted and th.is_autocast_enabled(kind) else nullcontext()


@cache
def has_compiler() -> bool:
    """:return: whether torch.compile works here, tried on one small function: it needs a C++ compiler with headers"""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return False
    try:
        th.compile(lambda x: x.sin() + 1, dynamic=False)(th.zeros(8))
    except Exception as error:  # of the compiler, the linker, a folder mounted without execution, ...
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f'compile="auto" runs without torch.compile, which fails on this machine: {reason}', stacklevel=2)
        return False
    return True


def compile_function(function: Callable[..., Any], takes_gradients: bool = False) -> Callable[..., Any]:
    """
    :param function: function of tensors
    :param takes_gradients: whether it calls ``torch.autograd.grad``
    :return: the function compiled by torch.compile for fixed shapes, whose first call takes up to a minute
    """
    compiled = th.compile(function, dynamic=False)
    if not takes_gradients:
        return compiled

    @wraps(function)
    def call(*args: Any) -> Any:
        with _traced_gradients():
            return compiled(*args)

    return call


@contextmanager
def _traced_gradients() -> Iterator[None]:
    """:return: context in which a compiled function and its gradients become one graph, where PyTorch can do that"""
    from torch._dynamo import config

    before = getattr(config, "trace_autograd_ops", None)
    if before is not None:
        config.trace_autograd_ops = True
    try:
        yield
    finally:
        if before is not None:
            config.trace_autograd_ops = before


def graphed(function: Callable[..., Any], constants: Callable[[], Hashable] = lambda: None) -> Callable[..., Any]:
    """
    :param function: function of tensors
    :param constants: plain values that the function reads besides, see :class:`GraphedFunction`
    :return: on machines with a GPU the function, replayed as one CUDA graph for tensors there; otherwise itself
    """
    return GraphedFunction(function, constants) if th.cuda.is_available() else function


def set_learning_rate(group: dict[str, Any], rate: float, recorded: bool) -> None:
    """
    :param group: parameter group of an optimiser
    :param rate: learning rate
    :param recorded: whether the optimiser's step is recorded as a CUDA graph; the rate must then be a tensor, changed
        in place, because a number would become a constant
    """
    device = group["params"][0].device
    if not recorded:
        group["lr"] = rate
    elif isinstance(group["lr"], th.Tensor) and group["lr"].device == device:
        group["lr"].fill_(rate)
    else:
        group["lr"] = th.tensor(rate, device=device)
    if recorded and device.type == "cuda" and "capturable" in group:
        group["capturable"] = True
