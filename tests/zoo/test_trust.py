"""Run folders and files of strangers: no command executes or imports anything in them without --trust."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
from sb3_mpc.agents.data_files import read_data, write_data
from sb3_mpc.common.files import checksum
from sb3_mpc.zoo.__main__ import main
from sb3_mpc.zoo.checkpoint_files import MANIFEST, MODEL, STATE
from sb3_mpc.zoo.run_folder import plain, plain_arguments, plain_settings, read_yaml
from tests.support.agents import assert_one_clear_sentence
from tests.support.zoo_runs import run, train_arguments

CODE = "__import__('os').mkdir('executed')"
TAG = "!!python/object/apply:os.mkdir ['executed']"
NAME = "Pendulum-v1"


class Bomb:
    """What a pickle may do."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: folder of a run of 40 steps"""
    folder = tmp_path_factory.mktemp("logs")
    run(*(word for word in train_arguments(folder, 40) if not word.startswith("callback:")))
    return folder / "tdmpc2" / f"{NAME}_1"


def yaml_entry(name: str, value: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in ("args.yml", "config.yml"):
            path = folder / NAME / file
            found = {key: entry for key, entry in read_yaml(path).items() if key != name}
            path.write_text(yaml.dump(found) + f"{name}: {value}\n")

    return write


def yaml_file(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in ("args.yml", "config.yml"):
            (folder / NAME / file).write_text(text)

    return write


def arguments(*words: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "train.json"
        start = json.loads(path.read_text())
        path.write_text(json.dumps({**start, "arguments": [*start["arguments"], *words]}))

    return write


def part(name: str, content: bytes) -> Callable[[Path], None]:
    """:return: function that replaces a file of the checkpoints, with a checksum that fits, and removes the agent"""

    def write(folder: Path) -> None:
        (folder / f"{NAME}.safetensors").unlink()
        for checkpoint in (folder / "checkpoints").glob("step_*"):
            (checkpoint / name).write_bytes(content)
            manifest = json.loads((checkpoint / MANIFEST).read_text())
            manifest["sha256"][name] = checksum(checkpoint / name)
            (checkpoint / MANIFEST).write_text(json.dumps(manifest))

    return write


def pickled_array() -> bytes:
    np.savez("bomb.npz", **{"0": np.array([Bomb()], dtype=object)})  # type: ignore[arg-type]
    with zipfile.ZipFile("bomb.npz", "a") as archive:
        archive.writestr("structure.json", json.dumps({"array": "0"}))
    return Path("bomb.npz").read_bytes()


def pickles(folder: Path) -> None:
    """As earlier versions and SB3 wrote them, also where rl_zoo3 looks for them by itself."""
    (folder / f"{NAME}.safetensors").unlink()
    for path in (folder / NAME, Path(NAME)):
        path.mkdir(exist_ok=True)
        (path / "vecnormalize.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in (NAME, "best_model"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for member in ("data", "policy.pth"):
                archive.writestr(member, pickle.dumps(Bomb()))


def evaluations(folder: Path) -> None:
    np.savez(folder / "evaluations.npz", results=np.array([Bomb()], dtype=object), timesteps=[1])


# Each attack, and whether a run can be resumed in spite of it
ATTACKS: dict[str, Callable[[Path], None]] = {
    "tag": yaml_file(f"{TAG}\n"),
    "tag in an entry": yaml_entry("seed", TAG),
    "name of a class": yaml_entry("policy", "!!python/name:os.system"),
    "text that is evaluated": yaml_entry("policy_kwargs", json.dumps(CODE)),
    "another text that is evaluated": yaml_entry("normalize", json.dumps(CODE)),
    "class that is imported": yaml_entry("env_wrapper", "evil.Wrapper"),
    "policy that is imported": yaml_entry("policy", "evil.Policy"),
    "callback that is imported": yaml_entry("callback", "[evil.Callback]"),
    "setting of the command line": arguments("-params", f"seed:{CODE}"),
    "argument of the environment": arguments("--env-kwargs", f"g:{CODE}"),
    "module": arguments("--gym-packages", "evil"),
    "module in one word": arguments("--gym-packages=evil"),
    "settings in Python": arguments("-conf", "evil.py"),
    "abbreviation": arguments("--conf", "evil.py"),
    "agent that is opened": arguments("-i", "bomb.zip"),
    "pickles": pickles,
    "pickled state": part(STATE, pickle.dumps(Bomb())),
    "pickled evaluations": evaluations,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_run_folder_is_executed(
    attack: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil.py").write_text("import os\nos.mkdir('executed')\n")
    folder = shutil.copytree(begun, tmp_path / "run")
    ATTACKS[attack](folder)
    commands = [["plot", "run"], ["evaluate", "run", "--episodes", "1"], ["train", "--resume", "run", "-n", "41"]]
    statuses = []
    for command in commands:
        statuses.append(main(command))
        assert not Path("executed").exists(), command
        if statuses[-1]:
            assert_one_clear_sentence(RuntimeError(capsys.readouterr().err.splitlines()[-1]), "^Error: ", "run")
    harmless = attack in ("setting of the command line", "pickled evaluations", "pickles")
    assert (statuses[2] == 0) == harmless
    assert "evil" not in sys.modules


def test_pickled_array_in_a_checkpoint(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(begun, tmp_path / "run")
    part(MODEL, pickled_array())(folder)
    for command in (["evaluate", "run", "--episodes", "1"], ["train", "--resume", "run", "-n", "41"]):
        assert main(command) == 1
    assert not Path("executed").exists()


def test_state_reaches_no_other_file(begun: Path, tmp_path: Path) -> None:
    """A checkpoint tells how long the logs of its episodes were: of the logs in this folder, and no other file."""
    folder, victim = shutil.copytree(begun, tmp_path / "run"), tmp_path / "victim.monitor.csv"
    victim.write_text("precious\n")
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    state = read_data(checkpoint / STATE)
    state["monitor_files"] = {"../victim.monitor.csv": 0, str(victim): 0, "train.json": 0}
    state["callbacks"] = [dict(folder="elsewhere", n_calls=3)]
    write_data(checkpoint / STATE, state)
    part(STATE, (checkpoint / STATE).read_bytes())(folder)
    assert main(["train", "--resume", str(folder), "-n", "41"]) == 0
    assert victim.read_text() == "precious\n" and json.loads((folder / "train.json").read_text())


def test_files_that_may_run_code_need_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("data", pickle.dumps(Bomb()))
    of = ["--algo", "tdmpc2", "--env", NAME]
    for command in (
        ["evaluate", "a.zip", *of],
        ["record", "a.zip", *of],
        ["publish", "a.zip", *of],
        ["convert", "a.zip", "b.safetensors", "--algo", "tdmpc2"],
        ["train", *of, "-i", "a.zip"],
        ["convert", ".", "new"],
    ):
        assert main(command) == 1
        assert_one_clear_sentence(RuntimeError(capsys.readouterr().err), "may run code", "--trust")
    assert not Path("executed").exists()


def test_options_that_a_file_has_no_use_for(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = begun / f"{NAME}.safetensors"
    for command, words in (
        (["evaluate", str(file), "--best"], ["--best", "leave it out"]),
        (["evaluate", str(file), "--algo", "bmpc"], ["of tdmpc2, not of bmpc"]),
        (["evaluate", str(begun), "--algo", "bmpc"], ["leave out --algo"]),
    ):
        assert main(command) == 1
        assert_one_clear_sentence(RuntimeError(capsys.readouterr().err), *words)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(a=1, b=[1, (2, 'x')])", dict(a=1, b=[1, (2, "x")])),
        ("{'a': -1e-3, 'b': None}", {"a": -1e-3, "b": None}),
        ("True", True),
        (" 'lin_3e-4' ", "lin_3e-4"),
    ],
)
def test_plain_text(text: str, value: Any) -> None:
    assert plain(text) == value


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        "dict(a=f())",
        "dict(**x)",
        "dict([1])",
        "[x for x in ()]",
        "a.b",
        "lambda: 1",
        "f'{1}'",
        "(" * 500,
        "1 or 2",
    ],
)
def test_text_that_is_code(text: str) -> None:
    with pytest.raises(ValueError, match="is no plain data"):
        plain(text)


@pytest.mark.parametrize(
    "text",
    [
        TAG,
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "a: !!python/object/new:os.system [ls]",
        "a: !!python/object:collections.OrderedDict {}",
        "a: !!python/object/apply:collections.OrderedDict [1, 2]",
        "a: &a [*a, *a]",
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
        + "".join(f"{y}: &{y} [{', '.join(['*' + x] * 9)}]\n" for x, y in zip("bcdef", "cdefg", strict=True)),
        "[1, 2]",
        "1: 2",
        "a: b: c",
        "[" * 2_000,
        "",
        "\x00",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_yaml_that_is_no_data(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match="was refused, and nothing in it executed") as error:
        read_yaml(path)
    assert_one_clear_sentence(error.value, "a.yml", "--trust")
    assert [file.name for file in tmp_path.iterdir()] == ["a.yml"]


def test_yaml_that_rl_zoo3_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - train_freq\n    - !!python/tuple [1, step]\n"
        "  - - policy_kwargs\n    - dict(net_arch=[16])\n"
    )
    found = read_yaml(path)
    assert found == dict(train_freq=(1, "step"), policy_kwargs="dict(net_arch=[16])")
    assert plain_settings(found, path)["policy_kwargs"] == dict(net_arch=[16])


def test_arguments_that_are_given_again() -> None:
    path = Path("train.json")
    words = ["--algo", "tdmpc2", "--seed", "-1", "-params", "a:f()", "--env-kwargs", "g:5.0", "--gym-packages", "mine"]
    kept = ["--algo", "tdmpc2", "--seed", "-1", "--env-kwargs", "g:5.0"]
    assert plain_arguments(words, path, ["mine"]) == kept
    with pytest.raises(ValueError, match="begins with --gym-packages, which may run code: .* --trust"):
        plain_arguments(words, path, ["yours"])
    with pytest.raises(ValueError, match="--algo has 2 values"):
        plain_arguments(["--algo", "tdmpc2", "bmpc"], path, [])
