"""Environments in processes of their own, whose death ends a run at once, with a name and a reason."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import shutil
import signal
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

# Signals that end a run
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Seconds that workers are given to end by themselves
PATIENCE = 3.0


class WorkerError(RuntimeError):
    """A process with an environment is dead; the message says which, and why."""


class Reporting(gym.Wrapper):
    """
    Writes down why an environment has failed, for the main process to read.

    :param env: environment
    :param report: file for the traceback
    """

    def __init__(self, env: gym.Env, report: Path) -> None:
        super().__init__(env)
        self.report = report

    def reset(self, **kwargs: Any) -> Any:
        """See Gymnasium."""
        with reporting(self.report):
            return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        """See Gymnasium."""
        with reporting(self.report):
            return self.env.step(action)


@contextlib.contextmanager
def reporting(report: Path) -> Any:
    """
    :param report: file for the traceback of an error in the context, after which this process ends
    :return: the context
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            report.write_text(traceback.format_exc())
        raise SystemExit(1) from None  # the main process tells


def start_fork_server() -> None:
    """
    Start the process that makes the workers. A signal to the whole group, as schedulers send it, would end it, and with
    it what tells whether a worker lives: it ignores them, and ends with the main process.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # signals are the main thread's
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Maker:
    """
    Makes an environment that reports.

    :param make: function that makes it
    :param report: file for the traceback
    """

    def __init__(self, make: Callable[[], gym.Env], report: Path) -> None:
        self.make, self.report = make, report

    def __call__(self) -> gym.Env:
        for number in ENDING:  # the main process saves first, and then ends us
            signal.signal(number, signal.SIG_IGN)
        with reporting(self.report):
            return Reporting(self.make(), self.report)
        raise AssertionError("an error has ended the process")


class _Remote:
    """
    Our end of the pipe to a worker.

    :param pipe: the pipe
    :param index: index of the environment
    :param owner: environments that it belongs to
    """

    def __init__(self, pipe: Any, index: int, owner: "WorkerVecEnv") -> None:
        self.pipe, self.index, self.owner = pipe, index, weakref.proxy(owner)

    def send(self, message: Any) -> None:
        """:raises WorkerError: if nobody is there to receive it"""
        try:
            self.pipe.send(message)
        except OSError as error:
            raise WorkerError(self.owner.explain(self.index)) from error

    def recv(self) -> Any:
        """:raises WorkerError: if nobody is there to send"""
        # The pipe alone does not tell: forked workers hold the ends of each other
        multiprocessing.connection.wait([self.pipe, self.owner.processes[self.index].sentinel])
        try:
            if not self.pipe.poll():
                raise EOFError
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self.owner.explain(self.index)) from error

    def close(self) -> None:
        """Close it."""
        self.pipe.close()

    def __reduce__(self) -> Any:
        return _pipe, (self.pipe,)  # what a worker gets, to close it


def _pipe(pipe: Any) -> Any:
    return pipe


class WorkerVecEnv(SubprocVecEnv):
    """
    SB3's ``SubprocVecEnv``, which waits forever for a worker that is dead; here its name and traceback are told.

    :param env_fns: functions that make the environments
    :param start_method: see SB3
    :raises WorkerError: if an environment cannot be made; or later, when one fails
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None) -> None:
        self.reports = Path(tempfile.mkdtemp(prefix="sb3_mpc_workers_"))
        makers = [_Maker(make, self.reports / str(index)) for index, make in enumerate(env_fns)]
        self.processes: list[Any] = []
        if start_method in (None, "forkserver") and "forkserver" in multiprocessing.get_all_start_methods():
            start_fork_server()
        try:
            super().__init__(makers, start_method)  # type: ignore[arg-type]
        except WorkerError:
            end(self.processes, self.remotes, self.reports)
            raise
        # Also when the interpreter ends, whose own way of it is a signal that the workers ignore
        self._end = weakref.finalize(self, end, self.processes, self.remotes, self.reports)

    @property
    def remotes(self) -> Sequence[Any]:
        """:return: our ends of the pipes to the workers"""
        return self._remotes

    @remotes.setter
    def remotes(self, pipes: Sequence[Any]) -> None:
        self._remotes = tuple(_Remote(pipe, index, self) for index, pipe in enumerate(pipes))

    def explain(self, index: int) -> str:
        """
        :param index: index of an environment whose worker does not answer
        :return: what has happened to it
        """
        process = self.processes[index]
        process.join(PATIENCE)
        name = f"Environment {index} of {len(self.processes)} (process {process.pid})"
        with contextlib.suppress(OSError):
            return f"{name} has failed:\n{(self.reports / str(index)).read_text().rstrip()}\n"
        status = process.exitcode
        if status is not None and status < 0:
            cause = ", as the system does when memory is short" if status == -9 else ""
            return f"{name} was killed by signal {-status} ({signal.Signals(-status).name}){cause}."
        return f"{name} has ended with status {status}; its output above may tell why."

    def close(self) -> None:
        """End all workers, within seconds, whatever they do."""
        self.closed = True
        self._end()


def end(processes: Sequence[Any], pipes: Sequence[Any], folder: Path) -> None:
    """
    :param processes: workers
    :param pipes: pipes to them
    :param folder: folder of their reports, which is removed
    """
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.pipe.send(("close", None))
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in pipes:
        pipe.close()
    shutil.rmtree(folder, ignore_errors=True)


def guard_log(env: gym.Env) -> gym.Env:
    """
    Let a full disk not end a run: an episode that cannot be logged is not logged, and there is one warning.

    :param env: environment
    :return: the same
    """
    if isinstance(env, Monitor) and env.results_writer is not None:
        write, told = env.results_writer.write_row, False

        def guarded(epinfo: dict[str, float]) -> None:
            nonlocal told
            try:
                write(epinfo)
            except OSError as error:
                if not told:
                    warnings.warn(f"An episode could not be logged ({error}): training is not affected.", stacklevel=2)
                told = True

        env.results_writer.write_row = guarded  # type: ignore[method-assign]
    return env
