"""Atomic writing of files, and clear errors for files that cannot be read."""

import io
import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_mpc.common import processes

# Errors that reading a damaged zip file or pickle may raise
DAMAGE = (zipfile.BadZipFile, EOFError, pickle.UnpicklingError, UnicodeDecodeError, KeyError, IndexError, zlib.error)


def complete_name(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """
    :param path: path as the user gives it
    :param suffix: appended to a path that has none, as SB3 does
    :return: the path of the file
    """
    return pathlib.Path(path) if pathlib.Path(path).suffix else pathlib.Path(f"{path}.{suffix}")


@contextmanager
def atomic_target(
    path: str | pathlib.Path | io.BufferedIOBase, suffix: str
) -> Iterator[str | pathlib.Path | io.BufferedIOBase]:
    """
    Write a file atomically: into a temporary file in the same folder, which is renamed once it is complete and on disk.
    If several processes train together, the file of the first one is kept.

    A failed write leaves an existing file of that name unchanged. Open files are passed through.

    :param path: path of the file; missing folders are created
    :param suffix: appended to a path that has none, as SB3 does
    :return: context manager that yields the file to write to
    """
    if not isinstance(path, (str, pathlib.Path)):
        yield path
        return
    final = pathlib.Path(os.path.realpath(complete_name(path, suffix)))  # write to the target of a symbolic link
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp.{suffix}")
    try:
        yield temporary
        if processes.rank() > 0:
            return
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_damage(path: object, kind: str) -> Iterator[None]:
    """
    :param path: file that is read within the context
    :param kind: what it should be, for the message
    :raises ValueError: in place of the errors that readers raise for a damaged file or another kind of file
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (ModuleNotFoundError, AttributeError) as error:  # pickles name classes by the module they were in
        if "sb3_mpc." not in str(error):
            raise
        raise ValueError(
            f"{path} was written by an earlier version of sb3_mpc, whose modules had other names: convert it there to "
            "an agent file (python -m sb3_mpc.zoo convert), which this version loads."
        ) from error
    except DAMAGE as error:
        raise ValueError(_damaged(path, kind)) from error
    except ValueError as error:
        if "wasn't a zip-file" not in str(error):
            raise
        raise ValueError(_damaged(path, kind)) from error
    except (RuntimeError, AssertionError) as error:  # of torch's zip reader, and of SB3 for a zip file without data
        if "PytorchStreamReader" not in str(error) and "found in the saved file" not in str(error):
            raise
        raise ValueError(_damaged(path, kind)) from error


def _damaged(path: object, kind: str) -> str:
    return f"{path} is not a complete {kind}: it is truncated, damaged or another kind of file, use an earlier one."
