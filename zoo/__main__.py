"""
Train, watch, evaluate, record, measure and compare planning agents.

Train a first agent on a CPU, and evaluate it:

    python -m sb3_mpc.zoo train --algo tdmpc2 --env Pendulum-v1 --preset cpu
    python -m sb3_mpc.zoo evaluate logs/tdmpc2/Pendulum-v1_1

`python -m sb3_mpc.zoo COMMAND --help` explains a command.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """
    A command. Its modules are imported only when it runs, so that help is printed at once.

    :param help: description in one line
    :param options: ``module:function`` of this package that adds its options to a parser
    :param run: ``module:function`` of this package that takes the parsed options
    :param passes_on: whether unknown options are passed on to the program of rl_zoo3 that it runs
    """

    help: str
    options: str
    run: str
    passes_on: bool = False


COMMANDS = {
    "train": Command(
        "train with a preset, resume a run, or search hyper-parameters", "options:add_train", "train:main", True
    ),
    "enjoy": Command("watch a trained agent in a window", "options:add_enjoy", "evaluate:enjoy"),
    "evaluate": Command("measure the mean return of a trained agent", "options:add_evaluate", "evaluate:main"),
    "finetune": Command(
        "teach a trained agent of several tasks another one", "options:add_finetune", "multitask:finetune"
    ),
    "record": Command("record videos of a trained agent", "options:add_record", "evaluate:record"),
    "collect": Command(
        "record what an agent, or random actions, do in an environment", "data_options:add_collect", "data:collect"
    ),
    "data": Command("describe, convert, merge and split data sets", "data_options:add_data", "data:main"),
    "pretrain": Command("train an agent from a data set, without acting", "data_options:add_pretrain", "pretrain:main"),
    "publish": Command(
        "write a trained agent to one file, with its evaluation, curve, video and model card",
        "options:add_publish",
        "publish:main",
    ),
    "plot": Command("draw learning curves beside published ones, and aggregates", "options:add_plot", "plot:main"),
    "list": Command("list the trained agents of the package", "agents:add_list_arguments", "agents:list_agents"),
    "load-from-hub": Command("download a trained agent", "agents:add_download_arguments", "agents:download"),
    "push-to-hub": Command("share a trained agent", "agents:add_upload_arguments", "agents:upload"),
    "import-official": Command(
        "convert a checkpoint of the official TD-MPC2 or MBDPO code to an agent file",
        "import_official:add_arguments",
        "import_official:main",
    ),
    "convert": Command(
        "convert a zip file to an agent file or back, or a run of an earlier version",
        "agents:add_convert_arguments",
        "agents:convert_file",
    ),
    "benchmark": Command(
        "train and evaluate methods on sets of tasks, by a queue that survives kills",
        "options:add_benchmark",
        "benchmark:main",
    ),
    "doctor": Command(
        "tell what this machine has, what would be chosen on it, and how long a training takes",
        "options:add_doctor",
        "doctor:main",
    ),
    "report": Command(
        "tables and pictures of what `benchmark` has measured, beside what was published",
        "options:add_report",
        "report:main",
    ),
    "bench": Command("measure the speed on this machine", "bench:add_arguments", "bench:main"),
    "gpu": Command("verify and measure everything on a GPU", "gpu:add_arguments", "gpu:main"),
}


# Modules that belong to the extras "zoo" and "extra"
EXTRAS = {"rl_zoo3", "huggingface_sb3", "huggingface_hub", "optuna", "wandb", "yaml", "pandas", "requests"}
OFFLINE = {"minari", "h5py", "pyarrow"}
EXTRAS |= {"tqdm", "rich", "tensorboard", "matplotlib", "moviepy", "imageio", "PIL", "psutil"}
# Errors of which the message alone is printed; others come with their traceback
EXPECTED = (ValueError, TypeError, AssertionError, ImportError, OSError, MemoryError, RuntimeError)


def function(name: str) -> Callable[..., None]:
    """
    :param name: ``module:function`` within this package
    :return: the function
    """
    module, _, attribute = name.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(f"sb3_mpc.zoo.{module}"), attribute)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: command line, that of the process if None
    :return: exit status
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m sb3_mpc.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = parsers.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if arguments[:1] == [name]:
            try:
                function(command.options)(one)
            except ModuleNotFoundError as error:
                return failed(error)
    args, rest = parser.parse_known_args(arguments)
    command = COMMANDS[args.command]
    if command.passes_on:
        args.rest = rest
    elif rest:
        parsers.choices[args.command].error(f"unknown: {' '.join(rest)}")
    try:
        function(command.run)(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as in "list | head": the rest of the output is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        expected = isinstance(error, EXPECTED) or type(error).__module__.startswith("gymnasium.")
        if "SB3_MPC_TRACEBACK" in os.environ or not expected:
            raise
        return failed(error)
    return 0


def failed(error: Exception) -> int:
    """
    :param error: exception that a command has raised
    :return: exit status; the message is printed to stderr
    """
    if isinstance(error, ModuleNotFoundError) and error.name == "ray":
        error = ModuleNotFoundError('--launcher ray needs Ray: pip install -e ".[ray]" in your clone of sb3-mpc')
    elif isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in OFFLINE:
        error = ModuleNotFoundError(
            f'This command needs {error.name}: pip install -e ".[offline]" in your clone of sb3-mpc'
        )
    elif isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in EXTRAS:
        error = ModuleNotFoundError(
            f'This command needs {error.name}: pip install -e ".[zoo,extra]" in your clone of sb3-mpc'
        )
    print(f"Error: {str(error) or type(error).__name__} (SB3_MPC_TRACEBACK=1 shows where)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
