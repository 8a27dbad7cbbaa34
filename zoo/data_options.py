"""Options of the commands for data sets, without the modules that run them."""

import argparse
from pathlib import Path

from sb3_mpc import METHODS

CONVERT = """
SOURCE is one of
  a Minari data set     its folder, or an id of the local cache, such as mujoco/halfcheetah/medium-v0
  official TD-MPC2 data a folder with files chunk_*.pt; nothing but tensors is read from them
  arrays                FILE.npz with observations, actions and rewards, and if there are any next_observations,
                        terminated and truncated; parts of dict observations as observations.KEY
  D4RL                  FILE.hdf5 with observations, actions, rewards, terminals, timeouts and next_observations
  a data set            its folder: the episodes of the tasks --tasks alone, for example
  a run                 its folder, if a checkpoint has kept the replay buffer, or a file replay_buffer.npz
  a replay buffer       FILE.pkl of save_replay_buffer(), with --trust

examples:
  python -m sb3_mpc.zoo data convert mujoco/halfcheetah/medium-v0 --output data/halfcheetah
  python -m sb3_mpc.zoo data convert ~/mt30 --output data/mt30
"""

PRETRAIN = """
The folder of a run, LOGS/ALGO/NAME_NUMBER, holds its settings, the agent as a file that `evaluate` takes
(agent.safetensors), what --resume needs (checkpoint.npz), the log (progress.csv) and, with --env, evaluations
(evaluations.npz) and the best agent (best_model.safetensors). A killed run continues as if never interrupted.

examples:
  python -m sb3_mpc.zoo pretrain --data data/pendulum --env Pendulum-v1 --preset small -n 5000
  python -m sb3_mpc.zoo pretrain --resume logs/tdmpc2/pendulum_1
"""

MERGE = """
Data sets of the same tasks and spaces make a larger one. Otherwise the new one has the tasks of all: observations and
actions are padded with zeros to the largest, as agents with "MultitaskPolicy" expect them.

example: python -m sb3_mpc.zoo data merge data/walk data/run --output data/walker --tasks walk run
"""


def _add_output(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of a command that writes a data set
    """
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new data set")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is there")


def add_data(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``data``
    """
    parsers = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    formatter = argparse.RawDescriptionHelpFormatter
    describe = parsers.add_parser("describe", help="what is in a data set")
    describe.add_argument("data", type=Path, metavar="DIR", help="the data set")
    describe.add_argument("--picture", type=Path, metavar="FILE", help="draw the returns of the episodes (.png)")
    describe.add_argument("--verify", action="store_true", help="read all of it and compare the checksums")
    convert = parsers.add_parser("convert", help="make a data set", epilog=CONVERT, formatter_class=formatter)
    convert.add_argument("source", help="what to convert, see below")
    _add_output(convert)
    convert.add_argument("--tasks", nargs="+", metavar="NAME", help="names of the tasks; of a data set, those to take")
    convert.add_argument("--trust", action="store_true", help="read a .pkl, which may run code: only one of your own")
    convert.add_argument("--download", action="store_true", help="let Minari download what is not in the cache")
    merge = parsers.add_parser("merge", help="put data sets together", epilog=MERGE, formatter_class=formatter)
    merge.add_argument("data", type=Path, nargs="+", metavar="DIR", help="the data sets")
    _add_output(merge)
    merge.add_argument("--tasks", nargs="+", metavar="NAME", help="name of the task of each data set")
    split = parsers.add_parser("split", help="divide the episodes among two data sets")
    split.add_argument("data", type=Path, metavar="DIR", help="the data set")
    split.add_argument(
        "--output", type=Path, nargs=2, required=True, metavar="DIR", help="folders of the new data sets"
    )
    split.add_argument("--overwrite", action="store_true", help="replace data sets that are there")
    split.add_argument("--fraction", type=float, default=0.9, help="part of the first one (default: 0.9)")
    split.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")


def add_collect(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``collect``
    """
    parser.epilog = (
        "With --env alone, actions are random; with an agent, --random 0.3 makes three tenths of them random.\n\n"
        "examples:\n"
        "  python -m sb3_mpc.zoo collect --env Pendulum-v1 -n 5000 --output data/random\n"
        "  python -m sb3_mpc.zoo collect --algo tdmpc2 --env dmc/cartpole-swingup-v0 -n 5000 --output data/cartpole\n"
        "  python -m sb3_mpc.zoo collect logs/tdmpc2/Pendulum-v1_1 -n 5000 --random 0.3 --output data/pendulum"
    )
    parser.add_argument("agent", nargs="?", metavar="RUN or FILE", help="the agent (default: one of the zoo, or none)")
    parser.add_argument("--algo", help="its method, such as tdmpc2")
    parser.add_argument("--env", help="the environment, such as dmc/walker-walk-v0")
    parser.add_argument("--best", action="store_true", help="of a run, the agent of the best evaluation")
    parser.add_argument("-n", "--n-timesteps", type=int, required=True, help="number of transitions")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--random", type=float, metavar="PART", help="part of the actions that is random, from 0 to 1")
    parser.add_argument("--actor", action="store_true", help="act by the network policy, without planning")
    parser.add_argument("--deterministic", action="store_true", help="without the agent's own exploration")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--device", default="auto")
    _add_output(parser)


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``pretrain``
    """
    parser.epilog = PRETRAIN
    parser.add_argument("--algo", default="tdmpc2", help=f"the method: {', '.join(METHODS)} (default: tdmpc2)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data set")
    parser.add_argument("--env", help="environment to evaluate in; without, there are no evaluations")
    parser.add_argument("-n", "--gradient-steps", type=int, help="number of updates (default: 100000)")
    parser.add_argument(
        "--preset", help='settings by name: "offline" (batches of 1,024 as in TD-MPC2), "cpu" or "small"'
    )
    parser.add_argument("--model-size", type=int, help="millions of parameters: 1, 5, 19, 48 or 317")
    parser.add_argument("--batch-size", type=int, help="windows in a batch")
    parser.add_argument("--sampling", choices=("transitions", "episodes"), help="how windows are drawn")
    parser.add_argument("-params", "--hyperparams", nargs="+", metavar="NAME:VALUE", help="single settings to change")
    parser.add_argument("--eval-freq", type=int, help="updates between evaluations (default: a tenth of all)")
    parser.add_argument("--eval-episodes", type=int, default=10, help="episodes of an evaluation (default: 10)")
    parser.add_argument("--checkpoint-freq", type=int, help="updates between checkpoints (default: a tenth of all)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("logs"), help="where the folders of runs are")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="resume the run of this folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar (there is none without terminal)")
