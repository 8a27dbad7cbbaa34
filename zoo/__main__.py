"""
Train, watch, evaluate, film, measure and compare planning agents.

A first agent on a CPU, and what it does:

    python -m sb3_mpc.zoo train --algo tdmpc2 --env Pendulum-v1 --preset cpu
    python -m sb3_mpc.zoo evaluate logs/tdmpc2/Pendulum-v1_1

`python -m sb3_mpc.zoo COMMAND --help` explains a command.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """
    A command, whose module is imported when it is asked for, so that help comes at once.

    :param module: module of this package
    :param help: what it does, in a line
    :param add_arguments: function of the module that adds the arguments to a parser
    :param run: function of the module that takes the parsed arguments
    :param passes_on: whether options that it does not know belong to the program it runs
    """

    module: str
    help: str
    add_arguments: str = "add_arguments"
    run: str = "main"
    passes_on: bool = False


COMMANDS = {
    "train": Command(
        "train", "train an agent by a preset, go on with a run, or search hyper-parameters", passes_on=True
    ),
    "enjoy": Command("train", "watch a trained agent in a window", "add_enjoy_arguments", "enjoy", passes_on=True),
    "evaluate": Command("evaluate", "mean return of a trained agent"),
    "record": Command("evaluate", "film a trained agent", "add_record_arguments", "record"),
    "plot": Command("plot", "draw learning curves beside published ones, and aggregates"),
    "bench": Command("bench", "measure the speed on this machine"),
}


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
                module = importlib.import_module(f"sb3_mpc.zoo.{command.module}")
                getattr(module, command.add_arguments)(one)
            except ModuleNotFoundError as error:
                return failed(error)
    args, rest = parser.parse_known_args(arguments)
    command = COMMANDS[args.command]
    if command.passes_on:
        args.rest = rest
    elif rest:
        parsers.choices[args.command].error(f"unknown: {' '.join(rest)}")
    try:
        getattr(module, command.run)(args)
    except (ValueError, AssertionError, ImportError, OSError, MemoryError) as error:
        if "SB3_MPC_TRACEBACK" in os.environ:
            raise
        return failed(error)
    return 0


def failed(error: Exception) -> int:
    """
    :param error: what a command has raised
    :return: exit status, after a sentence that says what is wrong
    """
    if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
        error = ModuleNotFoundError(f'This command needs {error.name}: pip install "sb3-mpc[zoo,extra]"')
    print(f"Error: {error or type(error).__name__} (SB3_MPC_TRACEBACK=1 shows where)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
