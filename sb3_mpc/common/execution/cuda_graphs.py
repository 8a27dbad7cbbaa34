"""
Functions of tensors that are recorded as one CUDA graph and replayed: one launch instead of hundreds of kernels.

Written from PyTorch's documentation of CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html) and tested
with stand-ins for the device; not yet run on a GPU, which ``make gpu`` does.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch as th
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

# Ordinary calls before the recording, in which kernels are selected and memory is allocated
WARM_UP_CALLS = 3
# Recordings kept, each with the memory of its intermediate results; the least recently used one is dropped
MAX_RECORDINGS = 8


class CudaRuntime:
    """The operations of the device that recording needs."""

    def applies(self, tensor: th.Tensor) -> bool:
        """
        :param tensor: an input
        :return: whether it is on a GPU
        """
        return tensor.is_cuda

    def memory(self, device: th.device) -> Any:
        """
        :param device: GPU
        :return: stream to record on, and pool of the recordings' memory
        """
        with th.cuda.device(device):  # streams are created on the current device, which may be another GPU
            return th.cuda.Stream(), th.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]

    def warm_up(self, function: Callable[[], Any], device: th.device) -> Any:
        """
        :param function: function that will be recorded
        :param device: GPU that it runs on
        :return: its result, computed on another stream, as recording requires
        """
        with th.cuda.device(device):
            stream = th.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream):
                result = function()
            th.cuda.current_stream().wait_stream(stream)
        return result

    def record(self, function: Callable[[], Any], device: th.device, memory: Any) -> tuple[Callable[[], None], Any]:
        """
        :param function: function to record; recording does not execute its kernels
        :param device: GPU that it runs on
        :param memory: stream and pool, see :meth:`memory`
        :return: function that replays the recording, and the tensors that it writes the results to
        """
        stream, pool = memory
        with th.cuda.device(device):
            graph, before = th.cuda.CUDAGraph(), th.cuda.current_stream()
            try:
                with th.cuda.graph(graph, pool=pool, stream=stream):
                    outputs = function()
            finally:
                # After an error the context manager leaves the process on the stream of the recording
                th.cuda.set_stream(before)
        return graph.replay, outputs


def frozen_values(*objects: object) -> tuple[Hashable, ...]:
    """
    :param objects: modules, with which their children count, and optimisers
    :return: what a recording of them contains: attributes and options that are plain values, where parameters and the
        state of optimisers are, and what is trained
    """
    values: list[Hashable] = []
    for item in objects:
        if isinstance(item, th.optim.Optimizer):
            groups = ({name: value for name, value in group.items() if name != "params"} for group in item.param_groups)
            values += [value for group in groups for value in group.values() if _is_plain(value)]
            # If the state of one parameter is replaced, so are the others
            state: dict[str, Any] = next(iter(item.state.values()), {})
            values += [part.data_ptr() for part in state.values() if isinstance(part, th.Tensor)]
        elif isinstance(item, th.nn.Module):
            values += [(parameter.data_ptr(), parameter.requires_grad) for parameter in item.parameters()]
            values += [value for child in item.children() for value in vars(child).values() if _is_plain(value)]
            values += [value for name, value in vars(item).items() if _is_plain(value) and not name.startswith("_")]
    return tuple(values)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


class _Recording:
    """State of the calls with one signature."""

    def __init__(self) -> None:
        self.calls = 0
        self.inputs: list[th.Tensor] = []
        self.outputs: Any = None
        self.replay: Callable[[], None] | None = None


class GraphedFunction:
    """
    A function that is recorded as a CUDA graph and replayed. Each signature (shapes, types, and the values of other
    arguments) has its own recording. The first calls of a signature run normally, and so does every call if the
    function cannot be recorded. Other tensors that the function changes, such as parameters, must be changed in place.

    The recordings share one pool of memory, so that together they need as much as the largest of them: each begins with
    the arguments and ends with copies of its results, and nothing in between has to survive the next one.

    :param function: function of (nested) tensors, which draws no random numbers and never waits for the GPU
    :param constants: values that the function reads besides arguments and tensors, such as coefficients: a recording
        contains them, so that other values need another recording
    :param runtime: operations of the device; tests replace them
    """

    def __init__(
        self,
        function: Callable[..., Any],
        constants: Callable[[], Hashable] = lambda: None,
        runtime: CudaRuntime | None = None,
    ) -> None:
        self.function, self.constants, self.runtime = function, constants, runtime or CudaRuntime()
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()
        self._records = True
        self._memory: Any = None

    def __call__(self, *args: Any) -> Any:
        """
        :param args: arguments of the function
        :return: its result, a copy that the next call does not overwrite
        """
        leaves, structure = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, th.Tensor)]
        if not self._records or not tensors or not self.runtime.applies(tensors[0]):
            return self.function(*args)
        kind = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, th.Tensor) else leaf for leaf in leaves)
        device = tensors[0].device
        key = (str(structure), kind, self.constants())
        recording = self._recordings.setdefault(key, _Recording())
        self._recordings.move_to_end(key)
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        if recording.replay is None:
            recording.calls += 1
            if recording.calls <= WARM_UP_CALLS or not self._record(recording, leaves, structure, device):
                return self.runtime.warm_up(lambda: self.function(*args), device)
        assert recording.replay is not None
        for own, given in zip(recording.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        recording.replay()
        return tree_map_only(th.Tensor, th.Tensor.clone, recording.outputs)

    def _record(self, recording: _Recording, leaves: list[Any], structure: Any, device: th.device) -> bool:
        """
        :param recording: state of the calls with this signature
        :param leaves: flat list of the arguments
        :param structure: nesting of the arguments
        :param device: GPU that the function runs on
        :return: whether recording succeeded
        """
        if not any(other.replay for other in self._recordings.values()):  # a pool ends with its last recording
            self._memory = self.runtime.memory(device)
        own = [leaf.clone() if isinstance(leaf, th.Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(own, structure)
        try:
            recording.replay, recording.outputs = self.runtime.record(
                lambda: self.function(*arguments), device, self._memory
            )
        except RuntimeError as error:
            self._records = False
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"No CUDA graph could be recorded ({reason}): continuing without it, which is slower.", stacklevel=2
            )
            return False
        recording.inputs = [leaf for leaf in own if isinstance(leaf, th.Tensor)]
        return True
