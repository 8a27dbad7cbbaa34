"""
Runs of a queue as tasks of a Ray cluster (``benchmark --launcher ray``).

Every node has this package, and the folder of the queue under the same path, on a file system with ``flock``: Ray only
decides where a run is worked on. What is done, and by whom, is in the files as always, so that nothing is lost with a
node and nothing is done twice.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import ray

import sb3_mpc
from sb3_mpc.zoo import queue
from sb3_mpc.zoo.queue import Run


def attempt(folder: str, nice: int) -> int:
    """
    Work on a run, within a task.

    :param folder: its folder
    :param nice: increase of the niceness of its process
    :return: exit status of its process, which is asked to save when the task is cancelled
    """
    process = queue.start(Run(Path(folder)), nice)
    try:
        return process.wait()
    except KeyboardInterrupt:
        queue.stop([process])
        return process.wait()


class Task:
    """
    A run in the cluster, with what :class:`sb3_mpc.zoo.queue.Process` asks.

    :param run: the run
    :param nice: increase of the niceness of its process
    :param function: what the task does, as :func:`attempt`
    """

    def __init__(self, run: Run, nice: int = 0, function: Callable[[str, int], int] = attempt) -> None:
        settings = run.settings
        options = dict(
            name=run.name,
            num_cpus=settings["threads"],
            num_gpus=int(settings["device"].startswith("cuda")),
            max_retries=0,  # whether there is something left to do is seen from the files
        )
        self.result = ray.remote(**options)(function).remote(str(run.folder.resolve()), nice)

    def poll(self) -> int | None:
        """:return: the exit status, None while it works or waits for a node"""
        ready, _ = ray.wait([self.result], timeout=0)
        return self.wait() if ready else None

    def wait(self, timeout: float | None = None) -> int:
        """:return: the exit status; raises ``subprocess.TimeoutExpired``"""
        try:
            return int(ray.get(self.result, timeout=timeout))
        except ray.exceptions.GetTimeoutError as error:
            raise subprocess.TimeoutExpired("a task of Ray", timeout or 0.0) from error
        except ray.exceptions.RayError:
            return queue.LOST

    def send_signal(self, sig: int = signal.SIGINT, /) -> None:
        """Ask it to save and end."""
        ray.cancel(self.result)

    def kill(self) -> None:
        """End it now."""
        ray.cancel(self.result, force=True)


def connect() -> None:
    """Connect to the cluster of ``RAY_ADDRESS`` or of a node on this machine; without one, begin one here."""
    if not ray.is_initialized():
        package = str(Path(sb3_mpc.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        ray.init(runtime_env=dict(env_vars=dict(PYTHONPATH=path)), log_to_driver=False)
