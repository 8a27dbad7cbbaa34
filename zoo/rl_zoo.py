"""
The methods of this package within rl_zoo3, whose programs train, search and show them.

rl_zoo3 has no plug-ins: our classes and samplers are entered into its dictionaries, and its experiment is replaced by
one with our presets and resumable checkpoints.
"""

import difflib
import functools
import importlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import rl_zoo3.enjoy
import rl_zoo3.train
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import sb3_mpc
import sb3_mpc.envs  # registers the ids
from sb3_mpc.common.discount import episode_length
from sb3_mpc.zoo.presets import preset_file, preset_key, reduced
from sb3_mpc.zoo.resume import ResumableCheckpoint
from sb3_mpc.zoo.samplers import SAMPLERS

# File in the folder of a run with the arguments that `train --resume` needs
RUN_FILE = "train.json"


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


def leave_interrupts_to_the_trainer(env: gym.Env) -> gym.Env:
    """
    Within a worker process, ignore Ctrl-C: the main process handles it, and saves before it stops.

    :param env: an environment
    :return: the same
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return env


class Experiment(ExperimentManager):
    """
    rl_zoo3's experiment with our presets, and checkpoints from which a killed run is resumed.

    :param preset: reduced preset that overrides that of the environment, such as ``"cpu"``
    :param checkpoint_freq: steps between checkpoints, none if not positive
    :param resume: folder of a run to resume
    :param arguments: command line of rl_zoo3, which is kept in the folder of the run
    :param save_data: whether to write what was collected to a data set when the training ends
    """

    def __init__(
        self,
        *args: Any,
        preset: str | None = None,
        checkpoint_freq: int = -1,
        resume: Path | None = None,
        arguments: list[str] | None = None,
        save_data: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.save_data = save_data
        self.preset, self.checkpoint_freq, self.resume, self.arguments = preset, checkpoint_freq, resume, arguments
        if self.args.conf_file is None:
            self.config = str(preset_file(self.algo))
        if resume is not None:
            self.save_path, self.params_path = str(resume), str(resume / self.env_name)
            self.continue_training = True

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """:return: hyper-parameters of the preset or of the resumed run, and those to save"""
        if self.resume is not None:
            with open(Path(self.params_path) / "config.yml") as file:
                saved = yaml.load(file, Loader=yaml.UnsafeLoader)  # as rl_zoo3 has written it
            return dict(saved), saved
        if not self.config.endswith((".yml", ".yaml")):
            return super().read_hyperparameters()
        entries = yaml.safe_load(Path(self.config).read_text())
        # rl_zoo3 looks for the id alone
        env_name, self.env_name = self.env_name, EnvironmentName(preset_key(entries, self.env_name.gym_id))
        self.custom_hyperparams = {**reduced(self.algo, entries, self.preset), **(self.custom_hyperparams or {})}
        try:
            return super().read_hyperparameters()
        finally:
            self.env_name = env_name

    def _preprocess_normalization(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = super()._preprocess_normalization(hyperparams)
        if self.normalize_kwargs.get("gamma") == "auto":  # VecNormalize would multiply by it
            del self.normalize_kwargs["gamma"]
        return hyperparams

    def create_log_folder(self) -> None:
        """Create the folder of the run, with the file that ``--resume`` needs."""
        super().create_log_folder()  # type: ignore[no-untyped-call]
        if not self.optimize_hyperparameters:
            settings = dict(arguments=self.arguments, preset=self.preset, checkpoint_freq=self.checkpoint_freq)
            settings |= dict(save_data=True) if self.save_data else {}
            (Path(self.save_path) / RUN_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    def create_callbacks(self) -> None:
        """Create the callbacks of rl_zoo3, and that of the checkpoints."""
        super().create_callbacks()  # type: ignore[no-untyped-call]
        self.checkpoint: ResumableCheckpoint | None = None
        if self.checkpoint_freq > 0 and not self.optimize_hyperparameters:
            folder = Path(self.save_path) / "checkpoints"
            self.checkpoint = ResumableCheckpoint(folder, self.checkpoint_freq, list(self.callbacks), self.save_path)
            self.callbacks.append(self.checkpoint)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Create the environments as rl_zoo3 does; the logs of a resumed run are continued."""
        wrapper: Callable[[gym.Env], gym.Env] | None = self.env_wrapper
        self.env_wrapper = lambda env: leave_interrupts_to_the_trainer(wrapper(env) if wrapper else env)
        self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": self.resume is None}
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_wrapper = wrapper

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.resume is None:
            return super()._load_pretrained_agent(hyperparams, env)
        assert self.checkpoint is not None, "the run was started with checkpoints"
        algorithm = rl_zoo3.ALGOS[self.algo]
        model = self.checkpoint.load(algorithm, env, self.device, verbose=self.verbose)  # type: ignore[type-var]
        if model.num_timesteps > self.n_timesteps:
            raise ValueError(
                f"The run has done {model.num_timesteps:,} of {self.n_timesteps:,} steps: give a larger number by -n."
            )
        print(f"Resuming at step {model.num_timesteps} of {self.n_timesteps}")
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: agent, new or from a checkpoint
        """
        intervals = {} if self.log_interval == -1 else {"log_interval": max(self.log_interval, 0) or None}
        done = 0 if self.resume is None else model.num_timesteps
        try:
            model.learn(
                self.n_timesteps - done,
                self.callbacks,
                reset_num_timesteps=self.resume is None,
                **intervals,  # type: ignore[arg-type]
            )
        except KeyboardInterrupt:
            if self.show_progress:
                self.callbacks[0].on_training_end()
            if self.checkpoint is not None and self.checkpoint.newest() is not None:
                print(f"Resume with: python -m sb3_mpc.zoo train --resume {self.save_path}")
        else:
            if self.save_data:
                self._write_data(model)
        finally:
            assert model.env is not None
            model.env.close()

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


def train(arguments: list[str], experiment: Callable[..., Experiment] = Experiment, **options: Any) -> None:
    """
    :param arguments: command line of ``rl_zoo3.train``
    :param experiment: class of the experiment
    :param options: its further arguments
    """
    register()
    module: Any = rl_zoo3.train
    original = module.ExperimentManager
    module.ExperimentManager = functools.partial(experiment, arguments=arguments, **options)
    try:
        run_program(module.train, "python -m sb3_mpc.zoo train", arguments)
    finally:
        module.ExperimentManager = original


def enjoy(arguments: list[str]) -> None:
    """
    :param arguments: command line of ``rl_zoo3.enjoy``
    """
    register()
    run_program(rl_zoo3.enjoy.enjoy, "python -m sb3_mpc.zoo enjoy", arguments)
