"""What the processor can do, and how busy it is."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th

# Features of processors that multiply matrices in bfloat16 faster than in float32
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
# Environment variables by which users set the number of threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OBSERVED_SECONDS = 0.2
STATISTICS = Path("/proc/stat")


def capabilities() -> Mapping[str, Any]:
    """:return: name and features of the processor; nothing for versions of PyTorch that do not tell"""
    return th.cpu.get_capabilities() if hasattr(th.cpu, "get_capabilities") else {}


def has_units(*names: str) -> bool:
    """
    :param names: features, as ``torch.cpu.get_capabilities`` calls them
    :return: whether the processor has one of them
    """
    return any(capabilities().get(name, False) for name in names)


def has_bfloat16_units(device: th.device) -> bool:
    """
    :param device: device of the model
    :return: whether it is a processor that supports bfloat16 in hardware
    """
    return device.type == "cpu" and has_units(*BFLOAT16_UNITS)


def is_faster_with_onednn() -> bool:
    """
    :return: whether oneDNN multiplies float32 matrices faster than MKL, and as exactly: on AMD's processors with
        AVX-512, where MKL uses half of the units. With AMX the switch would compute in bfloat16
    """
    if not hasattr(th.backends.mkldnn, "matmul"):  # PyTorch's switch is too new for this version
        return False
    amd = "AMD" in str(capabilities().get("cpu_name", ""))
    return amd and has_units("avx512_f") and not has_units("amx_bf16", "amx_tile")


def usable_cores() -> set[int]:
    """:return: numbers of the cores that this process may use"""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def busy_cores(cores: set[int]) -> float:
    """
    :param cores: numbers of cores
    :return: how many of them others use, from the kernel's counters over a fifth of a second; 0 where there are none
    """

    def read() -> tuple[float, float]:
        lines = (line.split() for line in STATISTICS.read_text().splitlines())
        known = {f"cpu{core}" for core in cores}
        times = [[float(number) for number in line[1:9]] for line in lines if line and line[0] in known]
        return sum(map(sum, times)), sum(time[3] + time[4] for time in times)  # all time, and the idle part of it

    try:
        total, idle = read()
        time.sleep(OBSERVED_SECONDS)
        later, later_idle = read()
    except (OSError, ValueError, IndexError):
        return 0.0
    passed = later - total
    return len(cores) * (1 - (later_idle - idle) / passed) if passed > 0 else 0.0


def choose_threads(large: bool) -> int | None:
    """
    :param large: whether products are so large that several threads are faster than one
    :return: number of threads for plans and updates, so that none of them waits for a core that others use; None if
        the user has set the number by an environment variable
    """
    if any(os.environ.get(variable) for variable in THREAD_VARIABLES):
        return None
    available = th.get_num_threads()  # the user's number, if it was set by torch.set_num_threads
    if not large or available == 1:
        return 1
    cores = usable_cores()
    return max(1, min(available, len(cores) - round(busy_cores(cores))))
