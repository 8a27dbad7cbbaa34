"""A stand-in for the GPU: what is recorded is traced to a list of operations on fixed tensors, as a CUDA graph is."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from sb3_mpc.common.execution.cuda_graphs import CudaRuntime


class TracingRuntime(CudaRuntime):
    """
    Records on the CPU. Numbers and tensors' places are frozen as on the device, results always land in the same
    tensors, and recording changes nothing.

    :param state: all tensors that functions change
    """

    def __init__(self, state: Callable[[], list[th.Tensor]]) -> None:
        self.state, self.recordings, self.replays, self.pools = state, 0, 0, 0

    def applies(self, tensor: th.Tensor) -> bool:
        return True

    def memory(self, device: th.device) -> Any:
        self.pools += 1
        return self.pools

    def warm_up(self, function: Callable[[], Any], device: th.device) -> Any:
        return function()

    def record(self, function: Callable[[], Any], device: th.device, memory: Any) -> tuple[Callable[[], None], Any]:
        assert memory == self.pools
        state = self.state()
        before = [part.clone() for part in state]
        structure: Any = None

        def flat() -> list[th.Tensor]:
            nonlocal structure
            leaves, structure = tree_flatten(function())
            return leaves

        traced = make_fx(flat)()
        with th.no_grad():
            th._foreach_copy_(state, before)
            outputs = [out.clone() for out in traced()]  # somewhere to put the results
            th._foreach_copy_(state, before)
        self.recordings += 1

        @th.no_grad()
        def replay() -> None:
            self.replays += 1
            for static, new in zip(outputs, traced(), strict=True):
                static.copy_(new)

        return replay, tree_unflatten(outputs, structure)
