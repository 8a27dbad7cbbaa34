"""Files that several threads or processes want at once, and links that somebody has planted."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from sb3_mpc import TDMPC2
from sb3_mpc.agents import save_agent
from sb3_mpc.agents.agent_format import read_agent, write_agent
from sb3_mpc.common.files import atomic_target, checksum, hold, holding, release, write_text
from tests.support.agents import PointEnv, make_agent


def test_threads_that_save_to_one_path(tmp_path: Path) -> None:
    """Every save succeeds, and every read finds a whole file."""
    errors: list[Exception] = []
    path, done = save_agent(make_agent(TDMPC2, PointEnv()), tmp_path / "agent.safetensors"), threading.Event()
    card, tensors = read_agent(path)

    def save() -> None:
        try:
            for _ in range(6):
                write_agent(path, card, tensors)
        except Exception as error:
            errors.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                read_agent(path)
        except Exception as error:
            errors.append(error)

    savers, reader = [threading.Thread(target=save) for _ in range(4)], threading.Thread(target=read)
    for thread in (*savers, reader):
        thread.start()
    for thread in savers:
        thread.join()
    done.set()
    reader.join()
    assert not errors and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".a.json.guessed.tmp.json").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.json", "{}")
    assert victim.read_text() == "precious" and not (tmp_path / "a.json").exists()


def test_permissions_are_the_usual_ones_or_those_of_before(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "1")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
    (tmp_path / "a.txt").chmod(0o600)
    write_text(tmp_path / "a.txt", "2")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_target(tmp_path / "a.txt", "txt") as target:
        Path(str(target)).write_text("half")
        raise ZeroDivisionError
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]
    assert checksum(tmp_path / "a.txt") == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "lock"
    assert hold(path) and hold(path)  # twice by one process is once
    with holding(path) as free:
        assert not free
    release(path)
    release(path)
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not hold(path)
    assert hold(path)
    release(path)
    assert os.access(path, os.R_OK)
