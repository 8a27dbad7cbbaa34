"""Commands ``evaluate`` and ``record``: returns and videos of a trained agent."""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import yaml
from rl_zoo3 import create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

import sb3_mpc
from sb3_mpc.agents.agent_files import load_agent, read_card
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.envs.video import record_video
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.agents import find as find_agent
from sb3_mpc.zoo.cards import protocol_of
from sb3_mpc.zoo.train import check_algorithm, check_options


class Agent(NamedTuple):
    """
    A trained agent and the environment that it was trained in.

    :param load: function of an environment that loads the agent. It may wrap the environment, in ``VecNormalize`` for
        example: then act in ``get_env()`` of the agent, not in the environment given
    :param env_id: id of its environment
    :param env_kwargs: arguments of its environment
    :param hyperparams: arguments of rl_zoo3 that wrap the environment
    :param statistics: folder of a run, with ``vecnormalize.pkl`` if observations were normalised; None for a file
    """

    load: Callable[[VecEnv], Any]
    env_id: str
    env_kwargs: Mapping[str, Any] = {}
    hyperparams: Mapping[str, Any] = {}
    statistics: str | None = None

    def start(self, n_envs: int) -> tuple[Any, VecEnv]:
        """
        :param n_envs: number of environments
        :return: the agent and environments to act in
        """
        env = create_test_env(
            self.env_id,
            n_envs,
            self.statistics,
            should_render=False,
            hyperparams={**self.hyperparams},
            env_kwargs={**self.env_kwargs},
            vec_env_cls=DummyVecEnv,
        )
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
    if path is None:
        return _of_zoo(args)
    if path.is_dir():
        return _of_run(path, args.best, args.device)
    if not path.exists():
        raise FileNotFoundError(f"There is no run and no file {path}.")
    if path.suffix == ".safetensors":
        return of_file(path, args)
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
    known = read_card(path)["environment"] or {}
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
    for name in ("env_wrapper", "vec_env_wrapper", "frame_stack"):
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


def _of_run(run: Path, best: bool, device: str) -> Agent:
    settings = next(run.glob("*/args.yml"), None)
    if settings is None:
        raise FileNotFoundError(f"{run} is no folder of a run that `train` has begun: there is no args.yml in it.")
    with open(settings) as file:
        arguments = yaml.load(file, Loader=yaml.UnsafeLoader)  # as rl_zoo3 has written it
    checkpoints = sorted((run / "checkpoints").glob("step_*/model.zip"), key=lambda path: path.stat().st_mtime)
    candidates = [run / "best_model.zip"] if best else [run / f"{settings.parent.name}.zip", *checkpoints[-1:]]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{run} holds no agent yet: there is no {candidates[0].name}.")
    hyperparams, statistics = get_saved_hyperparams(str(settings.parent), test_mode=True)
    env_kwargs = {**hyperparams.pop("env_kwargs", {}), **(arguments["env_kwargs"] or {})}
    print(f"Loading {found}")
    algorithm, env_id = _class(arguments["algo"]), rl_zoo.find_environment(arguments["env"])
    return Agent(
        lambda env: algorithm.load(found, env, device=device),
        env_id,
        env_kwargs,
        hyperparams,
        statistics,
    )


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
        result = measure(policy, env, args.episodes)
        success = f", success {100 * result['success']:.0f} %" if "success" in result else ""
        print(f"{name:<15} return {result['mean']:.1f} +- {result['std']:.1f}{success}", flush=True)
    env.close()


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
