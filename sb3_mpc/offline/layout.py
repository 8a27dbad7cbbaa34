"""
How a data set lies on disk: a folder with one array per column and a description.

``dataset.json``        spaces, tasks, source, and size and checksums of the other files
``episodes.npy``        a row for each episode, see :data:`EPISODE`
``observations.npy``    each observation once, the final one of an episode, too; ``observations.KEY.npy`` of a dict
``actions.npy``         in [-1, 1]
``rewards.npy``
``plans.npy``           mean and standard deviation of the planned actions; if recorded, with ``planned.npy``

The transitions of an episode follow each other, and so do the episodes. The observation of transition r, in the
episode e, is therefore in the row r + e, and the next one behind it.

Arrays are NumPy's own format. They are mapped into memory, never loaded as a whole, and nothing is unpickled.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
from gymnasium import spaces

from sb3_mpc.agents.space_json import space_from_json, space_to_json

FORMAT, VERSION = "sb3-mpc data set", 1
DESCRIPTION = "dataset.json"
EPISODE = np.dtype([("start", "<i8"), ("length", "<i8"), ("task", "<i4"), ("terminated", "?"), ("truncated", "?")])
TASK = "task"  # of observations: the index of the episode's task, which is not stored again
# What the description says of each array
MEASURED = ("rows", "bytes", "crc32", "sample")

HEADER = 512  # bytes of the header of an array, whose length must not depend on the number of rows
BLOCK, BLOCKS = 4096, 64  # bytes and number of the samples that tell at once whether a file has changed
PART = 2**24  # bytes that are read at once
MAPPED = 2**28  # bytes of the largest array that is read through a mapping


def observation_columns(space: spaces.Space) -> dict[str, tuple[str, spaces.Space]]:
    """
    :param space: space of the observations
    :return: column and space of each stored part of an observation by its key, ``""`` for a plain observation
    """
    if not isinstance(space, spaces.Dict):
        return {"": ("observations", space)}
    parts = {key: sub for key, sub in space.spaces.items() if key != TASK or not isinstance(sub, spaces.Discrete)}
    return {key: (f"observations.{quote(key, safe='')}", sub) for key, sub in parts.items()}


def tells_task(space: spaces.Space) -> bool:
    """
    :param space: space of the observations
    :return: whether an observation has the index of its task
    """
    return isinstance(space, spaces.Dict) and isinstance(space.spaces.get(TASK), spaces.Discrete)


def columns(observation_space: spaces.Space, action_space: spaces.Space, plans: bool) -> dict[str, np.dtype]:
    """
    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param plans: whether there are plans
    :return: what one row of each column is
    """
    dim = spaces.flatdim(action_space)
    found: dict[str, np.dtype] = {
        name: np.dtype((s.dtype, s.shape)) for name, s in observation_columns(observation_space).values()
    }
    found |= dict(actions=np.dtype(("<f4", (dim,))), rewards=np.dtype("<f4"))
    return found | (dict(plans=np.dtype(("<f4", (2, dim))), planned=np.dtype("?")) if plans else {})


def header(row: np.dtype, rows: int) -> bytes:
    """
    :param row: what one row is
    :param rows: number of rows
    :return: header of an array in NumPy's format, version 1.0, of a length that does not depend on the rows
    """
    descr = row.descr if row.names else row.base.str
    text = repr(dict(descr=descr, fortran_order=False, shape=(rows, *row.shape)))
    magic = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return magic + text.ljust(HEADER - 11).encode("latin1") + b"\n"


def default_names(count: int) -> list[str]:
    """
    :param count: number of tasks
    :return: names of tasks that have none
    """
    return [f"task {i}" for i in range(count)] if count > 1 else ["task"]


class RowReader:
    """
    Reads rows at random places of an array on disk. One that is small is mapped into memory. Of a large one the places
    are read one by one: a mapping would grow with all that is touched, and finding the pages takes longer.

    :param path: file
    :param array: the same, mapped into memory
    """

    def __init__(self, path: Path, array: np.ndarray) -> None:
        self.array = array
        self.row = array[:0].nbytes if len(array) == 0 else array[0].nbytes
        self.file: BinaryIO | None = None
        if array.nbytes > MAPPED and hasattr(os, "pread"):
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this object
            if hasattr(os, "posix_fadvise"):  # what lies beside a row need not be read
                os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, first: np.ndarray, step: np.ndarray) -> np.ndarray:
        """
        :param first: rows where windows start ``[B]``
        :param step: which of the rows from there on, not more than H - 1 ``[H, B]``
        :return: these rows ``[H, B, *shape]``
        """
        if self.file is None:
            return self.array[first + step]
        count = min(len(step), len(self.array))
        begin = np.minimum(first, len(self.array) - count)
        descriptor, size, pread = self.file.fileno(), count * self.row, os.pread
        parts = [pread(descriptor, size, place) for place in (HEADER + begin * self.row).tolist()]
        rows = np.frombuffer(b"".join(parts), self.array.dtype).reshape(len(first), count, *self.array.shape[1:])
        return rows[np.arange(len(first)), step + (first - begin)]


class ColumnFile:
    """
    An array on disk that grows.

    :param path: file to write
    :param row: what one row is
    """

    def __init__(self, path: Path, row: np.dtype) -> None:
        self.path, self.row, self.rows, self.checksum = path, row, 0, 0
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.file.write(header(row, 0))

    def append(self, values: np.ndarray) -> None:
        """
        :param values: further rows ``[n, *shape]``
        """
        data = np.ascontiguousarray(values, self.row.base).view(np.uint8).data if values.size else memoryview(b"")
        self.file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.rows += len(values)

    def close(self) -> None:
        """Complete the file, and wait until it is on the disk."""
        self.file.seek(0)
        self.file.write(header(self.row, self.rows))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def describe(self) -> dict[str, Any]:
        """:return: size and checksums of the complete file"""
        return dict(rows=self.rows, bytes=self.path.stat().st_size, crc32=self.checksum, sample=sample_of(self.path))


def sample_of(path: Path) -> int:
    """
    :param path: file
    :return: checksum of blocks spread over it, which takes the same time for every size
    """
    size, checksum = path.stat().st_size, 0
    with open(path, "rb") as file:
        for place in np.linspace(0, max(0, size - BLOCK), BLOCKS, dtype=np.int64):
            file.seek(int(place))
            checksum = zlib.crc32(file.read(BLOCK), checksum)
    return checksum


def checksum_of(path: Path) -> int:
    """
    :param path: array
    :return: checksum of all of its data
    """
    checksum = 0
    with open(path, "rb") as file:
        file.seek(HEADER)
        while part := file.read(PART):
            checksum = zlib.crc32(part, checksum)
    return checksum


def describe(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    tasks: list[dict[str, Any]],
    source: str,
    files: dict[str, ColumnFile],
) -> str:
    """:return: the description of a data set, as JSON"""
    description = dict(
        format=FORMAT,
        version=VERSION,
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        tasks=tasks,
        source=source,
        columns={name: file.describe() for name, file in files.items()},
    )
    return json.dumps(description, indent=1) + "\n"


def read_description(folder: Path) -> dict[str, Any]:
    """
    :param folder: data set
    :return: its description, with the spaces as spaces
    :raises FileNotFoundError: if it is no data set
    :raises ValueError: if the description is damaged, or of an unknown version
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no data set: there is no {DESCRIPTION} in it. `python -m sb3_mpc.zoo data convert` makes one."
        )
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError
        if found["version"] == VERSION:
            found |= {name: space_from_json(found[name]) for name in ("observation_space", "action_space")}
            for task in found["tasks"]:
                name, dim, length = task["name"], task["action_dim"], task["episode_length"]
                sound = isinstance(name, str) and isinstance(dim, int) and dim >= 0
                if not sound or not (length is None or (isinstance(length, int) and length >= 1)):
                    raise ValueError
            plans = "plans" in found["columns"]
            wanted = {"episodes": EPISODE, **columns(found["observation_space"], found["action_space"], plans)}
            for name in wanted:
                entries = found["columns"].get(name)
                if entries is not None and not all(isinstance(entries[k], int) for k in MEASURED):
                    raise ValueError
            found["rows"] = wanted
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no description of a data set: make the data set again.") from error
    if found["version"] != VERSION:
        raise ValueError(
            f"{folder} is a data set of the format version {found['version']!r}, this version of sb3_mpc reads "
            f"{VERSION}: install a newer one, or convert the data again."
        )
    return found


def open_column(folder: Path, name: str, row: np.dtype, entries: dict[str, Any] | None, verify: bool) -> np.ndarray:
    """
    :param folder: data set
    :param name: name of the column
    :param row: what one row must be
    :param entries: what the description says of it
    :param verify: whether to compare the checksum of all data
    :return: the array, mapped into memory
    :raises ValueError: if it is missing, truncated, of another kind, or not what was written
    """
    path = folder / f"{name}.npy"
    if entries is None or not path.is_file():
        raise ValueError(f"{folder} lacks the column {name!r} ({path.name}): copy or convert the data set again.")
    size = path.stat().st_size
    if size < entries["bytes"]:
        raise ValueError(f"{path} is truncated: it has {size:,} of {entries['bytes']:,} bytes, copy it again.")
    if size != entries["bytes"] or sample_of(path) != entries["sample"]:
        raise ValueError(f"{path} has changed since it was written: copy or convert the data set again.")
    if verify and checksum_of(path) != entries["crc32"]:
        raise ValueError(f"{path} has changed since it was written: copy or convert the data set again.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path} is no array of numbers: copy or convert the data set again.") from error
    if array.offset != HEADER or not array.flags.c_contiguous:
        raise ValueError(f"{path} is laid out in another way than `sb3_mpc` writes it: convert the data set again.")
    if array.dtype != row.base or array.shape != (entries["rows"], *row.shape):
        raise ValueError(
            f"{path} does not fit the spaces of {folder / DESCRIPTION}: its rows are {array.dtype}{array.shape[1:]}, "
            f"not {row.base}{row.shape}."
        )
    return np.asarray(array)
