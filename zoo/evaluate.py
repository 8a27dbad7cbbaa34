"""Commands ``evaluate`` and ``record``: what a trained agent does."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple


class Agent(NamedTuple):
    """
    A trained agent and what its environment was.

    :param model: the agent
    :param env_id: id of its environment
    :param env_kwargs: arguments of its environment
    :param hyperparams: how rl_zoo3 wraps the environment
    :param statistics: folder with ``vecnormalize.pkl``, if observations were normalised
    """

    model: Any
    env_id: str
    env_kwargs: dict[str, Any]
    hyperparams: dict[str, Any]
    statistics: str | None = None


def add_source(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of a command that needs an agent
    """
    parser.epilog = (
        "RUN is a folder that `train` has written. FILE is a .safetensors file of this package, or a .zip that save()\n"
        "has written, which needs --algo and --env. Those two alone mean an agent of the zoo."
    )
    parser.add_argument("agent", nargs="?", metavar="RUN or FILE", help="the agent (default: one of the zoo)")
    parser.add_argument("--algo", help="its method, such as tdmpc2")
    parser.add_argument("--env", help="its environment, such as dmc/walker-walk-v0")
    parser.add_argument("--best", action="store_true", help="of a run, the agent of the best evaluation")
    parser.add_argument("--episodes", type=int, help="number of episodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: 0)")
    parser.add_argument("--device", default="auto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``evaluate``
    """
    add_source(parser)
    parser.set_defaults(episodes=10)
    parser.add_argument("--actor", action="store_true", help="evaluate the network policy without planning, too")
    parser.add_argument("--n-envs", type=int, help="environments side by side (default: as many as episodes, up to 10)")


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``record``
    """
    add_source(parser)
    parser.set_defaults(episodes=1)
    parser.add_argument("--actor", action="store_true", help="film the network policy, without planning")
    parser.add_argument("--folder", type=Path, default=Path("videos"), help="where the videos go (default: videos)")


def load(args: argparse.Namespace) -> Agent:
    """
    :param args: command line
    :return: the agent that it names
    """
    import sb3_mpc.envs  # noqa: F401  # registers the ids

    if args.episodes < 1:
        raise ValueError(f"--episodes {args.episodes} must be at least 1.")
    path = None if args.agent is None else Path(args.agent)
    if path is None:
        return _of_zoo(args)
    if path.is_dir():
        return _of_run(path, args.best, args.device)
    if not path.exists():
        raise FileNotFoundError(f"There is no run and no file {path}.")
    if path.suffix == ".safetensors":
        from sb3_mpc.common.agent_files import load_agent, read_card

        env_id = args.env or read_card(path).get("env_id")
        if env_id is None:
            raise ValueError(f"{path} does not say which environment it was trained in: give it by --env.")
        return Agent(load_agent(path, device=args.device), env_id, {}, {})
    if args.algo is None or args.env is None:
        raise ValueError(f"{path} does not say what it is: give --algo and --env.")
    return Agent(_class(args.algo).load(path, device=args.device), args.env, {}, {})


def _class(algo: str) -> Any:
    import rl_zoo3

    from sb3_mpc.zoo import rl_zoo
    from sb3_mpc.zoo.train import check_algorithm

    check_algorithm(algo)
    rl_zoo.register()
    return rl_zoo3.ALGOS[algo]


def _of_zoo(args: argparse.Namespace) -> Agent:
    from sb3_mpc import zoo

    if args.algo is None or args.env is None:
        raise ValueError("Which agent? Give the folder of a run, a file, or --algo and --env.")
    return Agent(zoo.load(args.algo, args.env, device=args.device), args.env, {}, {})


def _of_run(run: Path, best: bool, device: str) -> Agent:
    import yaml
    from rl_zoo3 import get_saved_hyperparams

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
    model = _class(arguments["algo"]).load(found, device=device)
    return Agent(model, arguments["env"], env_kwargs, hyperparams, statistics if hyperparams["normalize"] else None)


def measure(policy: Any, env: Any, episodes: int) -> dict[str, float]:
    """
    :param policy: agent or policy
    :param env: vectorised environment
    :param episodes: number of episodes
    :return: ``mean`` and ``std`` of the return, and ``success``, the share of successes, where the environment tells it
    """
    import numpy as np
    from stable_baselines3.common.evaluation import evaluate_policy

    successes: list[bool] = []

    def note(found: dict[str, Any], _: dict[str, Any]) -> None:
        if found["done"] and "is_success" in found["info"]:
            successes.append(bool(found["info"]["is_success"]))

    returns, _ = evaluate_policy(policy, env, episodes, deterministic=True, return_episode_rewards=True, callback=note)
    result = dict(mean=float(np.mean(returns)), std=float(np.std(returns)))
    return result | (dict(success=float(np.mean(successes))) if successes else {})


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``evaluate``
    """
    from rl_zoo3 import create_test_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    agent = load(args)
    n_envs = args.n_envs or min(args.episodes, 10)
    print(f"{type(agent.model).__name__} on {agent.env_id}, {args.episodes} episodes, seed {args.seed}")
    for name, policy in [("planner", agent.model), ("network policy", agent.model.actor)][: 1 + args.actor]:
        env = create_test_env(
            agent.env_id,
            n_envs,
            agent.statistics,
            args.seed,
            should_render=False,
            hyperparams={**agent.hyperparams},
            env_kwargs=agent.env_kwargs,
            vec_env_cls=DummyVecEnv,
        )
        result = measure(policy, env, args.episodes)
        success = f", success {100 * result['success']:.0f} %" if "success" in result else ""
        print(f"{name:<15} return {result['mean']:.1f} +- {result['std']:.1f}{success}", flush=True)
        env.close()


def record(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``record``
    """
    from sb3_mpc.envs.video import record_video

    agent = load(args)
    statistics = None if agent.statistics is None else Path(agent.statistics) / "vecnormalize.pkl"
    policy = agent.model.actor if args.actor else agent.model
    for path in record_video(
        policy, agent.env_id, args.folder, args.episodes, args.seed, normalization=statistics, **agent.env_kwargs
    ):
        print(path)
