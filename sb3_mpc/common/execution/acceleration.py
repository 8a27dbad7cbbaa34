"""Choice of precision and compilation, in one place."""

import os
import shutil
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, wraps
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_mpc.common.execution import settings
from sb3_mpc.common.execution.cuda_graphs import GraphedFunction
from sb3_mpc.common.execution.processor import choose_threads, is_faster_with_onednn
from sb3_mpc.common.execution.processor import has_bfloat16_units as has_bfloat16_units

# Compiling takes about a minute and saves up to half the time of a plan or an update on a CPU (zoo/benchmarks), some
# milliseconds at least, so that it pays off from about this number of plans and updates. With the preset "small" it
# does from 3,000 on, on an AMD EPYC (AVX2) where an update took 42 ms, compiled 22 ms
CALLS_WORTH_COMPILING = 10_000
# Smaller networks are limited by overheads that reduced precision does not remove
PARAMETERS_WORTH_REDUCING = 500_000
# Largest output of a layer that is computed at once, in float32 numbers: 1 MB on a CPU, the cache budget per core, and
# 128 MB elsewhere, where a plan holds about a dozen of them
LARGEST_OUTPUT = {"cpu": 2**18}
LARGEST_OUTPUT_ELSEWHERE = 2**25


class Acceleration(NamedTuple):
    """
    How plans and updates are executed.

    :param compiles: whether plan and update are compiled
    :param bfloat16: whether plans are made in bfloat16
    :param onednn: whether oneDNN multiplies the float32 matrices in place of MKL
    :param threads: number of threads, the process's own if None
    :param tf32: whether a GPU multiplies float32 matrices with the precision of TF32
    :param tuned_convolutions: whether a GPU's algorithms for convolutions are chosen by their speed
    """

    compiles: bool
    bfloat16: bool
    onednn: bool = False
    threads: int | None = None
    tf32: bool = False
    tuned_convolutions: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """
        :return: context of plans and updates with these libraries and this number of threads, which are settings of the
            whole process; the previous ones are restored, and a user's own precision stays
        """
        with ExitStack() as stack:
            if self.threads is not None:
                stack.enter_context(settings.number_of_threads(self.threads))
            if self.onednn or self.tf32:  # "medium" is PyTorch's switch to oneDNN, which stays in float32 without AMX
                stack.enter_context(settings.float32_products("high" if self.tf32 else "medium"))
            if self.tuned_convolutions:
                stack.enter_context(settings.tuned_convolutions())
            yield

    def describe(self) -> str:
        """:return: the choice in one line"""
        threads = th.get_num_threads() if self.threads is None else self.threads
        parts = [
            f"plans in {'bfloat16' if self.bfloat16 else 'float32'}",
            "updates in float32" + (" by oneDNN" if self.onednn else ""),
            *(["products in TF32"] if self.tf32 else []),
            *(["convolutions tuned"] if self.tuned_convolutions else []),
            "compiled, which takes one to three minutes once" if self.compiles else "not compiled",
            f"{threads} thread{'s' if threads > 1 else ''}",
        ]
        return ", ".join(parts)


def choose_acceleration(compile: bool | str, model: nn.Module, device: th.device, calls: int = 0) -> Acceleration:
    """
    :param compile: the user's switch: False is the eager float32 reference, True compiles, "auto" compiles where that
        pays off; True and "auto" choose precision and library by the processor and the size of the model; on a GPU
        both multiply in TF32, as the official code of TD-MPC2 does
    :param model: the networks
    :param device: device of the model
    :param calls: number of plans and updates of the run
    :return: the choice, but for the threads of large networks; "auto" does not compile short runs, nor on GPUs (not
        measured); small networks stay in float32 by PyTorch's own library, and have one thread: a second one makes
        plans for ten environments 1.6 times as fast where cores are idle, but waits for cores that are busy
    :raises ValueError: if the switch has another value
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f'compile={compile!r} is not understood: use True, False or "auto".')
    large = is_large(model)
    gpu = compile is not False and device.type == "cuda"
    cpu = compile is not False and device.type == "cpu"
    pays = compile == "auto" and cpu and calls >= CALLS_WORTH_COMPILING and has_compiler()
    return Acceleration(
        compiles=compile is True or pays,
        bfloat16=compile is not False and large and has_bfloat16_units(device),
        onednn=cpu and large and is_faster_with_onednn(),
        threads=choose_threads(large=False) if cpu and not large else None,
        tf32=gpu,
        tuned_convolutions=gpu and any(isinstance(module, nn.Conv2d) for module in model.modules()),
    )


def is_large(model: nn.Module) -> bool:
    """
    :param model: the networks
    :return: whether their products take so long that precision, library and threads matter more than overheads
    """
    return sum(parameter.numel() for parameter in model.parameters()) >= PARAMETERS_WORTH_REDUCING


def most_at_once(device: th.device, numbers: int) -> int:
    """
    :param device: device of the model
    :param numbers: size of a layer's output for one input
    :return: number of inputs for which the output is not too large
    """
    return max(1, LARGEST_OUTPUT.get(device.type, LARGEST_OUTPUT_ELSEWHERE) // numbers)


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
        _compile(lambda x: x.sin() + 1)(th.zeros(8))
    except Exception as error:  # of the compiler, the linker, a folder mounted without execution, ...
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f'compile="auto" runs without torch.compile, which fails on this machine: {reason}', stacklevel=2)
        return False
    return True


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """:return: the function compiled for fixed shapes"""
    with warnings.catch_warnings():  # PyTorch's own, when it first imports its compiler
        warnings.filterwarnings("ignore", ".*torch.jit.script_method.*", DeprecationWarning)
        return th.compile(function, dynamic=False)


def compile_function(function: Callable[..., Any], takes_gradients: bool = False) -> Callable[..., Any]:
    """
    :param function: function of tensors
    :param takes_gradients: whether it calls ``torch.autograd.grad``
    :return: the function compiled by torch.compile for fixed shapes, whose first call takes up to a minute. With more
        different inputs than PyTorch compiles it for, it runs uncompiled, and there is a warning
    """
    compiled, told = _compile(with_own_code(function)), False

    @wraps(function)
    def call(*args: Any) -> Any:
        nonlocal told
        if th.compiler.is_compiling():  # within another compiled function, of which it becomes a part
            return function(*args)
        from torch._dynamo.exc import FailOnRecompileLimitHit

        with _set_in_dynamo(
            fail_on_recompile_limit_hit=True, **dict(trace_autograd_ops=True) if takes_gradients else {}
        ):
            try:
                return compiled(*args)
            except FailOnRecompileLimitHit:
                if not told:
                    name = getattr(function, "__qualname__", "a function")
                    warnings.warn(
                        f"{name} was compiled for as many different inputs as PyTorch allows: for others it runs "
                        "uncompiled, which is slower. Keep batch size, number of environments and frozen networks as "
                        "they are, or raise torch._dynamo.config.recompile_limit.",
                        stacklevel=2,
                    )
                told = True
        return function(*args)

    return call


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    PyTorch counts how often it compiles a function by its code, which all agents of a class share: after eight agents
    in a process it would compile no more, without a word.

    :param function: function or bound method
    :return: the same, with a code object of its own
    """
    inner: Any = getattr(function, "__func__", function)
    if not isinstance(inner, FunctionType):
        return function
    copied = FunctionType(
        inner.__code__.replace(), inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copied.__kwdefaults__ = inner.__kwdefaults__
    owner = getattr(function, "__self__", None)
    return copied if owner is None else MethodType(copied, owner)


@contextmanager
def _set_in_dynamo(**settings: bool) -> Iterator[None]:
    """
    :param settings: switches of PyTorch's compiler, of which those that this version has are set: to trace gradients,
        so that a function and its gradients become one graph; and to say when it compiles no more
    :return: context with these settings
    """
    from torch._dynamo import config

    known = [name for name in settings if hasattr(config, name)]
    before = {name: getattr(config, name) for name in known}
    try:
        for name in known:
            setattr(config, name, settings[name])
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def graphed(function: Callable[..., Any], constants: Callable[[], Hashable] = lambda: None) -> Callable[..., Any]:
    """
    :param function: function of tensors
    :param constants: plain values that the function reads besides, see :class:`GraphedFunction`
    :return: on machines with a GPU the function, replayed as one CUDA graph for tensors there; otherwise itself
    """
    return GraphedFunction(function, constants) if th.cuda.is_available() else function


def set_learning_rate(optimizer: th.optim.Optimizer, rate: float, recorded: bool) -> None:
    """
    :param optimizer: optimiser; its groups may have a factor ``lr_scale`` of their own
    :param rate: learning rate
    :param recorded: whether its step is recorded as a CUDA graph: the rate is then a tensor, changed in place, because
        a number would become a constant, and so is the number of its steps
    """
    for group in optimizer.param_groups:
        device, own = group["params"][0].device, rate * group.get("lr_scale", 1.0)
        if not recorded:
            group["lr"] = own
        elif isinstance(group["lr"], th.Tensor) and group["lr"].device == device:
            group["lr"].fill_(own)
        else:
            group["lr"] = th.tensor(own, device=device)
        if "capturable" in group and device.type != "cuda":  # as saved by an agent on a GPU
            group["capturable"] = False
        elif "capturable" in group and recorded:
            group["capturable"] = True
            for state in (optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state):
                if isinstance(state.get("step"), th.Tensor):  # on the CPU if it was not recorded before
                    state["step"] = state["step"].to(device)
