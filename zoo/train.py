"""Command ``train``, which calls rl_zoo3."""

import argparse
import itertools
import random
import sys

from sb3_mpc import METHODS
from sb3_mpc.common.checks.arguments import check_range

# Options of rl_zoo3 that cannot be changed when a run is resumed
OF_THE_START = {"-conf", "--conf-file", "-i", "--trained-agent", "--env-kwargs", "--eval-env-kwargs"}
# Options of rl_zoo3 that open a file which may run code
OPENING = ("-i", "--trained-agent")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    check_options(args, n_timesteps=1, seed=0, n_eval_envs=1, eval_episodes=1, step=0)
    for item in args.hyperparams or []:
        check_setting(item)
    for word in args.rest:
        if word.partition("=")[0] in OPENING and not args.trust:
            raise ValueError(f"{word} opens a zip file, which may run code: if you trust its source, add --trust.")
    if args.step is not None and args.resume is None:
        raise ValueError("--step chooses a checkpoint of a run: give the run by --resume.")
    options = [*args.rest]
    changed = None if args.resume else args.hyperparams
    given = {"--n-timesteps": args.n_timesteps, "--hyperparams": changed, "--n-eval-envs": args.n_eval_envs}
    for name, value in {**given, "--eval-episodes": args.eval_episodes}.items():
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
    if name in ("n_envs", "n_timesteps") and not (value.isdigit() and int(value) > 0):
        raise ValueError(f"-params {item} is out of range: use a number of at least 1.")
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
    from sb3_mpc.zoo.checkpoint_files import checkpoints_of
    from sb3_mpc.zoo.run_folder import RUN_FILE, plain_arguments, read_start

    names = ("algo", "env", "seed", "preset", "checkpoint_freq")
    refused = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    refused += [item for item in args.hyperparams or [] if not item.startswith("learning_rate:")]
    refused += ["--optimize"] if args.optimize else []
    refused += [word for word in args.rest if word.partition("=")[0] in OF_THE_START]
    if refused:
        raise ValueError(f"--resume keeps the settings of the run, but for learning_rate: leave out {refused[0]}.")
    rate = None
    for item in args.hyperparams or []:
        rate = learning_rate(item.partition(":")[2])
    start = read_start(args.resume)
    if not checkpoints_of(args.resume / "checkpoints") and not any(args.resume.glob("checkpoints/*/model.zip")):
        raise FileNotFoundError(f"{args.resume} holds no complete checkpoint yet: start the run again.")
    kept = [option for option in start["arguments"] if option != "--progress"]
    if args.n_timesteps is not None:
        if "--n-timesteps" in kept:
            at = kept.index("--n-timesteps")
            del kept[at : at + 2]
        kept = ["--n-timesteps", str(args.n_timesteps), *kept]
    usable = kept
    if not args.trust:
        usable = plain_arguments(kept, args.resume / RUN_FILE, modules_of(args.rest))
    rl_zoo.train(
        [*usable, *options],
        kept=kept,
        preset=start["preset"],
        resume=args.resume,
        step=args.step,
        learning_rate=rate,
        trust=args.trust,
        checkpoint_freq=start["checkpoint_freq"],
        save_data=args.save_data or start["save_data"],
    )


def learning_rate(text: str) -> float | str:
    """
    :param text: number, or ``lin_`` and a number for one that falls linearly, as it is given to ``-params``
    :return: the same, as rl_zoo3 understands it
    :raises ValueError: if it is none
    """
    text = text.strip("'\"")
    try:
        rate = float(text.removeprefix("lin_"))
    except ValueError:
        raise ValueError(f"-params learning_rate:{text} is not understood: give a number, such as 1e-4.") from None
    check_range("learning_rate", rate, 0)
    return text if text.startswith("lin_") else rate


def modules_of(words: list[str]) -> list[str]:
    """
    :param words: command line
    :return: modules that it names by ``--gym-packages``
    """
    if "--gym-packages" not in words:
        return []
    rest = words[words.index("--gym-packages") + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
