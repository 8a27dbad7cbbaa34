"""Agents of several tasks: their scores (``evaluate --tasks``), and a new task for them (``finetune``)."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import sb3_mpc
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.discount import DEFAULT_GAMMA, discount_from_episode_length
from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy, short_name
from sb3_mpc.envs.multitask import FEW_SHOT, TaskEnv, find_tasks, sizes_of
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.card_facts import agent_name
from sb3_mpc.zoo.evaluate import measure
from sb3_mpc.zoo.plot import pyplot
from sb3_mpc.zoo.train import check_algorithm, check_options

# Settings of ``finetune`` by name: decisions, and size of a batch; there is an update for each decision
FINETUNING = {
    "finetune": (10_000, 256),  # TD-MPC2
    "o2o": (40_000, 256),  # MBDPO
    "small": (10_000, 64),  # batches of the methods' preset of that name
}


class TaskScore(NamedTuple):
    """
    Deterministic episodes of an agent in one task.

    :param task: id of the task
    :param score: TD-MPC2's scale from 0 to 100: percentage of episodes with success at the last step, if the task
        reports success, and a tenth of the mean return otherwise
    :param mean: mean return
    :param std: standard deviation of the returns
    :param success: fraction of successes, None if the task reports none
    :param episodes: number of episodes
    :param network: score of the network policy, which acts without planning, None if it was not evaluated
    """

    task: str
    score: float
    mean: float
    std: float
    success: float | None
    episodes: int
    network: float | None = None


def load(args: argparse.Namespace) -> WorldModelAlgorithm:
    """
    :param args: command line that names an agent by its file
    :return: the agent, without an environment
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it has one task only
    """
    path = Path(args.agent or "")
    path = path / "agent.safetensors" if path.is_dir() else path
    if args.agent is None or not path.is_file():
        raise FileNotFoundError(
            f"Which agent of several tasks? There is no file {args.agent or 'given'}: give its .safetensors or .zip."
        )
    if path.suffix == ".safetensors":
        model = load_agent(path, device=args.device)
    elif args.algo is None:
        raise ValueError(f"{path} does not say what it is: give --algo.")
    else:
        check_algorithm(args.algo)
        if not args.trust:
            raise ValueError(f"Loading {path} may run code: if you trust its source, add --trust.")
        model = sb3_mpc.ALGORITHMS[args.algo].load(path, device=args.device)
    policy_of(model, path)
    return model


def policy_of(model: WorldModelAlgorithm, path: object = "The agent") -> MultitaskWorldModelPolicy:
    """
    :param model: agent
    :param path: its file, for the message
    :return: its policy
    :raises ValueError: if it has one task only
    """
    if not isinstance(model.policy, MultitaskWorldModelPolicy):
        raise ValueError(
            f"{path} has one task: evaluate it without --tasks, or train one of several by make_multitask."
        )
    return model.policy


def make_task(model: WorldModelAlgorithm, env_id: str, task: int, n_envs: int = 1) -> VecEnv:
    """
    :param model: agent of several tasks
    :param env_id: environment of one of them
    :param task: its index
    :param n_envs: number of environments
    :return: environments of this task, padded as the agent needs it
    """

    def make() -> gym.Env:
        return Monitor(TaskEnv(gym.make(env_id), task, model.observation_space, model.action_space))

    return DummyVecEnv([make] * n_envs)


# -- Command ``evaluate --tasks`` --------------------------------------------------------------------------------------


def score(found: dict[str, float]) -> float:
    """
    :param found: mean return and, if the task reports it, fraction of successes
    :return: TD-MPC2's score, 0 to 100
    """
    return 100 * found["success"] if "success" in found else found["mean"] / 10


def evaluate_tasks(
    model: WorldModelAlgorithm,
    tasks: Sequence[str],
    episodes: int = 10,
    seed: int = 0,
    n_envs: int | None = None,
    network: bool = False,
) -> list[TaskScore]:
    """
    :param model: agent of several tasks
    :param tasks: ids of tasks that it has; if its tasks have no names, all of them in their order
    :param episodes: number of episodes of each task
    :param seed: seed of the episodes
    :param n_envs: environments side by side, as many as episodes up to 10 if None
    :param network: also evaluate the network policy, without planning
    :return: scores in the order of the tasks
    :raises ValueError: if the agent does not have one of the tasks
    """
    policy = policy_of(model)
    if policy.task_names is None and len(tasks) != len(policy.tasks["action_dims"]):
        count = len(policy.tasks["action_dims"])
        raise ValueError(f"The agent has {count} tasks without names: name all of them by --tasks, in their order.")
    indices = [i if policy.task_names is None else policy.task_index(task) for i, task in enumerate(tasks)]
    scores = []
    for task, index in zip(tasks, indices, strict=True):
        env = make_task(model, rl_zoo.find_environment(task), index, n_envs or min(episodes, 10))
        env.seed(seed)
        found, own = measure(model, env, episodes), None
        print(f"{task:<44} {describe(found)}", flush=True)
        if network:
            env.seed(seed)
            alone = measure(model.actor, env, episodes)
            own = score(alone)
            print(f"{'  network policy':<44} {describe(alone)}", flush=True)
        env.close()
        scores.append(TaskScore(task, score(found), found["mean"], found["std"], found.get("success"), episodes, own))
    return scores


def describe(found: dict[str, float]) -> str:
    """
    :param found: mean and standard deviation of the return and, if the task reports it, fraction of successes
    :return: score and return in words
    """
    success = f", success {100 * found['success']:.0f} %" if "success" in found else ""
    return f"score {score(found):5.1f}   return {found['mean']:.1f} +- {found['std']:.1f}{success}"


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``evaluate`` with ``--tasks``
    """
    check_options(args, episodes=1, n_envs=1)
    tasks = find_tasks(args.tasks)
    model = load(args)
    print(f"{type(model).__name__} on {len(tasks)} tasks, {args.episodes} episodes each, seed {args.seed}")
    scores = evaluate_tasks(model, tasks, args.episodes, args.seed, args.n_envs, args.actor)
    print(f"{'mean score':<44} score {np.mean([row.score for row in scores]):5.1f}")
    if args.actor:
        print(f"{'  network policy':<44} score {np.mean([row.network for row in scores]):5.1f}")
    write(args.output, scores)
    print(f"Wrote {args.output} and {draw(args.output.with_suffix('.png'), scores)}")


def write(path: Path, rows: Sequence[Any]) -> None:
    """
    :param path: CSV file
    :param rows: named tuples of one kind
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0]._fields)
        writer.writerows(["" if value is None else value for value in row] for row in rows)


def draw(path: Path, scores: Sequence[TaskScore]) -> Path:
    """
    :param path: picture to write
    :param scores: of each task
    :return: the picture: a bar for each task, and a line at their mean
    """
    plt, mean = pyplot(), float(np.mean([row.score for row in scores]))
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.2 * len(scores)))
    axes.barh([short_name(row.task) for row in scores], [row.score for row in scores], color="#4878a8")
    axes.axvline(mean, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(min(0.0, *(row.score for row in scores)), max(100.0, *(row.score for row in scores)))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(f"score (mean {mean:.1f})")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


# -- Command ``finetune`` ----------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """
    A point of a learning curve.

    :param decisions: decisions of the agent in the new task
    :param score: TD-MPC2's score, 0 to 100
    :param mean: mean return
    :param std: standard deviation of the returns
    :param success: fraction of successes, None if the task reports none
    """

    decisions: int
    score: float
    mean: float
    std: float
    success: float | None


class Evaluations(BaseCallback):
    """
    Evaluates the planner in environments of its own, at the start, every so many decisions, and at the end.

    :param env: these environments
    :param every: decisions between evaluations
    :param episodes: episodes of an evaluation
    :param path: CSV file, written anew each time
    :param seed: seed of the episodes
    """

    def __init__(self, env: VecEnv, every: int, episodes: int, path: Path, seed: int) -> None:
        super().__init__()
        self.env, self.every, self.episodes, self.path, self.seed = env, every, episodes, path, seed
        self.found: list[Evaluation] = []

    def _evaluate(self) -> None:
        self.env.seed(self.seed)
        found = measure(self.model, self.env, self.episodes)
        row = Evaluation(self.num_timesteps, score(found), found["mean"], found["std"], found.get("success"))
        self.found.append(row)
        write(self.path, self.found)
        print(f"{self.num_timesteps:>8,} decisions: {describe(found)}", flush=True)

    def _on_training_start(self) -> None:
        self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # here the last transition is learned from
        if self.num_timesteps // self.every > self.found[-1].decisions // self.every:
            self._evaluate()

    def _on_training_end(self) -> None:
        if self.found[-1].decisions < self.num_timesteps:
            self._evaluate()


def add_task(model: WorldModelAlgorithm, env_id: str, like: str | int | None = None, n_envs: int = 1) -> int:
    """
    Add the task of an environment to an agent, which then has that environment.

    :param model: agent of several tasks
    :param env_id: environment
    :param like: task whose embedding the new one begins with, TD-MPC2's choice for its few-shot tasks if None
    :param n_envs: number of environments
    :return: index of the task
    :raises ValueError: if the agent has the task already, or ``like`` has to be given
    """
    policy, like = policy_of(model), FEW_SHOT.get(env_id) if like is None else like
    if env_id in (policy.task_names or []):
        raise ValueError(
            f"The agent has learned {env_id} before, so that it would not be held out: choose another one."
        )
    if like is None:
        known = ", ".join(map(short_name, policy.task_names or [])) or "indices, as they have no names"
        raise ValueError(f"Which task is most like {env_id}? Give it by --like: {known}.")
    env = gym.make(env_id)
    sizes = sizes_of(env, env_id)
    env.close()
    (length,) = sizes.task_lengths
    task = model.add_task(
        like,
        action_dim=sizes.action_dims[0],
        gamma=DEFAULT_GAMMA if length is None else discount_from_episode_length(length),
        name=env_id,
        observation_dim=sizes.observation_dims[0],
        n_envs=n_envs,
    )
    model.set_env(make_task(model, env_id, task, n_envs))
    return task


def finetune(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``finetune``
    """
    check_options(args, n_timesteps=1, n_envs=1, eval_freq=1, episodes=1, seed=0)
    env_id, model = rl_zoo.find_environment(args.env), load(args)
    like = int(args.like) if args.like is not None and args.like.isdigit() else args.like
    model.verbose = 1
    task = add_task(model, env_id, like, args.n_envs)
    preset_decisions = use_preset(model, args.preset)
    decisions = args.n_timesteps or preset_decisions
    model.set_random_seed(args.seed)
    print(f"{type(model).__name__}, {env_id} as task {task}, {decisions:,} decisions, seed {args.seed}")
    model.verbose = 0
    folder = args.folder / f"{agent_name(key_of(model), env_id)}_{args.seed}"
    env = make_task(model, env_id, task, min(args.episodes, 10))
    evaluations = Evaluations(env, args.eval_freq, args.episodes, folder / "evaluations.csv", args.seed)
    model.learn(decisions, evaluations, progress_bar=args.progress)
    note = f"finetuned from {Path(args.agent).name}"
    print(f"Wrote {save_agent(model, folder / 'agent', note=note)} and {evaluations.path}")


def use_preset(model: WorldModelAlgorithm, name: str | None) -> int:
    """
    :param model: agent of several tasks, whose updates are set
    :param name: one of ``FINETUNING``; None to leave them as they are
    :return: number of decisions
    """
    if name is None:
        return FINETUNING["finetune"][0]
    decisions, model.batch_size = FINETUNING[name]
    model.train_freq, model.gradient_steps = 1, model.n_envs
    model._convert_train_freq()
    return decisions


def key_of(model: WorldModelAlgorithm) -> str:
    """:return: key of the method of an agent"""
    return next(key for key, cls in sb3_mpc.ALGORITHMS.items() if type(model) is cls)
