"""
Runs that can be killed at any moment and resumed, bit for bit on a CPU, from their last checkpoint::

    checkpoint = ResumableCheckpoint("runs/walker/checkpoints", every=10_000)
    env = make_vec_env("dmc/walker-walk-v0", seed=1)
    model = checkpoint.load(TDMPC2, env) if checkpoint.newest() else TDMPC2("MlpPolicy", env, seed=1)
    model.learn(100_000 - model.num_timesteps, checkpoint, reset_num_timesteps=False)

A checkpoint is a folder: model, replay buffer, and all other state of the run, such as that of the random number
generators. It is written under another name and renamed when it is complete; only then is the previous one removed.

Environments cannot be saved in general. Instead all of them begin new episodes at a checkpoint, seeded by the run's
seed and the step, whether the run continues or is resumed later. With a single environment the checkpoint waits for
the end of the episode; with several, episodes are cut as by a time limit.
"""

import os
import pickle
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.files import atomic_target, explain_damage

SelfAlgorithm = TypeVar("SelfAlgorithm", bound=WorldModelAlgorithm)

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


class ResumableCheckpoint(BaseCallback):
    """
    Saves the whole state of a run every so many steps, and at Ctrl-C; :meth:`load` restores it.

    When the disk is full there is a warning, the previous checkpoint stays and the training continues.

    :param folder: folder for the checkpoints of this run alone
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
        if every < 1:
            raise ValueError(f"every={every} must be at least 1: it is the number of steps between checkpoints.")
        self.folder, self.every, self.callbacks = Path(folder), every, callbacks
        self.logs = None if logs is None else Path(logs)
        self._saved_at = 0
        self._resumed: dict[str, Any] | None = None
        self._interrupted = False

    def _complete(self) -> dict[int, Path]:
        """:return: complete checkpoints by their steps"""
        return {int(path.name.split("_")[1]): path for path in self.folder.glob("step_*")}

    def newest(self) -> Path | None:
        """:return: the newest complete checkpoint, None if there is none"""
        complete = self._complete()
        return complete[max(complete)] if complete else None

    def load(
        self, algorithm: type[SelfAlgorithm], env: GymEnv, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfAlgorithm:
        """
        :param algorithm: class of the agent
        :param env: environment made as for the start of the run, in the same number
        :param device: device of the agent
        :param kwargs: arguments of the agent to change, such as ``verbose``
        :return: the agent of the newest checkpoint; continue with ``learn(..., self, reset_num_timesteps=False)``
        :raises FileNotFoundError: if there is none
        """
        path = self.newest()
        if path is None:
            raise FileNotFoundError(f"{self.folder} holds no complete checkpoint: start the run again.")
        with explain_damage(path / "state.pkl", "state of a run"), open(path / "state.pkl", "rb") as file:
            state = pickle.load(file)
        model = algorithm.load(path / "model.zip", env, device, **kwargs)
        model.load_replay_buffer(path / "replay_buffer.pkl")
        venv, normalize = model.get_env(), model.get_vec_normalize_env()
        assert venv is not None, "an environment was given"
        if normalize is not None:
            normalize.obs_rms, normalize.ret_rms = state["normalization"]
        venv.seed(state["env_seed"])  # for the reset at the beginning of learn()
        for index, start in enumerate(state["monitor_starts"]):
            venv.env_method("set_wrapper_attr", "t_start", start, indices=index)
        for name, size in state["monitor_files"].items():  # episodes logged after the checkpoint will be repeated
            if self.logs is not None and (self.logs / name).exists():
                with open(self.logs / name, "rb+") as log:
                    log.truncate(size)
        if model.tensorboard_log is not None:
            formats = ["tensorboard", *(["stdout"] if model.verbose > 0 else [])]
            model.set_logger(configure(state["log_folder"], formats))
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
            vars(callback).update(saved)
        self._resumed = state
        return model

    def _on_training_start(self) -> None:
        path, steps = self.newest(), self.model.num_timesteps
        if path is not None and max(self._complete()) > steps:
            raise FileExistsError(
                f"{path} is of a run that is further than this one: resume that one, or choose another folder."
            )
        self._saved_at = steps
        if self._resumed is not None:
            self._enter(self._resumed)
            self._resumed = None
        self._interrupted = False
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._handler)
        self._interrupted = True
        print("\nStopping after this step; Ctrl-C again stops at once, without saving", flush=True)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Here the last transition is stored and learned from; on_step() comes before both
        steps = self.model.num_timesteps
        if self._interrupted:
            path = self._save(steps)
            print(f"Interrupted at step {steps}" + (f", saved in {path}" if path else ""), flush=True)
            raise KeyboardInterrupt
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
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._handler)

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
            monitor_starts=env.get_attr("t_start") if all(env.env_is_wrapped(Monitor)) else [],
            monitor_files={path.name: path.stat().st_size for path in self.logs.glob("*.monitor.csv")}
            if self.logs
            else {},
            log_folder=os.path.abspath(self.logger.get_dir() or ""),
            callbacks=[
                {name: vars(callback)[name] for name in CALLBACK_STATE if name in vars(callback)}
                for callback in self.callbacks
            ],
        )

    def _save(self, steps: int, state: dict[str, Any] | None = None) -> Path | None:
        """
        :param steps: present step
        :param state: see :meth:`_state`
        :return: the checkpoint, None if it could not be written
        """
        final, temporary = self.folder / f"step_{steps}", self.folder / f".step_{steps}.tmp"
        if final.exists():
            return final
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self.model.save(temporary / "model.zip")
            self.model.save_replay_buffer(temporary / "replay_buffer.pkl")
            with atomic_target(temporary / "state.pkl", "pkl") as target, open(str(target), "wb") as file:
                pickle.dump(state or self._state(steps), file)
            temporary.rename(final)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                raise
            kept = "the previous one is kept" if self.newest() else "there is none yet"
            warnings.warn(
                f"The checkpoint at step {steps} could not be written ({error}): training is not affected, {kept}.",
                stacklevel=2,
            )
            return None
        for old in self.folder.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
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
