"""The one place that decides how the numerical work is executed."""

from collections.abc import Callable
from typing import Any

import torch as th


def resolve_compile(compile: bool | str, device: th.device) -> bool:
    """
    :param compile: the user's switch, True, False or "auto"
    :param device: device of the model
    :return: whether to compile; "auto" stays eager until compiled execution has been shown to pay on the device
    """
    del device
    if compile not in (True, False, "auto"):
        raise ValueError(f'compile={compile!r} is not understood: use True, False or "auto".')
    return compile is True


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: function of tensors
    :return: the function compiled by TorchDynamo for fixed shapes; the first call takes up to a minute
    """
    return th.compile(function, dynamic=False)
