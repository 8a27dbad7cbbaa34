"""
Functions of tensors that are recorded as one CUDA graph and replayed: one launch instead of hundreds of kernels.

Written from PyTorch's documentation of CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html) and tested
with a mock of the device; not yet run on a GPU.
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

    def warm_up(self, function: Callable[[], Any], device: th.device) -> Any:
        """
        :param function: function that will be recorded
        :param device: GPU that it runs on
        :return: its result, computed on another stream, as recording requires
        """
        with th.cuda.device(device):  # streams are created on the current device, which may be another GPU
            stream = th.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream):
                result = function()
            th.cuda.current_stream().wait_stream(stream)
        return result

    def record(self, function: Callable[[], Any], device: th.device) -> tuple[Callable[[], None], Any]:
        """
        :param function: function to record; recording does not execute its kernels
        :param device: GPU that it runs on
        :return: function that replays the recording, and the tensors that it writes the results to
        """
        with th.cuda.device(device):
            graph, stream = th.cuda.CUDAGraph(), th.cuda.current_stream()
            try:
                # A stream of this GPU: the default one is created once, on the GPU that was current first
                with th.cuda.graph(graph, stream=th.cuda.Stream()):  # type: ignore[no-untyped-call]
                    outputs = function()
            finally:
                # After an error the context manager leaves the process on its own stream
                th.cuda.set_stream(stream)
        return graph.replay, outputs


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
        own = [leaf.clone() if isinstance(leaf, th.Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(own, structure)
        try:
            recording.replay, recording.outputs = self.runtime.record(lambda: self.function(*arguments), device)
        except RuntimeError as error:
            self._records = False
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"No CUDA graph could be recorded ({reason}): continuing without it, which is slower.", stacklevel=2
            )
            return False
        recording.inputs = [leaf for leaf in own if isinstance(leaf, th.Tensor)]
        return True
