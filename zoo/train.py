"""Commands ``train`` and ``enjoy``, for which rl_zoo3 does the work."""

import argparse
import json
import random
import sys
from pathlib import Path

from sb3_mpc.zoo.hyperparameters import PRESETS

EXAMPLES = """
examples:
  python -m sb3_mpc.zoo train --algo tdmpc2 --env dmc/walker-walk-v0
  python -m sb3_mpc.zoo train --algo bmpc --env dmc/cartpole-swingup-v0 --preset cpu -n 50000 -params num_samples:128
  python -m sb3_mpc.zoo train --resume logs/tdmpc2/dmc-walker-walk-v0_1

The folder of a run, logs/ALGO/ENV_NUMBER, holds its settings, the returns of its episodes (0.monitor.csv) and of its
evaluations (evaluations.npz), the best agent (best_model.zip), the last one (ENV.zip) and, in checkpoints/, what
`--resume` needs, the replay buffer included; delete that when a run is done for good. Ctrl-C saves before it stops.

All options of `rl_zoo3.train` work, too, among them: --eval-freq, --eval-episodes, --vec-env subproc, --num-threads,
--device, -tb FOLDER (TensorBoard), --env-kwargs, -conf FILE (presets of yours), --n-trials, --storage, --study-name.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``train``
    """
    parser.epilog = EXAMPLES
    keys = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yml")))
    parser.add_argument("--algo", help=f"the method: {keys}")
    parser.add_argument("--env", help="an id of `python -m sb3_mpc.envs`, or any of Gymnasium's, or module:id")
    parser.add_argument("--preset", help='settings laid over the preset: "cpu" makes the agent small enough for a CPU')
    parser.add_argument("-n", "--n-timesteps", type=int, help="decisions of the agent, instead of the preset's number")
    parser.add_argument("--seed", type=int, help="random seed (default: drawn, and kept in the folder of the run)")
    parser.add_argument("-params", "--hyperparams", nargs="+", metavar="NAME:VALUE", help="single settings to change")
    parser.add_argument("-f", "--log-folder", default="logs", help="where the folders of runs are (default: logs)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run of this folder")
    parser.add_argument(
        "--checkpoint-freq", type=int, metavar="N", help="decisions between checkpoints for --resume (default: 25000)"
    )
    parser.add_argument("--optimize", action="store_true", help="search hyper-parameters with Optuna instead")
    parser.add_argument("--track", action="store_true", help="log to Weights & Biases (pip install wandb)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar (there is none without terminal)")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

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
    keys = sorted(path.stem for path in PRESETS.glob("*.yml"))
    if algo not in keys:
        raise ValueError(f'There is no method "{algo}": there are {", ".join(keys)}.')


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


def add_enjoy_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``enjoy``
    """
    parser.epilog = (
        "All options of `rl_zoo3.enjoy` work, too: -n STEPS, --exp-id NUMBER (default: the latest run), --load-best,\n"
        "--no-render, --stochastic, --seed, --device, --env-kwargs, ... A window needs a display and pygame;\n"
        "`record` films an agent without either."
    )
    parser.add_argument("--algo", required=True, help="the method")
    parser.add_argument("--env", required=True, help="the environment")
    parser.add_argument("-f", "--folder", default="logs", help="where the folders of runs are (default: logs)")


def enjoy(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    from sb3_mpc.zoo import rl_zoo

    check_algorithm(args.algo)
    env_id = rl_zoo.find_environment(args.env)
    rl_zoo.enjoy([*args.rest, "--algo", args.algo, "--env", env_id, "--folder", args.folder])
