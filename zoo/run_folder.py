"""
What is in the folder of a run, read as data: nothing in it is executed or imported, whoever wrote it, unless the user
says ``--trust``.

rl_zoo3 writes YAML with tags of Python, evaluates text in settings, and imports the classes that they name. Here the
tags of tuples and ordered dicts are understood, and no others; text is evaluated if it is plain data.
"""

import ast
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

# File in the folder of a run with the arguments that `train --resume` needs
RUN_FILE = "train.json"
# The settings of a run and a command line are short: a file beyond these sizes is something else
MAX_BYTES, MAX_VALUES = 2**18, 50_000
# Settings that rl_zoo3 evaluates if they are text, and settings that name something to import
EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_kwargs", "monitor_kwargs", "env_kwargs")
IMPORTED = ("env_wrapper", "vec_env_wrapper", "callback")
# Options of rl_zoo3 that a run may have begun with, and how many values follow each; None: any number of NAME:VALUE
OPTIONS: dict[str, int | None] = {
    **dict.fromkeys(("--algo", "--env", "--seed", "--log-folder", "-f", "--n-timesteps", "-n", "--device"), 1),
    **dict.fromkeys(("--eval-freq", "--eval-episodes", "--n-eval-envs", "--num-threads", "--log-interval"), 1),
    **dict.fromkeys(("--vec-env", "--verbose", "--save-freq", "--tensorboard-log", "-tb"), 1),
    **dict.fromkeys(("--truncate-last-trajectory",), 1),
    **dict.fromkeys(("--save-replay-buffer", "--progress", "-P", "--uuid", "-uuid"), 0),
    **dict.fromkeys(("--env-kwargs", "--eval-env-kwargs", "--hyperparams", "-params"), None),
}
TRUST = "if you trust the folder and everyone who could write to it, add --trust"


class _DataLoader(yaml.SafeLoader):
    """Plain YAML, and the tags that rl_zoo3 writes for tuples and ordered dicts."""


def _tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _ordered(loader: yaml.SafeLoader, node: yaml.Node) -> "OrderedDict[Any, Any]":
    (pairs,) = loader.construct_sequence(node, deep=True)
    return OrderedDict((key, value) for key, value in pairs)


_DataLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_DataLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)


def read_yaml(path: Path, trust: bool = False) -> dict[str, Any]:
    """
    :param path: settings of a run
    :param trust: whether to make the objects that it describes, which may run code
    :return: its content
    :raises ValueError: if it holds anything but data
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is no file of settings: it is too large.")
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=yaml.UnsafeLoader if trust else _DataLoader)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ValueError("it holds no settings by name")
        if not trust:
            check_size(found)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} was refused, and nothing in it executed ({reason}): {TRUST}.") from error
    return found


def check_size(value: Any) -> None:
    """
    :param value: nested lists and dicts, in which one part may occur many times
    :raises ValueError: if it is too large to be written out
    """
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError("it holds too many values")
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set)):
            waiting += part


def plain(text: str) -> Any:
    """
    :param text: Python
    :return: its value: numbers, text, lists, tuples, dicts, also as ``dict(name=value)``
    :raises ValueError: if it is anything else
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {_name(keyword): value(keyword.value) for keyword in node.keywords}
        if isinstance(node, ast.Dict):
            return {value(_some(key)): value(item) for key, item in zip(node.keys, node.values, strict=True)}
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        return ast.literal_eval(node)

    try:
        if len(text) > MAX_BYTES:
            raise ValueError("it is too long")
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is no plain data.") from error


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("** is not plain")
    return keyword.arg


def _some(key: ast.expr | None) -> ast.expr:
    if key is None:
        raise ValueError("** is not plain")
    return key


def settings_file(run: Path) -> Path:
    """
    :param run: folder of a run
    :return: the file with its arguments
    :raises FileNotFoundError: if there is none
    """
    found = next((path for path in sorted(run.glob("*/args.yml")) if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{run} is no folder of a run that `train` has begun: there is no args.yml in it.")
    return found


def read_arguments(path: Path, trust: bool = False) -> dict[str, Any]:
    """
    :param path: the file ``args.yml`` of a run
    :param trust: see :func:`read_yaml`
    :return: its arguments, of which method, environment, seed and arguments of the environment are of their types
    :raises ValueError: if they are not
    """
    found = read_yaml(path, trust)
    checks: dict[str, Callable[[Any], bool]] = dict(
        algo=_is_name,
        env=_is_name,
        seed=lambda value: isinstance(value, int),
        env_kwargs=lambda value: value is None or (isinstance(value, dict) and all(isinstance(n, str) for n in value)),
    )
    for name, suits in checks.items():
        if not suits(found.get(name)):
            raise ValueError(f"{path} does not say which {name} the run had: it is damaged, or no file of a run.")
    return found


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) < 200


def read_settings(path: Path, trust: bool = False, only: Collection[str] | None = None) -> dict[str, Any]:
    """
    :param path: the file ``config.yml`` of a run
    :param trust: whether its settings may be evaluated and imported
    :param only: names of the settings that are needed, all if None
    :return: its settings in the format of rl_zoo3
    :raises ValueError: if they would run code
    """
    found = read_yaml(path, trust)
    found = {name: value for name, value in found.items() if only is None or name in only}
    return found if trust else plain_settings(found, path)


def plain_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """
    :param settings: settings in the format of rl_zoo3
    :param path: where they come from, for the message
    :return: the same, with text that rl_zoo3 would evaluate replaced by data
    :raises ValueError: if they name what is to be imported, or hold text that is no data
    """
    settings = dict(settings)
    for name in IMPORTED:
        if settings.get(name):
            raise ValueError(f"{path} names code to import ({name}: {str(settings[name])[:80]}): {TRUST}.")
    if "." in str(settings.get("policy", "")):
        raise ValueError(f"{path} names code to import (policy: {str(settings['policy'])[:80]}): {TRUST}.")
    for name in EVALUATED:
        if isinstance(settings.get(name), str):
            try:
                settings[name] = plain(settings[name])
            except ValueError as error:
                raise ValueError(f"{path} holds code to evaluate ({name}: {settings[name][:80]}): {TRUST}.") from error
    if settings.get("replay_buffer_class") not in (None, "HerReplayBuffer"):
        raise ValueError(f"{path} names code to import (replay_buffer_class): {TRUST}.")
    return settings


def read_start(run: Path) -> dict[str, Any]:
    """
    :param run: folder of a run
    :return: how it was begun: ``arguments`` of rl_zoo3, ``preset``, ``checkpoint_freq`` and ``save_data``
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it does not say so
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no folder of a run that `train` has begun: there is no {RUN_FILE}.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        arguments, preset, frequency = (found[name] for name in ("arguments", "preset", "checkpoint_freq"))
        if not (isinstance(arguments, list) and all(isinstance(word, str) for word in arguments)):
            raise ValueError("its arguments are no list of text")
        if not (preset is None or _is_name(preset)) or isinstance(frequency, bool) or not isinstance(frequency, int):
            raise ValueError("preset or checkpoint_freq has another type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is damaged, or no file of a run ({reason}).") from error
    return dict(arguments=arguments, preset=preset, checkpoint_freq=frequency, save_data=found.get("save_data") is True)


def plain_arguments(arguments: list[str], path: Path, known_modules: list[str]) -> list[str]:
    """
    :param arguments: command line that a run was begun with
    :param path: where it comes from, for the message
    :param known_modules: modules that the user has named now
    :return: those that can be given to rl_zoo3 again; single settings are left out, which the run has kept
    :raises ValueError: if an option would import or evaluate something
    """
    kept: list[str] = []
    words = list(arguments)
    while words:
        option, joined, value = words.pop(0).partition("=")
        values = [value] if joined else []
        while words and not joined and not _is_option(words[0]):
            values.append(words.pop(0))
        if option == "--gym-packages" and set(values) <= set(known_modules):
            continue
        if option not in OPTIONS:
            raise ValueError(f"{path} begins with {option[:80]}, which may run code: {TRUST}.")
        count = OPTIONS[option]
        if count is not None and len(values) != count:
            raise ValueError(f"{path} is damaged: {option} has {len(values)} values.")
        if option in ("--hyperparams", "-params"):
            continue
        for item in values if count is None else []:
            try:
                plain(item.partition(":")[2])
            except ValueError as error:
                raise ValueError(f"{path} holds code to evaluate ({option} {item[:80]}): {TRUST}.") from error
        kept += [option, *values]
    return kept


def _is_option(word: str) -> bool:
    """:return: whether a word of a command line is an option, and no negative number"""
    return word.startswith("-") and not word[1:].replace(".", "").isdigit()
