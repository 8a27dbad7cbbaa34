"""
The format of agent files: ``.safetensors`` files with tensors, and a header, the card, that describes the agent.

The card is one JSON text under ``sb3_mpc`` in the metadata of the safetensors format. Format version 1 has

* ``format``, ``sha256`` (checksum of the tensors and the other entries), ``versions`` of the packages, ``commit``;
* ``algorithm`` (a key of ``sb3_mpc.ALGORITHMS``), ``policy`` (alias), ``arguments`` (of the constructor), ``state``;
* ``observation_space``, ``action_space`` and ``environment`` (id, max_episode_steps and kwargs, or null);
* ``vec_normalize``: settings of the ``VecNormalize`` whose statistics are among the tensors, or null;
* ``dtype`` of the policy's tensors, "float16" if they were rounded;
* ``preset``, ``seed``, ``steps`` and ``evaluation``, null if unknown, and any further entries given to ``save_agent``.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

import sb3_mpc
from sb3_mpc.common.files import atomic_target, complete_name

FORMAT = 1  # increase it when older readers would misread new files; _check then converts older cards
KEY, SUFFIX = "sb3_mpc", "safetensors"


def write_agent(path: str | Path, card: dict[str, Any], tensors: dict[str, th.Tensor]) -> Path:
    """
    Write an agent file. An existing file of that name is replaced only when the new one is complete.

    :param path: file to write, ``.safetensors`` is appended if it has no suffix
    :param card: the card as plain JSON
    :param tensors: tensors by name
    :return: path of the file
    """
    card = {**card, "format": FORMAT}
    _check(path, {KEY: json.dumps(card)})  # what could not be read is not written
    data = to_bytes(tensors, {KEY: json.dumps({**card, "sha256": _digest(card, tensors)})})
    with atomic_target(path, SUFFIX) as target:
        Path(target).write_bytes(data)  # type: ignore[arg-type]
    return complete_name(path, SUFFIX)


def read_card(path: str | Path) -> dict[str, Any]:
    """
    :param path: file written by :func:`save_agent`
    :return: its card; the tensors are not read
    :raises ValueError: if it is not an agent file of a known format version
    """
    with _opened(path) as file:
        return _check(path, file.metadata())


def read_agent(path: str | Path) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param path: file written by :func:`save_agent`
    :return: its card and its tensors, which match the checksum
    :raises ValueError: if it is damaged, or not an agent file of a known format version
    """
    with _opened(path) as file:
        card = _check(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if card.pop("sha256", None) != _digest(card, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its checksum, use another copy.")
    return card, tensors


def _digest(card: dict[str, Any], tensors: dict[str, th.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content: Any = value.reshape(-1).view(th.uint8).numpy()
        digest.update(content)  # no copy
    return digest.hexdigest()


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    path = complete_name(path, SUFFIX)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the name of the agent file.")
    with path.open("rb") as start:
        if start.read(4) == b"PK\x03\x04":
            raise ValueError(
                f"{path} is a zip file, which may run code when it is loaded, not an agent file: if you trust its "
                "source, use the load() of its algorithm, such as TDMPC2.load."
            )
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete agent file: it is truncated, damaged or another kind of file ({error})."
        ) from error


def _check(path: str | Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """
    :param path: file, for the messages
    :param metadata: metadata in its safetensors header
    :return: the card
    """
    if not metadata or KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not an agent: it has no header of sb3_mpc.")
    try:
        card = json.loads(metadata[KEY])
        number, algorithm = card["format"], card["algorithm"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} has a header that cannot be read: it is damaged, use another copy.") from error
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{path} has the unknown format version {number!r}: it is damaged, use another copy.")
    if number > FORMAT:
        raise ValueError(
            f"{path} has format version {number}, and sb3_mpc {sb3_mpc.__version__} reads up to {FORMAT}: "
            "update sb3-mpc, by git pull in your clone of it."
        )
    environment = card.get("environment")
    if environment is not None and not is_environment(environment):  # Gymnasium imports the module before a colon
        found = ascii(environment)[:200]
        raise ValueError(f"{path} names {found} as its environment, which is not an environment id: do not use it.")
    if not isinstance(algorithm, str) or algorithm not in sb3_mpc.ALGORITHMS:
        raise ValueError(
            f"{path} holds an agent of the algorithm {algorithm!r:.80}, which this sb3_mpc does not have: it has "
            f"{', '.join(sb3_mpc.ALGORITHMS)}."
        )
    for name, suits in ENTRIES.items():
        if name not in card and name not in OPTIONAL:
            raise ValueError(f"{path} lacks {name}, which every agent file of this format has: do not use it.")
        if not suits(card.get(name)):
            raise ValueError(f"{path} has a value of the wrong type for {name}: do not use it.")
    return dict(card)


# -- What is in a card -------------------------------------------------------------------------------------------------

ENVIRONMENT_ID = re.compile(r"\w[\w./-]{0,199}")
COMMIT = re.compile(r"[0-9A-Za-z.]{1,80}(-[a-z]{1,20})?")
MAX_TEXT = 5_000


def is_text(value: Any) -> bool:
    """:return: whether it is text without line breaks and other control characters"""
    return isinstance(value, str) and value.isprintable() and len(value) <= MAX_TEXT


def _are_lines(value: Any) -> bool:
    """:return: whether it is text of some lines without other control characters"""
    return isinstance(value, str) and len(value) <= MAX_TEXT and all(map(is_text, value.split("\n")))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    try:
        return (_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:  # of an integer
        return False


def _dict_of(suits: Callable[[Any], bool], names: Callable[[str], bool] = is_text) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(names(name) and suits(item) for name, item in value.items())


def _or_null(suits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or suits(value)


def is_environment(value: Any) -> bool:
    """
    :param value: what a card says of its environment
    :return: whether it is a dict with an id of the registry, and arguments by name
    """
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not ENVIRONMENT_ID.fullmatch(value["id"]):
        return False
    kwargs, length = value.get("kwargs"), value.get("max_episode_steps")
    return _or_null(_dict_of(lambda item: True, str.isidentifier))(kwargs) and _or_null(_whole)(length)


def _is_evaluation(value: Any) -> bool:
    """:return: whether it is a dict of numbers; returns are not null"""
    returns = [value[name] for name in value if name.endswith("_return")] if isinstance(value, dict) else []
    return _dict_of(_or_null(_number))(value) and all(map(_number, returns))


def _is_call(value: Any) -> bool:
    """:return: whether it is a dict of the arguments of a constructor"""
    if not _dict_of(lambda item: True, str.isidentifier)(value):
        return False
    frequency = value.get("train_freq")
    return (
        _number(value.get("learning_rate"))
        and _dict_of(lambda item: True, str.isidentifier)(value.get("policy_kwargs"))
        and isinstance(frequency, list)
        and len(frequency) == 2
    )


# Entries of a card, and what suits them
ENTRIES: dict[str, Callable[[Any], bool]] = {
    "policy": is_text,
    "arguments": _is_call,
    "state": _dict_of(lambda item: True),
    "observation_space": _dict_of(lambda item: True),
    "action_space": _dict_of(lambda item: True),
    "environment": _or_null(is_environment),
    "vec_normalize": _or_null(_dict_of(lambda item: True)),
    "dtype": lambda value: value in ("float32", "float16"),
    "preset": _or_null(is_text),
    "seed": _or_null(_whole),
    "steps": _or_null(_dict_of(_whole)),
    "evaluation": _or_null(_is_evaluation),
    "versions": _dict_of(is_text),
    "commit": _or_null(lambda value: isinstance(value, str) and COMMIT.fullmatch(value) is not None),
    "command": _or_null(_are_lines),
    "final_learning_rate": _or_null(_number),
}
OPTIONAL = {"command", "final_learning_rate"}
