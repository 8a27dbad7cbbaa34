"""Commands ``train`` and ``enjoy``, for which rl_zoo3 does the work."""

import argparse
import json
import random
import sys

from sb3_mpc.common.checks import check_range
from sb3_mpc.zoo.hyperparameters import ALGOS


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    for name, least in (("n_timesteps", 1), ("seed", 0)):
        if getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), least)
    options = [*args.rest]
    for name, value in (("--n-timesteps", args.n_timesteps), ("--hyperparams", args.hyperparams)):
        if value is not None:
            options += [name, *map(str, value if isinstance(value, list) else [value])]
    options += ["--track"] * args.track
    # During a search Optuna reports
    if sys.stderr.isatty() and not (args.no_progress or args.optimize):
        options += ["--progress"]
    if args.resume is not None:
        _resume(args, options)
        return
    if args.algo is None or args.env is None:
        raise ValueError("Which method and which environment? --algo tdmpc2 --env dmc/walker-walk-v0, for example.")
    check_algorithm(args.algo)
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    env_id = rl_zoo.find_environment(args.env)
    module = args.env.rpartition(":")[0]
    options += ["--algo", args.algo, "--env", env_id, "--seed", str(seed), "--log-folder", args.log_folder]
    options += ["--gym-packages", module] if module else []
    options += ["--optimize-hyperparameters", "--no-optim-plots"] if args.optimize else []
    frequency = 25_000 if args.checkpoint_freq is None else args.checkpoint_freq
    rl_zoo.train(options, preset=args.preset, checkpoint_freq=frequency)


def check_algorithm(algo: str) -> None:
    """
    :param algo: key of a method
    :raises ValueError: if there is none
    """
    if algo not in ALGOS:
        raise ValueError(f'There is no method "{algo}": there are {", ".join(ALGOS)}.')


def _resume(args: argparse.Namespace, options: list[str]) -> None:
    """
    :param args: command line
    :param options: options of rl_zoo3 that are given now, which count before those of the run's start
    """
    from sb3_mpc.zoo import rl_zoo

    refused = [name for name in ("algo", "env", "seed", "preset", "checkpoint_freq") if getattr(args, name) is not None]
    if refused or args.optimize:
        raise ValueError(f"--resume goes on with the settings of the run: leave out --{(refused or ['optimize'])[0]}.")
    path = args.resume / rl_zoo.RUN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{args.resume} is no folder of a run that `train` has begun: there is no {path.name}.")
    settings = json.loads(path.read_text())
    frequency = settings["checkpoint_freq"]
    if not any((args.resume / "checkpoints").glob("step_*")):
        raise FileNotFoundError(f"{args.resume} holds no complete checkpoint yet: start the run again.")
    kept = [option for option in settings["arguments"] if option != "--progress"]
    rl_zoo.train([*kept, *options], resume=args.resume, checkpoint_freq=frequency)


def enjoy(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    check_algorithm(args.algo)
    env_id = rl_zoo.find_environment(args.env)
    rl_zoo.enjoy([*args.rest, "--algo", args.algo, "--env", env_id, "--folder", args.folder])
