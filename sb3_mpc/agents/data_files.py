"""
Nested data as one file that holds data only, so that reading it executes nothing: a zip archive, not compressed, of
``structure.json`` and the arrays as ``0.npy``, ``1.npy``, ...

Written are plain values, lists, tuples, dicts, arrays, tensors, random number generators, spaces, and classes and
objects of the classes listed here: an object is its attributes. Whatever else is refused, on writing as on reading.
"""

import collections
import enum
import json
import math
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers, noise, torch_layers, type_aliases, utils
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

import sb3_mpc
from sb3_mpc.agents.space_json import space_from_json, space_to_json
from sb3_mpc.common.buffers import her, plan_buffer, sequence_buffer
from sb3_mpc.common.files import atomic_target
from sb3_mpc.common.networks.encoders import DictExtractor, NormalizingExtractor, PixelExtractor
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.policies.world_model_policy import PLANNERS

STRUCTURE = "structure.json"
MAX_DEPTH, MAX_STRUCTURE = 100, 2**28  # far more than any run has: levels of nesting, bytes
PLAIN = (type(None), bool, int, float, str)
GENERATORS = {"PCG64": np.random.PCG64, "MT19937": np.random.MT19937}


def policy_classes() -> list[type]:
    """:return: the classes that may appear in ``policy_kwargs`` of a file"""
    own = [value for cls in sb3_mpc.ALGORITHMS.values() for value in cls.policy_defaults.values()]
    extractors = [PixelExtractor, DictExtractor, NormalizingExtractor, torch_layers.FlattenExtractor]
    known = [WorldModel, *PLANNERS.values(), *extractors, th.optim.Adam, th.optim.AdamW, *own]
    return [value for value in known if isinstance(value, type)]


@cache
def known_classes() -> dict[str, type]:
    """:return: the classes that a file may name; objects of the second half of them may be in a file"""
    own: list[Any] = list(policy_classes())
    algorithms: list[Any] = [*sb3_mpc.ALGORITHMS.values(), sb3.SAC]
    own += [policy for cls in algorithms for policy in cls.policy_aliases.values()]
    own += [torch_layers.NatureCNN, torch_layers.CombinedExtractor]
    own += [th.nn.ReLU, th.nn.Tanh, th.nn.ELU, th.nn.GELU, th.nn.SiLU, th.nn.Mish, th.nn.LeakyReLU]
    own += [sequence_buffer.SequenceReplayBuffer, plan_buffer.PlanReplayBuffer, sb3.HerReplayBuffer]
    own += [her.HerSequenceReplayBuffer, her.HerPlanReplayBuffer]
    own += [buffers.ReplayBuffer, buffers.DictReplayBuffer, buffers.NStepReplayBuffer]
    return {qualified(cls): cls for cls in (*own, *known_objects().values()) if isinstance(cls, type)}


def known_objects() -> dict[str, type]:
    """
    :return: the classes of the objects that a file may hold; they have no methods that act when data are set. That of
        rl_zoo3, which the presets' learning rates are of, is there once rl_zoo3 has been imported
    """
    schedule = getattr(sys.modules.get("rl_zoo3.utils"), "SimpleLinearSchedule", None)
    return _objects_of_sb3() if schedule is None else {**_objects_of_sb3(), qualified(schedule): schedule}


@cache
def _objects_of_sb3() -> dict[str, type]:
    of_sb3 = [utils.FloatSchedule, utils.ConstantSchedule, utils.LinearSchedule, RunningMeanStd, GoalSelectionStrategy]
    of_sb3 += [noise.NormalActionNoise, noise.OrnsteinUhlenbeckActionNoise, noise.VectorizedActionNoise]
    of_sb3 += [type_aliases.TrainFreq, type_aliases.TrainFrequencyUnit]
    return {qualified(cls): cls for cls in of_sb3}


def qualified(cls: type) -> str:
    """:return: name of a class, with its module"""
    return f"{cls.__module__}.{cls.__qualname__}"


def write_data(path: str | Path, value: Any) -> None:
    """
    :param path: file to write; an existing one is replaced only when the new one is complete
    :param value: what is in it
    :raises ValueError: if a part of it is not data
    """
    with atomic_target(path, "npz") as target, zipfile.ZipFile(target, "w") as archive:
        arrays = _Writer(archive)
        structure = json.dumps(arrays.encode(value, ""))
        archive.writestr(STRUCTURE, structure)


def is_data(value: Any) -> bool:
    """
    :param value: any value
    :return: whether :func:`write_data` would write it
    """
    try:
        _Writer(None).encode(value, "")
    except ValueError:
        return False
    return True


class _Writer:
    """
    :param archive: archive that the arrays are written to; None to try whether a value is data
    """

    def __init__(self, archive: zipfile.ZipFile | None) -> None:
        self.archive, self.count = archive, 0

    def encode(self, value: Any, where: str) -> Any:
        """
        :param value: a value
        :param where: its place, for the message
        :return: the same as JSON, with the arrays written
        """
        if type(value) in PLAIN:
            return value
        if type(value) is list:
            return [self.encode(item, f"{where}/{i}") for i, item in enumerate(value)]
        for kind, suits, encode in KINDS:
            if suits(value):
                return {kind: encode(self, value, where)}
        raise ValueError(
            f"{where or 'It'} is {value!r:.100}, which is no data: a file that holds data only cannot keep it."
        )

    def pairs(self, value: Any, where: str) -> Any:
        """:return: items of a dict"""
        return [[self.encode(key, where), self.encode(item, f"{where}/{key}")] for key, item in value.items()]

    def array(self, value: Any, where: str) -> str:
        """:return: name of an array, which is written"""
        name = str(self.count)
        self.count += 1
        if self.archive is not None:
            with self.archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(value), allow_pickle=False)
        return name

    def tensor(self, value: th.Tensor, where: str) -> Any:
        """:return: name of an array, and whether it holds the bits of bfloat16 numbers, which NumPy has not"""
        value = value.detach().cpu()
        half = value.dtype == th.bfloat16
        return [self.array((value.view(th.int16) if half else value).numpy(), where), half]

    def objects(self, value: np.ndarray, where: str) -> Any:
        """:return: shape of an array of objects, and those that are not None by their index"""
        flat = value.reshape(-1)
        return [list(value.shape), [[i, self.encode(x, f"{where}/{i}")] for i, x in enumerate(flat) if x is not None]]

    def generator(self, value: np.random.Generator, where: str) -> Any:
        """:return: state of a random number generator"""
        return self.encode(dict(value.bit_generator.state), where)

    def instance(self, value: Any, where: str) -> Any:
        """:return: class and attributes of an object"""
        return [qualified(type(value)), self.encode(dict(vars(value)), where)]

    def named(self, value: Any, where: str) -> Any:
        """:return: class and items of a named tuple"""
        return [qualified(type(value)), self.sequence(value, where)]

    def sequence(self, value: Any, where: str) -> Any:
        """:return: items of a tuple or similar"""
        return self.encode(list(value), where)


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSU"


# Kind of a value: what belongs to it, and how it is encoded. Exact types: a derived class may act when it is restored
KINDS: tuple[tuple[str, Callable[[Any], bool], Callable[[_Writer, Any, str], Any]], ...] = (
    ("dict", _is(dict, collections.OrderedDict), _Writer.pairs),
    ("tuple", _is(tuple), _Writer.sequence),
    ("set", _is(set), _Writer.sequence),
    ("deque", _is(collections.deque), lambda w, v, where: [w.sequence(v, where), v.maxlen]),
    ("scalar", lambda v: isinstance(v, np.generic) and _is_array(v), _Writer.array),
    ("array", lambda v: type(v) is np.ndarray and _is_array(v), _Writer.array),
    ("objects", lambda v: type(v) is np.ndarray and v.dtype == object, _Writer.objects),
    ("parameter", _is(th.nn.Parameter), _Writer.tensor),
    ("tensor", _is(th.Tensor), _Writer.tensor),
    ("device", _is(th.device), lambda w, v, where: str(v)),
    ("space", lambda v: isinstance(v, spaces.Space), lambda w, v, where: space_to_json(v)),
    ("generator", lambda v: _is_generator(v), _Writer.generator),
    ("class", lambda v: isinstance(v, type) and known_classes().get(qualified(v)) is v, lambda w, v, _: qualified(v)),
    ("enum", lambda v: isinstance(v, enum.Enum) and _is_known(v), lambda w, v, _: [qualified(type(v)), v.name]),
    ("named", lambda v: isinstance(v, tuple) and _is_known(v), _Writer.named),
    ("object", lambda v: _is_known(v) and hasattr(v, "__dict__"), _Writer.instance),
)


def _is_generator(value: Any) -> bool:
    return type(value) is np.random.Generator and type(value.bit_generator).__name__ in GENERATORS


def _is_known(value: Any) -> bool:
    return known_objects().get(qualified(type(value))) is type(value)


def read_data(path: str | Path) -> Any:
    """
    :param path: file written by :func:`write_data`
    :return: what is in it
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is damaged, or no such file; nothing in it was executed
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).read()
    except Exception as error:  # whatever unchecked content causes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{path} is not a complete file of data: it is damaged, or another kind of file ({reason})."
        ) from error


class _Reader:
    """
    :param archive: archive whose size bounds what reading it takes
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed")

    def read(self) -> Any:
        """:return: the value"""
        if self.archive.getinfo(STRUCTURE).file_size > MAX_STRUCTURE:
            raise ValueError(f"{STRUCTURE} is too long")
        return self.decode(json.loads(self.archive.read(STRUCTURE)), 0)

    def decode(self, value: Any, depth: int) -> Any:
        """
        :param value: as encoded
        :param depth: levels of nesting above it
        :return: the value
        """
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if isinstance(value, list):
            return [self.decode(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        (kind, content), *more = value.items()
        if more:
            raise ValueError(f"{kind} is not alone")
        return getattr(self, f"read_{kind}", self.refuse)(content, depth + 1)

    def refuse(self, content: Any, depth: int) -> NoReturn:
        """:raises ValueError: for a kind that there is not"""
        raise ValueError("it has a kind of content that is not known")

    def read_dict(self, content: Any, depth: int) -> Any:
        """:return: a dict"""
        return {self.decode(key, depth): self.decode(item, depth) for key, item in content}

    def read_tuple(self, content: Any, depth: int) -> Any:
        """:return: a tuple"""
        return tuple(self.decode(content, depth))

    def read_set(self, content: Any, depth: int) -> Any:
        """:return: a set"""
        return set(self.decode(content, depth))

    def read_deque(self, content: Any, depth: int) -> Any:
        """:return: a deque"""
        items, maxlen = content
        return collections.deque(self.decode(items, depth), maxlen)

    def read_array(self, content: Any, depth: int) -> np.ndarray:
        """:return: an array, which is not larger than its part of the file"""
        member = self.archive.getinfo(f"{int(content)}.npy")
        with self.archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            if dtype.hasobject or dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} is no array of numbers")
        with self.archive.open(member) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # also compares the checksum of the archive
                raise ValueError(f"{member.filename} is longer than its array")
            return array

    def read_scalar(self, content: Any, depth: int) -> Any:
        """:return: a number of NumPy"""
        return self.read_array(content, depth)[()]

    def read_objects(self, content: Any, depth: int) -> np.ndarray:
        """:return: an array of objects"""
        shape, items = content
        if math.prod(shape) > 2**27:
            raise ValueError(f"an array of the shape {shape} is too large")
        array = np.empty(math.prod(shape), dtype=object)
        for i, item in items:
            array[i] = self.decode(item, depth)
        return array.reshape(shape)

    def read_tensor(self, content: Any, depth: int) -> th.Tensor:
        """:return: a tensor"""
        name, half = content
        tensor = th.from_numpy(self.read_array(name, depth))
        return tensor.view(th.bfloat16) if half else tensor

    def read_parameter(self, content: Any, depth: int) -> th.Tensor:
        """:return: a parameter"""
        return th.nn.Parameter(self.read_tensor(content, depth))

    def read_device(self, content: Any, depth: int) -> th.device:
        """:return: a device"""
        return th.device(content)

    def read_space(self, content: Any, depth: int) -> spaces.Space:
        """:return: a space"""
        return space_from_json(content)

    def read_generator(self, content: Any, depth: int) -> np.random.Generator:
        """:return: a random number generator"""
        state = self.decode(content, depth)
        bits = GENERATORS[state["bit_generator"]]()
        bits.state = state
        return np.random.Generator(bits)

    def read_class(self, content: Any, depth: int) -> type:
        """:return: one of the known classes"""
        return known_classes()[content]

    def read_enum(self, content: Any, depth: int) -> Any:
        """:return: a member of a known enumeration"""
        cls: Any = known_objects()[content[0]]
        return cls[content[1]]

    def read_named(self, content: Any, depth: int) -> Any:
        """:return: a named tuple of a known class"""
        cls: Any = known_objects()[content[0]]
        return cls._make(self.decode(content[1], depth))

    def read_object(self, content: Any, depth: int) -> Any:
        """:return: an object of a known class"""
        cls: Any = known_objects()[content[0]]
        made = cls.__new__(cls)
        vars(made).update(self.decode(content[1], depth))
        return made
