"""Settings of the whole process, changed within a context and restored behind it. A user's own ones are left alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    """
    :param count: number of threads of PyTorch
    :return: context with that many threads
    """
    before = th.get_num_threads()
    try:
        if count != before:
            th.set_num_threads(count)
        yield
    finally:
        if th.get_num_threads() != before:
            th.set_num_threads(before)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """
    Both of PyTorch's interfaces to the precision are set: where they disagree, reading one of them is an error, which
    parts of its compiler do.

    :param precision: of the products of float32 matrices, as in ``torch.set_float32_matmul_precision``: "high" for TF32
        on a GPU; "medium" for oneDNN on a CPU, which multiplies in float32 if there are no units for bfloat16
    :return: context with this precision; without effect if the user has set one
    """
    # By library; PyTorch 2.8 has no such settings
    candidates: tuple[Any, ...] = (th.backends.cuda.matmul, getattr(th.backends.mkldnn, "matmul", None))
    libraries = [library for library in candidates if hasattr(library, "fp32_precision")]
    if any(library.fp32_precision != "none" for library in libraries) or th.get_float32_matmul_precision() != "highest":
        yield
        return
    th.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        th.set_float32_matmul_precision("highest")
        for library in libraries:
            library.fp32_precision = "none"


@contextmanager
def tuned_convolutions() -> Iterator[None]:
    """:return: context in which cuDNN times its algorithms for each new shape and takes the fastest one"""
    before = th.backends.cudnn.benchmark
    th.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        th.backends.cudnn.benchmark = before
