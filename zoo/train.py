"""Commands ``train`` and ``enjoy``, which call rl_zoo3."""

import argparse
import json
import random
import sys

from sb3_mpc import METHODS
from sb3_mpc.common.checks.arguments import check_range

# Options of rl_zoo3 that cannot be changed when a run is resumed
OF_THE_START = {"-conf", "--conf-file", "-i", "--trained-agent", "--env-kwargs", "--eval-env-kwargs"}


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    check_options(args, n_timesteps=1, seed=0)
    for item in args.hyperparams or []:
        check_setting(item)
    options = [*args.rest]
    for name, value in (("--n-timesteps", args.n_timesteps), ("--hyperparams", args.hyperparams)):
        if value is not None:
            options += [name, *map(str, value if isinstance(value, list) else [value])]
    if args.track:
        options.append("--track")
    # During a search Optuna reports the progress
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
    rl_zoo.train(options, preset=args.preset, checkpoint_freq=frequency, save_data=args.save_data)


def check_algorithm(algo: str) -> None:
    """
    :param algo: key of a method
    :raises ValueError: if there is none
    """
    if algo not in METHODS:
        raise ValueError(f'There is no method "{algo}": there are {", ".join(METHODS)}.')


def check_options(args: argparse.Namespace, **least: int) -> None:
    """
    :param args: command line
    :param least: smallest allowed value of each option; options that are not given are not checked
    :raises ValueError: if a value is smaller
    """
    for name, smallest in least.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                check_range(f"--{name.replace('_', '-')}", value, smallest)


def check_setting(item: str) -> None:
    """
    :param item: one item of ``-params``, whose value rl_zoo3 evaluates as Python
    :raises ValueError: if it cannot be evaluated
    """
    name, _, value = item.partition(":")
    try:
        compile(value, item, "eval")
        understood = not value.isidentifier() or value in ("True", "False", "None")
    except SyntaxError:
        understood = False
    if not name.isidentifier() or not understood:
        raise ValueError(
            f"-params {item} is not understood: write name:value, and text in two kinds of quotes, such as "
            "\"learning_rate:'lin_3e-4'\"."
        )


def _resume(args: argparse.Namespace, options: list[str]) -> None:
    """
    :param args: command line
    :param options: options of rl_zoo3 that are given now, which override those of the run's start
    """
    from sb3_mpc.zoo import rl_zoo

    names = ("algo", "env", "seed", "preset", "checkpoint_freq", "hyperparams")
    refused = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    refused += ["--optimize"] if args.optimize else []
    refused += [word for word in args.rest if word.partition("=")[0] in OF_THE_START]
    if refused:
        raise ValueError(f"--resume keeps the settings of the run: leave out {refused[0]}.")
    path = args.resume / rl_zoo.RUN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{args.resume} is no folder of a run that `train` has begun: there is no {path.name}.")
    settings = json.loads(path.read_text())
    frequency = settings["checkpoint_freq"]
    if not any((args.resume / "checkpoints").glob("step_*")):
        raise FileNotFoundError(f"{args.resume} holds no complete checkpoint yet: start the run again.")
    kept = [option for option in settings["arguments"] if option != "--progress"]
    if args.n_timesteps is not None and "--n-timesteps" in kept:
        at = kept.index("--n-timesteps")
        del kept[at : at + 2]
    rl_zoo.train(
        [*kept, *options],
        preset=settings["preset"],
        resume=args.resume,
        checkpoint_freq=frequency,
        save_data=args.save_data or settings.get("save_data", False),
    )


def enjoy(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    check_algorithm(args.algo)
    env_id = rl_zoo.find_environment(args.env)
    rl_zoo.enjoy([*args.rest, "--algo", args.algo, "--env", env_id, "--folder", args.folder])
