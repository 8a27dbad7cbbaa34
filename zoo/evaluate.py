"""Commands ``evaluate`` and ``record``: returns and videos of a trained agent."""

import argparse
import glob
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from rl_zoo3 import create_test_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, unwrap_vec_normalize

import sb3_mpc
from sb3_mpc.agents.agent_files import load_agent, read_card
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.envs.video import record_video
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.agents import find as find_agent
from sb3_mpc.zoo.card_facts import protocol_of, succeeded
from sb3_mpc.zoo.checkpoint_files import checkpoints_of, choose_checkpoint, load_agent_of_checkpoint
from sb3_mpc.zoo.run_folder import TRUST, read_arguments, read_settings, settings_file
from sb3_mpc.zoo.train import check_algorithm, check_options

# Settings that name classes which wrap the environment
WRAPPERS = ("env_wrapper", "vec_env_wrapper")


class Agent(NamedTuple):
    """
    A trained agent and the environment that it was trained in.

    :param load: function of an environment that loads the agent. It may wrap the environment, in ``VecNormalize`` for
        example: then act in ``get_env()`` of the agent, not in the environment given
    :param env_id: id of its environment
    :param env_kwargs: arguments of its environment
    :param hyperparams: arguments of rl_zoo3 that wrap the environment
    """

    load: Callable[[VecEnv], Any]
    env_id: str
    env_kwargs: Mapping[str, Any] = {}
    hyperparams: Mapping[str, Any] = {}

    def start(self, n_envs: int, render: bool = False) -> tuple[Any, VecEnv]:
        """
        :param n_envs: number of environments
        :param render: whether to show them in windows
        :return: the agent and environments to act in
        """
        env = create_test_env(
            self.env_id,
            n_envs,
            should_render=render,
            hyperparams={**self.hyperparams},
            env_kwargs={**self.env_kwargs},
            vec_env_cls=DummyVecEnv,
        )
        if self.hyperparams.get("frame_stack"):
            env = VecFrameStack(env, int(self.hyperparams["frame_stack"]))
        model = self.load(env)
        return model, model.get_env() or env


def find(args: argparse.Namespace) -> Agent:
    """
    :param args: command line
    :return: the agent that it names
    :raises FileNotFoundError: if there is no such run or file
    :raises ValueError: if method or environment must be given
    """
    check_options(args, episodes=1, n_envs=1)
    path = None if args.agent is None else Path(args.agent)
    if args.best and (path is None or not path.is_dir()):
        raise ValueError("--best chooses among the agents of a run: give the folder of a run, or leave it out.")
    if path is None:
        return _of_zoo(args)
    if path.is_dir():
        if args.algo is not None or args.env is not None:
            raise ValueError(f"{path} says itself what it is: leave out --algo and --env.")
        return of_run(path, args.best, args.device, args.trust)
    if not path.exists():
        raise FileNotFoundError(f"There is no run and no file {path}.")
    if path.suffix == ".safetensors":
        return of_file(path, args)
    if not args.trust:
        raise ValueError(
            f"{path} is no .safetensors file, and loading it may run code: if you trust its source, add --trust."
        )
    if args.algo is None or args.env is None:
        raise ValueError(f"{path} does not say what it is: give --algo and --env.")
    algorithm, env_id = _class(args.algo), rl_zoo.find_environment(args.env)
    return Agent(lambda env: algorithm.load(path, env, device=args.device), env_id)


def of_file(path: Path, args: argparse.Namespace) -> Agent:
    """
    :param path: agent file
    :param args: command line
    :return: its agent, in the environment that it was trained in unless the command line names another
    """
    card = read_card(path)
    if args.algo not in (None, card["algorithm"]):
        raise ValueError(f"{path} holds an agent of {card['algorithm']}, not of {args.algo}: leave out --algo.")
    known = card["environment"] or {}
    if args.env is None and not known and card["policy"] == "MultitaskPolicy":
        raise ValueError(f"{path} has several tasks: give those to act in by --tasks, as ids of environments.")
    if args.env is None and not known:
        raise ValueError(f"{path} does not say which environment it was trained in: give it by --env.")
    env_id = rl_zoo.find_environment(args.env or known["id"])
    if env_id != known.get("id"):
        known = {}
    kwargs = protocol_of(known)
    # Compared as JSON, because the card has lists in place of tuples
    usual = {name: json.dumps(value, default=repr) for name, value in gym.spec(env_id).kwargs.items()}
    left = {n: v for n, v in (known.get("kwargs") or {}).items() if n not in kwargs and json.dumps(v) != usual.get(n)}
    if left:
        print(f"{path} was trained with other arguments of {env_id}, which no file may choose: {left}")
    return Agent(lambda env: load_agent(path, env, args.device), env_id, kwargs)


def check_plain(agent: Agent) -> None:
    """
    :param agent: an agent
    :raises ValueError: if its run wraps the environment in ways that videos and agent files do not support
    """
    for name in (*WRAPPERS, "frame_stack"):
        if agent.hyperparams.get(name):
            raise ValueError(f"The run has {name}={agent.hyperparams[name]!r}: `evaluate` and `enjoy` can show it.")


def _class(algo: str) -> type[WorldModelAlgorithm]:
    check_algorithm(algo)
    return sb3_mpc.ALGORITHMS[algo]


def _of_zoo(args: argparse.Namespace) -> Agent:
    if args.algo is None or args.env is None:
        raise ValueError("Which agent? Give the folder of a run, a file, or --algo and --env.")
    check_algorithm(args.algo)
    return of_file(find_agent(args.algo, rl_zoo.find_environment(args.env)), args)


def of_run(run: Path, best: bool, device: str, trust: bool) -> Agent:
    """
    :param run: folder of a run; nothing in it is executed
    :param best: whether its best agent is wanted, and not the last one
    :param device: device of the agent
    :param trust: whether the run may name code to import, such as wrappers
    :return: its agent
    :raises FileNotFoundError: if it is no folder of a run, or holds no agent yet
    :raises ValueError: if it is of an earlier version, or names code
    """
    settings = settings_file(run)
    arguments = read_arguments(settings, trust)
    hyperparams = read_settings(settings.with_name("config.yml"), trust, (*WRAPPERS, "frame_stack", "env_kwargs"))
    algorithm, env_id = _class(arguments["algo"]), rl_zoo.find_environment(arguments["env"])
    if env_id.startswith("GymV2") and not trust:  # makes any environment that its arguments name
        raise ValueError(f"{settings} names code to import ({env_id}): {TRUST}.")
    env_kwargs = {**(hyperparams.get("env_kwargs") or {}), **(arguments["env_kwargs"] or {})}
    wrappers = {name: hyperparams[name] for name in (*WRAPPERS, "frame_stack") if hyperparams.get(name)}
    found = run / ("best_model.safetensors" if best else f"{settings.parent.name}.safetensors")
    if found.exists():
        print(f"Loading {found}")
        if read_card(found)["algorithm"] != arguments["algo"]:
            raise ValueError(f"{found} is not of {arguments['algo']}, as {settings} says: do not use it.")
        return Agent(lambda env: load_agent(found, env, device), env_id, env_kwargs, wrappers)
    if found.with_suffix(".zip").exists():
        raise ValueError(
            f"{run} is of an earlier version, whose files may run code: if you trust them, convert it by "
            f"`python -m sb3_mpc.zoo convert {run} NEW --trust`."
        )
    if best or not checkpoints_of(run / "checkpoints"):
        raise FileNotFoundError(f"{run} holds no agent yet: there is no {found.name}.")
    path = choose_checkpoint(run / "checkpoints")
    print(f"Loading {path}")
    return Agent(lambda env: load_agent_of_checkpoint(path, algorithm, env, device), env_id, env_kwargs, wrappers)


def measure(policy: Any, env: Any, episodes: int) -> dict[str, float]:
    """
    :param policy: agent or policy
    :param env: vectorised environment
    :param episodes: number of episodes
    :return: ``mean`` and ``std`` of the return, and ``success``, the fraction of successful episodes, if the
        environment reports it
    """
    successes: list[bool] = []

    def note(found: dict[str, Any], _: dict[str, Any]) -> None:
        if found["done"] and "is_success" in found["info"]:
            successes.append(bool(found["info"]["is_success"]))

    returns, _ = evaluate_policy(policy, env, episodes, deterministic=True, return_episode_rewards=True, callback=note)
    result = dict(mean=float(np.mean(returns)), std=float(np.std(returns)))
    return result | (dict(success=float(np.mean(successes))) if successes else {})


def described(name: str, result: Mapping[str, float]) -> str:
    """
    :param name: what has acted
    :param result: its result, as of :func:`measure`
    :return: a line that says it
    """
    success = f", {succeeded(result['success'])}" if "success" in result else ""
    return f"{name:<15} return {result['mean']:.1f} +- {result['std']:.1f}{success}"


def statistics_of(env: VecEnv, folder: Path) -> Path | None:
    """
    :param env: environment of an agent
    :param folder: where the statistics of ``VecNormalize`` go
    :return: their file, None if there are none
    """
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        return None
    normalize.save(str(folder / "vecnormalize.pkl"))
    return folder / "vecnormalize.pkl"


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``evaluate``
    """
    if args.tasks is not None:
        from sb3_mpc.zoo import multitask  # which measures by this module

        multitask.main(args)
        return
    agent = find(args)
    model, env = agent.start(args.n_envs or min(args.episodes, 10))
    print(f"{type(model).__name__} on {agent.env_id}, {args.episodes} episodes, seed {args.seed}")
    policies = {"planner": model} | ({"network policy": model.actor} if args.actor else {})
    for name, policy in policies.items():
        env.seed(args.seed)
        print(described(name, measure(policy, env, args.episodes)), flush=True)
    env.close()


def enjoy(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``enjoy``
    """
    check_options(args, n_timesteps=1, n_envs=1, seed=0, exp_id=0)
    check_algorithm(args.algo)
    env_id = rl_zoo.find_environment(args.env)
    runs = {int(path.name.rpartition("_")[2]): path for path in runs_of(Path(args.folder), args.algo, env_id)}
    number = args.exp_id or max(runs, default=0)
    if number not in runs:
        raise FileNotFoundError(f"There is no run of {args.algo} in {env_id} in {args.folder}: train it first.")
    model, env = of_run(runs[number], args.load_best, args.device, args.trust).start(args.n_envs, not args.no_render)
    env.seed(args.seed)
    observation, state, start = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    try:
        for _ in range(args.n_timesteps):
            action, state = model.predict(observation, state, start, deterministic=not args.stochastic)
            observation, rewards, start, _ = env.step(action)
            returns, lengths = returns + rewards, lengths + 1
            if not args.no_render:
                env.render("human")
            for index in np.flatnonzero(start):
                print(f"Episode Reward: {returns[index]:.2f}\nEpisode Length: {lengths[index]}", flush=True)
            returns[start], lengths[start] = 0.0, 0
    except KeyboardInterrupt:
        pass
    env.close()


def runs_of(folder: Path, algo: str, env_id: str) -> list[Path]:
    """
    :param folder: log folder
    :param algo: key of a method
    :param env_id: id of an environment
    :return: the numbered folders of its runs
    """
    name = env_id.replace("/", "-")
    found = (folder / algo).glob(f"{glob.escape(name)}_*")
    return [path for path in found if path.name.removeprefix(f"{name}_").isdigit() and path.is_dir()]


def record(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``record``
    """
    agent = find(args)
    check_plain(agent)
    model, env = agent.start(1)
    with tempfile.TemporaryDirectory() as folder:
        statistics = statistics_of(env, Path(folder))
        env.close()
        policy = model.actor if args.actor else model
        for path in record_video(
            policy, agent.env_id, args.folder, args.episodes, args.seed, normalization=statistics, **agent.env_kwargs
        ):
            print(path)
