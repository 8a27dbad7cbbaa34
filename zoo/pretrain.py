"""Command ``pretrain``: an agent from a data set alone."""

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

import sb3_mpc
from sb3_mpc.agents.agent_files import save_agent
from sb3_mpc.agents.training_files import load_training, save_training
from sb3_mpc.common import processes
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.offline_training import check_fits
from sb3_mpc.offline import Dataset
from sb3_mpc.offline.layout import tells_task
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.saving import SafeEvaluation
from sb3_mpc.zoo.train import check_algorithm, check_options, check_setting

SETTINGS, CHECKPOINT, AGENT = "pretrain.json", "checkpoint.npz", "agent.safetensors"
UPDATES = 100_000
KEPT: tuple[str, ...] = (
    "algo",
    "data",
    "env",
    "gradient_steps",
    "preset",
    "model_size",
    "batch_size",
    "sampling",
    "hyperparams",
)
KEPT += ("eval_freq", "eval_episodes", "checkpoint_freq", "seed")


class Checkpoint(BaseCallback):
    """
    Saves the agent every so many updates, in place of what was saved before.

    :param path: file
    :param every: updates between saves
    """

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every = path, every

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            save_training(self.model, self.path)  # type: ignore[arg-type]
        return True


class SeededEvaluation(SafeEvaluation):
    """Evaluates in episodes that depend on seed and number of updates alone, so that resumed runs have the same."""

    seed = 0

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            sequence = np.random.SeedSequence([self.seed, self.n_calls])
            self.eval_env.seed(int(sequence.generate_state(1)[0]) % 2**31)
        return super()._on_step()


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    check_options(args, gradient_steps=1, eval_freq=1, eval_episodes=1, checkpoint_freq=1, batch_size=1, seed=0)
    settings = settings_of(args) if args.resume is None else read_settings(args.resume)
    data = Dataset.load(settings["data"])
    total = settings["gradient_steps"]
    first = processes.rank() == 0  # of several processes the first one logs and saves
    env = evaluation_env(settings, data) if first and settings["env"] is not None else None
    if args.resume is None:
        model = make(settings, data, args.device)
        folder = begin(args.log_folder / args.algo, settings)  # only when all of it has been accepted
    else:
        folder, model = args.resume, resume(args.resume, settings, data, args.device)
    model.set_logger(configure(str(folder), ["csv", "stdout"] if first else []))
    callbacks: list[BaseCallback] = [Checkpoint(folder / CHECKPOINT, settings["checkpoint_freq"])]
    if env is not None:
        callbacks.insert(0, evaluation(env, folder, settings, model.num_timesteps))
    if first:
        print(
            f"{type(model).__name__}, {total - model.num_timesteps:,} updates, {data.rows:,} transitions of {data.path}"
        )
    model.learn_offline(
        data,
        total - model.num_timesteps,
        callbacks,
        log_interval=max(1, min(1_000, total // 10)),
        reset_num_timesteps=False,
        progress_bar=sys.stderr.isatty() and not args.no_progress,
    )
    if not first:
        return
    save_training(model, folder / CHECKPOINT)
    note = f"learned from {data.rows:,} recorded transitions ({data.source}) by {total:,} updates, without acting"
    print(f"Wrote {save_agent(model, folder / AGENT, environment=settings['env'], note=note, steps=None)}")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """
    :param args: command line
    :return: settings of a new run
    :raises ValueError: if method or data are missing
    """
    if args.data is None:
        raise ValueError("Which data? Give --data DIR; `collect` and `data convert` make a data set.")
    check_algorithm(args.algo)
    for item in args.hyperparams or []:
        check_setting(item)
    if tells_task(Dataset.load(args.data).observation_space) and args.env is not None:
        raise ValueError(
            f"{args.data} has several tasks: leave out --env, and evaluate the agent by `evaluate FILE --tasks IDS`."
        )
    settings = {name: getattr(args, name) for name in KEPT}
    settings |= dict(data=str(args.data.resolve()), gradient_steps=args.gradient_steps or UPDATES)
    settings["env"] = None if args.env is None else rl_zoo.find_environment(args.env)
    for name in ("eval_freq", "checkpoint_freq"):
        settings[name] = settings[name] or max(1, settings["gradient_steps"] // 10)
    return settings


def begin(parent: Path, settings: dict[str, Any]) -> Path:
    """
    :param parent: where the folder of the run is to be
    :param settings: its settings
    :return: its new folder; of several processes, the first one makes it
    """
    if processes.rank() > 0:
        return parent
    number = 1
    while (folder := parent / f"{Path(settings['data']).name}_{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """
    :param folder: folder of a run
    :return: its settings
    :raises FileNotFoundError: if it is none, or has no checkpoint yet
    """
    for name, advice in ((SETTINGS, "`pretrain` has begun no run there"), (CHECKPOINT, "start the run again")):
        if not (folder / name).exists():
            raise FileNotFoundError(f"There is no {name} in {folder}: {advice}.")
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    return settings


def policy_for(space: spaces.Space) -> str:
    """
    :param space: space of the observations
    :return: name of the policy for them
    """
    if tells_task(space):
        return "MultitaskPolicy"
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def setting(item: str) -> dict[str, Any]:
    """
    :param item: one item of ``-params``, a name and a literal, or ``dict(...)`` of literals as the presets have it
    :return: the value by its name
    :raises ValueError: if it is something else, which is not executed
    """
    name, _, value = item.partition(":")
    try:
        node = ast.parse(value, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {name: {str(part.arg): ast.literal_eval(part.value) for part in node.keywords}}
        return {name: ast.literal_eval(node)}
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"-params {item} is not understood: give a number, text in quotes, a list, or dict(name=value)."
        ) from error


def make(settings: dict[str, Any], data: Dataset, device: str) -> WorldModelAlgorithm:
    """
    :param settings: settings of the run
    :param data: the data set
    :param device: device
    :return: a new agent
    """
    arguments: dict[str, Any] = dict(seed=settings["seed"], device=device, verbose=1)
    for name in ("preset", "batch_size"):
        arguments |= {} if settings[name] is None else {name: settings[name]}
    for item in settings["hyperparams"] or []:
        arguments |= setting(item)
    policy_kwargs = arguments.pop("policy_kwargs", {})
    if not isinstance(policy_kwargs, dict):
        raise ValueError(f'-params policy_kwargs:{policy_kwargs} is no dict: write "policy_kwargs:dict(num_q=2)".')
    if settings["model_size"] is not None:
        policy_kwargs["model_size"] = settings["model_size"]
    arguments |= dict(policy_kwargs=policy_kwargs) if policy_kwargs else {}
    if settings["sampling"] is not None:
        arguments["replay_buffer_kwargs"] = dict(sampling=settings["sampling"])
    algorithm = sb3_mpc.ALGORITHMS[settings["algo"]]
    return algorithm(policy_for(data.observation_space), data.as_env(), **arguments)


def resume(folder: Path, settings: dict[str, Any], data: Dataset, device: str) -> WorldModelAlgorithm:
    """
    :param folder: folder of a run
    :param settings: its settings
    :param data: the data set
    :param device: device
    :return: the agent of its checkpoint
    """
    model = load_training(folder / CHECKPOINT, sb3_mpc.ALGORITHMS[settings["algo"]], data.as_env(), device)
    print(f"Resuming after {model.num_timesteps:,} of {settings['gradient_steps']:,} updates")
    return model


def evaluation_env(settings: dict[str, Any], data: Dataset) -> VecEnv:
    """
    :param settings: settings of the run
    :param data: the data set
    :return: environments to evaluate in
    :raises ValueError: if their spaces are not those of the data
    """
    env = make_vec_env(settings["env"], min(settings["eval_episodes"], 10))
    check_fits(data, env.observation_space, env.action_space)
    return env


def evaluation(env: VecEnv, folder: Path, settings: dict[str, Any], done: int) -> EvalCallback:
    """
    :param env: environments to evaluate in
    :param folder: folder of the run
    :param settings: its settings
    :param done: updates that are done
    :return: the callback that evaluates, with the results of those updates
    """
    callback = SeededEvaluation(
        env,
        n_eval_episodes=settings["eval_episodes"],
        eval_freq=settings["eval_freq"],
        folder=folder,
        save=lambda model, path: save_agent(
            model, path.with_suffix(".safetensors"), environment=settings["env"], steps=None
        ),
    )
    callback.n_calls, callback.seed = done, settings["seed"]
    if done and (folder / "evaluations.npz").exists():
        with np.load(folder / "evaluations.npz", allow_pickle=False) as file:
            known = file["timesteps"] <= done
            callback.evaluations_timesteps = file["timesteps"][known].tolist()
            callback.evaluations_results = file["results"][known].tolist()
            callback.evaluations_length = file["ep_lengths"][known].tolist()
            if "successes" in file:
                callback.evaluations_successes = file["successes"][known].tolist()
        if known.any():
            callback.best_mean_reward = float(np.max(np.mean(callback.evaluations_results, axis=1)))
    return callback
