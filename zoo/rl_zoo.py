"""
The methods of this package within rl_zoo3, whose programs train, search and show them.

rl_zoo3 has no plug-ins: our classes and samplers are entered into its dictionaries, and its experiment is replaced by
one with our presets and resumable checkpoints.
"""

import difflib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import rl_zoo3
import rl_zoo3.train
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

import sb3_mpc
import sb3_mpc.envs  # registers the ids
from sb3_mpc.agents.agent_files import save_agent
from sb3_mpc.agents.training_files import save_buffer, save_training
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.discount import episode_length
from sb3_mpc.common.files import hold, release, write_text
from sb3_mpc.common.presets import merged
from sb3_mpc.zoo.presets import preset_file, preset_key, reduced
from sb3_mpc.zoo.resume import ResumableCheckpoint
from sb3_mpc.zoo.run_folder import RUN_FILE as RUN_FILE
from sb3_mpc.zoo.run_folder import read_settings
from sb3_mpc.zoo.samplers import SAMPLERS
from sb3_mpc.zoo.saving import SafeEvaluation, SaveOften
from sb3_mpc.zoo.workers import WorkerError, WorkerVecEnv, guard_log


def register() -> None:
    """Make the methods known to rl_zoo3."""
    for key, algorithm in sb3_mpc.ALGORITHMS.items():
        rl_zoo3.ALGOS[key] = algorithm
        HYPERPARAMS_SAMPLER[key] = SAMPLERS[key]
        HYPERPARAMS_CONVERTER[key] = lambda sampled_params: sampled_params  # arguments already


def find_environment(env_id: str) -> str:
    """
    :param env_id: id, or ``module:id``
    :return: the id in Gymnasium's registry
    :raises ValueError: if there is none; the message names the most similar id
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f'The module of the environment "{env_id}" cannot be imported: {error}.') from error
    if name not in gym.registry:
        nearest = difflib.get_close_matches(name, gym.registry, n=1, cutoff=0.7)
        hint = f'did you mean "{nearest[0]}"?' if nearest else "is the module that registers it given as module:id?"
        raise ValueError(
            f'There is no environment "{env_id}": {hint} `python -m sb3_mpc.envs` lists those of this package.'
        )
    return name


class Experiment(ExperimentManager):
    """
    rl_zoo3's experiment with our presets, folders that hold data only, and checkpoints from which a stopped or killed
    run is resumed.

    :param preset: reduced preset that overrides that of the environment, such as ``"cpu"``
    :param checkpoint_freq: steps between checkpoints, none if not positive
    :param resume: folder of a run to resume
    :param step: step of the checkpoint to resume from, the newest one if None
    :param learning_rate: learning rate to go on with, that of the run if None
    :param trust: whether the folder of the run to resume may name code to run
    :param arguments: command line of rl_zoo3, which is kept in the folder of the run
    :param save_data: whether to write what was collected to a data set when the training ends
    """

    def __init__(
        self,
        *args: Any,
        preset: str | None = None,
        checkpoint_freq: int = -1,
        resume: Path | None = None,
        step: int | None = None,
        learning_rate: float | str | None = None,
        trust: bool = False,
        arguments: list[str] | None = None,
        save_data: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.save_data = save_data
        self.preset, self.checkpoint_freq, self.resume, self.arguments = preset, checkpoint_freq, resume, arguments
        self.step, self.changed_rate, self.trust = step, learning_rate, trust
        self.status = 0  # of the command line, when a signal has ended the training
        self.created: list[VecEnv] = []
        if self.vec_env_class is SubprocVecEnv:
            self.vec_env_class = WorkerVecEnv
        if self.args.conf_file is None:
            self.config = str(preset_file(self.algo))
        if resume is not None:
            self.save_path, self.params_path = str(resume), str(resume / self.env_name)
            self.continue_training = True

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """:return: hyper-parameters of the preset or of the resumed run, and those to save"""
        if self.resume is not None:
            saved = read_settings(Path(self.params_path) / "config.yml", self.trust)
            if self.changed_rate is not None:
                before = saved.get("learning_rate", "the default")
                print(
                    f"learning_rate was {before} and is {self.changed_rate} from here on: the run is no longer the "
                    "one, bit for bit, that it would have been."
                )
                saved["learning_rate"] = self.changed_rate
            return dict(saved), saved
        if not self.config.endswith((".yml", ".yaml")):
            return super().read_hyperparameters()
        entries = yaml.safe_load(Path(self.config).read_text())
        # rl_zoo3 looks for the id alone
        env_name, self.env_name = self.env_name, EnvironmentName(preset_key(entries, self.env_name.gym_id))
        preset, own = reduced(self.algo, entries, self.preset), dict(self.custom_hyperparams or {})
        sizes = (preset.get("policy_kwargs", {}), own.get("policy_kwargs", {}))
        if all(isinstance(part, dict) for part in sizes) and any(sizes):  # as in the constructors, key by key
            own["policy_kwargs"] = merged(*sizes)
        self.custom_hyperparams = {**preset, **own}
        try:
            return super().read_hyperparameters()
        finally:
            self.env_name = env_name

    def _preprocess_normalization(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = super()._preprocess_normalization(hyperparams)
        if self.normalize_kwargs.get("gamma") == "auto":  # VecNormalize would multiply by it
            del self.normalize_kwargs["gamma"]
        return hyperparams

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """As rl_zoo3, which also looks for pickled statistics, even in the current folder."""
        trained_agent, self.trained_agent = self.trained_agent, self.trained_agent or os.devnull
        try:
            return super()._maybe_normalize(env, eval_env)
        finally:
            self.trained_agent = trained_agent

    def create_log_folder(self) -> None:
        """
        Create the folder of the run, with the file that ``--resume`` needs; a new run has a folder of its own.

        :raises BlockingIOError: if another process works on the run
        """
        if self.resume is None and not self.optimize_hyperparameters:
            stem, _, number = self.save_path.rpartition("_")
            while True:
                try:
                    Path(self.save_path).mkdir(parents=True)
                    break
                except FileExistsError:  # another process was faster
                    number = str(int(number) + 1) if number.isdigit() else f"{number}-1"
                    self.save_path = f"{stem}_{number}"
            self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()  # type: ignore[no-untyped-call]
        if not self.optimize_hyperparameters:
            if not hold(Path(self.save_path) / ".lock"):
                raise BlockingIOError(f"Another process works on the run in {self.save_path}: wait until it has ended.")
            settings = dict(arguments=self.arguments, preset=self.preset, checkpoint_freq=self.checkpoint_freq)
            settings |= dict(save_data=True) if self.save_data else {}
            write_text(Path(self.save_path) / RUN_FILE, json.dumps(settings, indent=1) + "\n")

    def create_callbacks(self) -> None:
        """Create the callbacks of rl_zoo3, of which those that save are replaced, and that of the checkpoints."""
        frequencies, self.eval_freq, self.save_freq = (self.eval_freq, self.save_freq), -1, -1
        super().create_callbacks()  # type: ignore[no-untyped-call]
        self.eval_freq, self.save_freq = frequencies
        folder = Path(self.save_path)
        if self.save_freq > 0:
            every = max(self.save_freq // self.n_envs, 1)
            self.callbacks.append(SaveOften(every, folder, self.save_agent))
        if self.eval_freq > 0 and not self.optimize_hyperparameters:
            evaluation = SafeEvaluation(
                self.create_envs(self.n_eval_envs, eval_env=True),
                folder=folder,
                save=self.save_agent,
                n_eval_episodes=self.n_eval_episodes,
                eval_freq=max(self.eval_freq // self.n_envs, 1),
                deterministic=self.deterministic_eval,
            )
            self.callbacks.append(evaluation)
        self.checkpoint: ResumableCheckpoint | None = None
        if self.checkpoint_freq > 0 and not self.optimize_hyperparameters:
            self.checkpoint = ResumableCheckpoint(
                folder / "checkpoints", self.checkpoint_freq, list(self.callbacks), self.save_path
            )
            self.callbacks.append(self.checkpoint)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Create the environments as rl_zoo3 does; the logs of a resumed run are continued."""
        if isinstance(n_envs, bool) or not isinstance(n_envs, (int, np.integer)) or n_envs < 1:
            raise ValueError(f"n_envs={n_envs!r} is out of range: use 1 or more environments.")
        wrapper: Callable[[gym.Env], gym.Env] | None = self.env_wrapper
        self.env_wrapper = lambda env: wrapper(guard_log(env)) if wrapper else guard_log(env)
        self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": self.resume is None}
        try:
            self.created.append(super().create_envs(n_envs, eval_env, no_log))
        finally:
            self.env_wrapper = wrapper
        return self.created[-1]

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.resume is None:
            return super()._load_pretrained_agent(hyperparams, env)
        assert self.checkpoint is not None, "the run was started with checkpoints"
        algorithm = rl_zoo3.ALGOS[self.algo]
        # What the checkpoint may not hold, as it is no data
        given = {name: value for name, value in hyperparams.items() if name in ("policy", "replay_buffer_class")}
        given = {name: value for name, value in given.items() if isinstance(value, type)}
        if self.changed_rate is not None:
            given["learning_rate"] = hyperparams["learning_rate"]
        model = self.checkpoint.load(  # type: ignore[type-var]
            algorithm, env, self.device, self.step, verbose=self.verbose, **given
        )
        if model.num_timesteps > self.n_timesteps:
            raise ValueError(
                f"The run has done {model.num_timesteps:,} of {self.n_timesteps:,} steps: give a larger number by -n."
            )
        print(f"Resuming at step {model.num_timesteps} of {self.n_timesteps}")
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: agent, new or from a checkpoint
        :raises WorkerError: if a process with an environment has died; what was learned is saved
        """
        intervals = {} if self.log_interval == -1 else {"log_interval": max(self.log_interval, 0) or None}
        done = 0 if self.resume is None else model.num_timesteps
        before = self._stop_at_signals() if self.checkpoint is None else {}
        try:
            model.learn(
                self.n_timesteps - done,
                self.callbacks,
                reset_num_timesteps=self.resume is None,
                **intervals,  # type: ignore[arg-type]
            )
        except (KeyboardInterrupt, SystemExit) as stop:
            self.status = 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
            self._end_progress()
            self._say_how_to_resume()
        except WorkerError:
            self._end_progress()
            self._save_what_was_learned(model)
            raise
        else:
            if self.save_data:
                self._write_data(model)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_at_signals(self) -> dict[int, Any]:
        """:return: handlers of the signals that end the training from now on, and let the agent be saved"""

        def stop(number: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        return {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}

    def _end_progress(self) -> None:
        if self.show_progress:
            self.callbacks[0].on_training_end()

    def _say_how_to_resume(self) -> None:
        if self.checkpoint is not None and self.checkpoint.newest() is not None:
            print(f"Resume with: python -m sb3_mpc.zoo train --resume {self.save_path}", flush=True)

    def _save_what_was_learned(self, model: BaseAlgorithm) -> None:
        """Save when the environments have failed, and not the agent."""
        saved = None if self.checkpoint is None else self.checkpoint.save_now()
        if self.checkpoint is None:
            self.save_trained_model(model)
        elif saved is not None:
            print(f"Saved in {saved}", flush=True)
        self._say_how_to_resume()

    def save_agent(self, model: Any, path: Path) -> Path:
        """
        :param model: the agent
        :param path: file to write, without suffix
        :return: the file, which holds data only
        """
        if isinstance(model, WorldModelAlgorithm) and model.policy_class in model.policy_aliases.values():
            return save_agent(model, path.with_name(f"{path.name}.safetensors"), preset=self.preset)
        path = path.with_name(f"{path.name}.npz")  # SAC, in comparisons; a policy of the user's
        save_training(model, path)
        return path

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the agent, and its replay buffer if that is asked for.

        :param model: the agent
        """
        folder = Path(self.save_path)
        try:
            print(f"Saving to {self.save_agent(model, folder / str(self.env_name))}")
            if self.save_replay_buffer and isinstance(model, OffPolicyAlgorithm):
                save_buffer(model, folder / "replay_buffer.npz")
        except ValueError as error:
            print(f"The last agent is in the checkpoint alone: {error}")
        except OSError as error:
            raise OSError(
                f"The last agent could not be saved ({error}): resume the run when there is space."
            ) from error

    def close(self) -> None:
        """End the environments, and let others use the folder of the run."""
        checkpoint = getattr(self, "checkpoint", None)
        if checkpoint is not None:
            checkpoint.close()
        release(Path(self.save_path) / ".lock")
        for env in self.created:
            try:
                env.close()
            except (EOFError, OSError, RuntimeError) as error:
                print(f"An environment could not be closed: {error}")

    def _write_data(self, model: BaseAlgorithm) -> None:
        """
        :param model: trained agent
        """
        from sb3_mpc.offline import Dataset

        env_id = self.env_name.gym_id
        data = Dataset.from_replay_buffer(
            model.replay_buffer,  # type: ignore[attr-defined]
            Path(self.save_path) / "data",
            tasks=[env_id],
            episode_lengths=[episode_length(model.env)],
            source=f"{env_id}: training of {type(model).__name__}",
            overwrite=True,
        )
        print(f"Wrote {data.path}, {data.rows} transitions")


def run_program(program: Callable[[], None], name: str, arguments: list[str]) -> None:
    """
    :param program: main function of rl_zoo3, which reads the command line
    :param name: its name in messages
    :param arguments: the command line
    """
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        program()
    finally:
        sys.argv = before


def train(
    arguments: list[str],
    experiment: Callable[..., Experiment] = Experiment,
    kept: list[str] | None = None,
    **options: Any,
) -> None:
    """
    :param arguments: command line of ``rl_zoo3.train``
    :param experiment: class of the experiment
    :param kept: command line that the folder of the run keeps, the same if None
    :param options: its further arguments
    :raises SystemExit: with the status of a process that a signal has ended, if one has
    """
    register()
    module: Any = rl_zoo3.train
    original, made = module.ExperimentManager, []

    def make(*args: Any, **kwargs: Any) -> Experiment:
        made.append(experiment(*args, arguments=kept or arguments, **options, **kwargs))
        return made[0]

    module.ExperimentManager = make
    try:
        run_program(module.train, "python -m sb3_mpc.zoo train", arguments)
    finally:
        module.ExperimentManager = original
        for one in made:
            one.close()
    if made and made[0].status:
        raise SystemExit(made[0].status)
