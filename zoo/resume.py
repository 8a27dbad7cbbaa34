"""
Runs that can be killed at any moment and resumed, bit for bit on a CPU, from their last checkpoint::

    checkpoint = ResumableCheckpoint("runs/walker/checkpoints", every=10_000)
    env = make_vec_env("dmc/walker-walk-v0", seed=1)
    model = checkpoint.load(TDMPC2, env) if checkpoint.newest() else TDMPC2("MlpPolicy", env, seed=1)
    model.learn(100_000 - model.num_timesteps, checkpoint, reset_num_timesteps=False)

A checkpoint is a folder that holds data only (``checkpoint_files``): to resume executes nothing from it. It is written
under another name and renamed when it is complete; the last two are kept, so that a damaged one is no end.

Environments cannot be saved in general. Instead all of them begin new episodes at a checkpoint, seeded by the run's
seed and the step, whether the run continues or is resumed later. With a single environment the checkpoint waits for
the end of the episode; with several, episodes are cut as by a time limit. That is why such a checkpoint is exact: the
run goes on from it as if it had never been stopped. A checkpoint taken because the run was interrupted is not, as the
run would not have cut its episodes there; the last exact one stays beside it.
"""

import os
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mpc.agents.data_files import is_data, read_data
from sb3_mpc.agents.normalization import normalization_settings
from sb3_mpc.agents.training_files import load_buffer, load_training
from sb3_mpc.common import processes
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.files import hold, release, sync_folder
from sb3_mpc.zoo.checkpoint_files import (
    BUFFER,
    MANIFEST,
    MODEL,
    STATE,
    SelfAlgorithm,
    checkpoints_of,
    choose_checkpoint,
    remove_old_checkpoints,
    write_checkpoint,
)

# Attributes of other callbacks that are restored: when they are due, and the results of an EvalCallback, a
# Measurement or a MeasuredEvaluation
CALLBACK_STATE = (
    "n_calls",
    "results",
    "rows",
    "spent",
    "resumed",
    "best_mean_reward",
    "last_mean_reward",
    "evaluations_results",
    "evaluations_timesteps",
    "evaluations_length",
    "evaluations_successes",
)


# Signals after which the run is saved and ends; not all of them exist on all systems
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class ResumableCheckpoint(BaseCallback):
    """
    Saves the whole state of a run every so many steps, and when it is asked to stop by Ctrl-C, SIGTERM or SIGHUP;
    :meth:`load` restores it. Ctrl-C then ends ``learn`` by ``KeyboardInterrupt``, the others end the process.

    When the disk is full there is a warning, the previous checkpoints stay and the training continues.

    :param folder: folder for the checkpoints of this run alone; no other process can use it during the training
    :param every: steps between checkpoints; the first end of an episode from then on counts
    :param callbacks: other callbacks of the run, whose counters and evaluations are restored, too
    :param logs: folder of the ``*.monitor.csv`` files, which are continued; open them with ``override_existing=False``
    """

    model: WorldModelAlgorithm

    def __init__(
        self,
        folder: str | Path,
        every: int = 25_000,
        callbacks: Sequence[BaseCallback] = (),
        logs: str | Path | None = None,
    ) -> None:
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
            raise ValueError(f"every={every!r} must be at least 1: it is the number of steps between checkpoints.")
        self.folder, self.every, self.callbacks = Path(folder), every, callbacks
        self.logs = None if logs is None else Path(logs)
        self._saved_at = 0
        self._resumed: dict[str, Any] | None = None
        self._stopped_by: int | None = None
        self._handlers: dict[int, Any] = {}

    def newest(self) -> Path | None:
        """:return: the newest complete checkpoint, None if there is none"""
        return next(iter(checkpoints_of(self.folder).values()), None)

    def hold(self) -> None:
        """:raises BlockingIOError: if another process works on this run"""
        if not hold(self.folder / ".lock"):
            raise BlockingIOError(f"Another process works on the run of {self.folder}: wait until it has ended.")

    def load(
        self,
        algorithm: type[SelfAlgorithm],
        env: GymEnv,
        device: th.device | str = "auto",
        step: int | None = None,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """
        Nothing in a checkpoint is executed, wherever it comes from.

        :param algorithm: class of the agent
        :param env: environment made as for the start of the run, in the same number
        :param device: device of the agent
        :param step: step of the checkpoint; the newest one if None, or, with a warning, one before it if that is
            damaged
        :param kwargs: arguments of the agent to change, such as ``verbose``, and those that are no data, such as a
            schedule that is a function
        :return: the agent; continue with ``learn(..., self, reset_num_timesteps=False)``
        :raises FileNotFoundError: if there is no checkpoint
        :raises ValueError: if all are damaged, or an argument is missing
        :raises BlockingIOError: if another process works on the run
        """
        self.hold()
        path = choose_checkpoint(self.folder, step)
        state = read_data(path / STATE)
        model = load_training(path / MODEL, algorithm, env, device, **kwargs)
        load_buffer(model, path / BUFFER)
        try:
            self._restore(model, state)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path / STATE} is not the state of a run: {type(error).__name__}: {error}.") from error
        self._resumed = state
        return model

    def _restore(self, model: Any, state: dict[str, Any]) -> None:
        """
        :param model: agent of a checkpoint
        :param state: see :meth:`_state`
        """
        venv, normalize = model.get_env(), model.get_vec_normalize_env()
        if normalize is not None:
            normalize.obs_rms, normalize.ret_rms = state["normalization"]
        venv.seed(
            processes.own_seed(int(state["env_seed"]), venv.num_envs)
        )  # for the reset at the beginning of learn()
        for index, start in enumerate(state["monitor_starts"]):
            venv.env_method("set_wrapper_attr", "t_start", float(start), indices=index)
        logs = {} if self.logs is None else {path.name: path for path in self.logs.glob("*.monitor.csv")}
        for name, size in state["monitor_files"].items():  # episodes logged after the checkpoint will be repeated
            if name in logs and not logs[name].is_symlink():
                with open(logs[name], "rb+") as log:
                    log.truncate(min(int(size), logs[name].stat().st_size))
        if model.tensorboard_log is not None:
            formats = ["tensorboard", *(["stdout"] if model.verbose > 0 else [])]
            model.set_logger(configure(str(state["log_folder"]), formats))
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
            vars(callback).update({name: value for name, value in saved.items() if name in CALLBACK_STATE})

    def _on_training_start(self) -> None:
        self.hold()
        steps = self.model.num_timesteps
        further = [path for step, path in checkpoints_of(self.folder).items() if step > steps]
        if further and self._resumed is None:
            raise FileExistsError(
                f"{further[0]} is of a run that is further than this one: resume that one, or choose another folder."
            )
        for path in further:  # damaged ones, and those that the user did not choose
            aside = path.with_name(f"aside_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        self._saved_at = steps
        if self._resumed is not None:
            self._enter(self._resumed)
            self._resumed = None
        self._stopped_by = None
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # nohup ignores SIGHUP, and so do we
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._restore_handlers()
        while frame is not None and frame.f_locals.get("self") is not self.model:
            frame = frame.f_back
        if frame is None:  # an error has ended the training, and the signal is no matter of ours
            signal.raise_signal(number)
            return
        self._stopped_by = number
        what = "Ctrl-C" if number == signal.SIGINT else "the signal"
        print(f"\nStopping after this step and its updates; {what} again stops at once, without saving", flush=True)

    def _restore_handlers(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def close(self) -> None:
        """Let others use the folder, and leave signals to others. Called at the end of the training."""
        if threading.current_thread() is threading.main_thread():
            self._restore_handlers()
        release(self.folder / ".lock")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Here the last transition is stored and learned from; on_step() comes before both
        steps = self.model.num_timesteps
        if self._stopped_by is not None:
            path = self._save(steps)
            print(f"Interrupted at step {steps}" + (f", saved in {path}" if path else ""), flush=True)
            raise KeyboardInterrupt if self._stopped_by == signal.SIGINT else SystemExit(128 + self._stopped_by)
        between = self.training_env.num_envs > 1 or bool(np.all(self.model._last_episode_starts))
        # Rollouts of many steps may never begin where an episode does
        overdue = steps - self._saved_at >= 2 * self.every
        if steps // self.every > self._saved_at // self.every and (between or overdue):
            state = self._state(steps)
            self._save(steps, state)
            self._saved_at = steps
            self._begin_episodes(state)

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._saved_at:
            self._save(self.model.num_timesteps)
        self.close()

    def save_now(self) -> Path | None:
        """
        Save when something else than the agent has failed, such as an environment.

        :return: the checkpoint, None if it could not be written
        """
        return self._save(self.model.num_timesteps)

    def _state(self, steps: int) -> dict[str, Any]:
        """
        :param steps: present step
        :return: state of the run that is in neither model nor replay buffer
        """
        env, normalize, seed = self.training_env, self.model.get_vec_normalize_env(), self.model.seed
        sequence = np.random.SeedSequence(None if seed is None else [seed, steps])
        return dict(
            env_seed=int(sequence.generate_state(1)[0]) % 2**31,
            random=dict(
                python=random.getstate(),
                numpy=np.random.get_state(),
                torch=th.get_rng_state(),
                cuda=th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
            ),
            normalization=None if normalize is None else (normalize.obs_rms, normalize.ret_rms),
            normalization_settings=None if normalize is None else normalization_settings(normalize),
            monitor_starts=_monitor_starts(env),
            monitor_files={path.name: path.stat().st_size for path in self.logs.glob("*.monitor.csv")}
            if self.logs
            else {},
            log_folder=os.path.abspath(self.logger.get_dir() or ""),
            callbacks=[_state_of(callback) for callback in self.callbacks],
        )

    def _save(self, steps: int, state: dict[str, Any] | None = None) -> Path | None:
        """
        :param steps: present step
        :param state: see :meth:`_state`
        :return: the checkpoint, None if it could not be written
        """
        final, temporary = self.folder / f"step_{steps}", self.folder / f".step_{steps}.tmp"
        if (final / MANIFEST).exists() and steps == self._saved_at:
            return final
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_checkpoint(temporary, self.model, state or self._state(steps), steps, exact=state is not None)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(self.folder)
        except (OSError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = "the previous one is kept" if self.newest() else "there is none yet"
            warnings.warn(
                f"The checkpoint at step {steps} could not be written ({error}): training is not affected, {kept}.",
                stacklevel=2,
            )
            return None
        remove_old_checkpoints(self.folder)
        return final

    def _begin_episodes(self, state: dict[str, Any]) -> None:
        """
        Begin new episodes as :meth:`load` and ``learn`` do.

        :param state: of the checkpoint just taken
        """
        model, env, normalize = self.model, self.training_env, self.model.get_vec_normalize_env()
        env.seed(state["env_seed"])
        model._last_obs, model._plan_state = env.reset(), None  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        if normalize is not None:
            model._last_original_obs = normalize.get_original_obs()
        if model.action_noise is not None:
            model.action_noise.reset()
        if isinstance(model, WorldModelAlgorithm):  # and not SAC
            model.stagger_episodes()
        self._enter(state)

    def _enter(self, state: dict[str, Any]) -> None:
        """
        :param state: of the checkpoint from which the run continues, at once or later
        """
        for callback in self.callbacks:
            if hasattr(callback, "eval_env"):
                callback.eval_env.seed(state["env_seed"])
        numbers = state["random"]
        random.setstate(numbers["python"])
        np.random.set_state(numbers["numpy"])
        th.set_rng_state(numbers["torch"])
        if len(numbers["cuda"]) == th.cuda.device_count():
            th.cuda.set_rng_state_all(numbers["cuda"])


def _monitor_starts(env: Any) -> list[float]:
    """:return: times when the monitors of the environments were started; none if there are none, or one is dead"""
    try:
        return list(env.get_attr("t_start")) if all(env.env_is_wrapped(Monitor)) else []
    except (EOFError, OSError, RuntimeError):
        return []


def _state_of(callback: BaseCallback) -> dict[str, Any]:
    """:return: attributes of a callback that are restored"""
    found = {name: vars(callback)[name] for name in CALLBACK_STATE if name in vars(callback)}
    kept = {name: value for name, value in found.items() if is_data(value)}
    for name in found.keys() - kept.keys():
        warnings.warn(
            f"{type(callback).__name__}.{name} is no data, and is not restored when the run is resumed.", stacklevel=2
        )
    return kept
