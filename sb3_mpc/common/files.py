"""Atomic writing of files, locks, and clear errors for files that cannot be read."""

import contextlib
import hashlib
import io
import os
import pathlib
import pickle
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

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
    # A name of its own for each writer, made exclusively: neither threads nor planted links get in the way
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(8)}.tmp{final.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        with contextlib.suppress(OSError):  # those of the file that is replaced
            temporary.chmod(final.stat().st_mode & 0o777)
        yield temporary
        if processes.rank() > 0:
            return
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
        sync_folder(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: pathlib.Path) -> None:
    """
    Make the names in a folder durable: without it a crash of the machine may undo a rename.

    :param folder: the folder; nothing happens on systems that cannot open folders
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: pathlib.Path, text: str) -> None:
    """
    :param path: file that is replaced only by a complete one
    :param text: its content
    """
    with atomic_target(path, path.suffix) as target:
        pathlib.Path(str(target)).write_text(text, encoding="utf-8")


def checksum(path: pathlib.Path) -> str:
    """
    :param path: file
    :return: SHA-256 of its content
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def holding(path: pathlib.Path) -> Iterator[bool]:
    """
    Hold a file within the context, if nobody else does.

    :param path: the file, which is made and stays; it is free again at the latest when this process is dead
    :return: whether it is held by this process
    """
    import fcntl  # not on Windows

    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


_held: dict[pathlib.Path, IO[str]] = {}  # files that this process holds


def hold(path: pathlib.Path) -> bool:
    """
    Hold a file until :func:`release`, or until this process is dead. To hold it twice is to hold it once.

    :param path: the file, which is made and stays
    :return: whether this process holds it, and no other one
    """
    import fcntl  # not on Windows

    path = path.resolve()
    if path in _held:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115  # open means held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _held[path] = file
    return True


def release(path: pathlib.Path) -> None:
    """
    :param path: file that is no longer held; nothing happens if it was not
    """
    file = _held.pop(path.resolve(), None)
    if file is not None:
        file.close()


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
