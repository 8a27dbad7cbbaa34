"""Check of the memory that a replay buffer needs."""

import os


def available_memory() -> int | None:
    """
    :return: bytes that this process may still allocate, limited by machine and control group (container); None if
        unknown
    """
    candidates = []
    try:
        with open("/proc/meminfo") as file:
            candidates += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")]
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit_file) as limit, open(usage_file) as usage:
                candidates.append(max(int(limit.read()) - int(usage.read()), 0))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return min(candidates, default=None)


def check_memory(nbytes: int, transitions: int) -> None:
    """
    :param nbytes: bytes of a full replay buffer
    :param transitions: number of transitions that it holds
    :raises MemoryError: if it does not fit into the available memory
    """
    available = available_memory()
    if available is not None and nbytes > available:
        raise MemoryError(
            f"A replay buffer of buffer_size={transitions} transitions needs {nbytes / 1e9:.1f} GB, but only "
            f"{available / 1e9:.1f} GB of memory are available: use buffer_size="
            f"{int(transitions * 0.8 * available / nbytes)} or less."
        )
