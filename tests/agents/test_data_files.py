"""Nested data in one file: what is written is what is read, and what is no data is neither written nor read."""

import collections
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule

from sb3_mpc.agents.data_files import STRUCTURE, is_data, read_data, write_data
from tests.support.agents import assert_one_clear_sentence, assert_same_state


def test_what_is_written_is_read(tmp_path: Path) -> None:
    statistics = RunningMeanStd(shape=(2,))
    statistics.update(np.random.default_rng(0).normal(size=(5, 2)))
    value: dict[Any, Any] = dict(
        plain=[None, True, 3, -1e-300, float("inf"), "ü", {}, (), ((1,), [2])],
        arrays=[np.arange(6).reshape(2, 3), np.float32(0.5), np.zeros((0, 2)), np.array(["a"]), np.array(True)],
        tensors=[th.randn(2, 1), th.tensor(3), th.ones(2, dtype=th.bfloat16)],
        keys={1: 2, (1, "x"): 3},
        queue=collections.deque([{"r": 1.0}], 5),
        infos=np.array([[None], [{"a": np.ones(1)}]], dtype=object),
    )
    path = tmp_path / "a.npz"
    write_data(path, value)
    assert_same_state(read_data(path) | {"infos": 0, "queue": 0}, value | {"infos": 0, "queue": 0})
    read = read_data(path)
    assert read["queue"] == value["queue"] and read["queue"].maxlen == 5
    assert read["infos"].shape == (2, 1) and read["infos"][1, 0]["a"] == 1
    generator = np.random.default_rng(3)
    objects: list[Any] = [statistics, LinearSchedule(1.0, 0.0, 1.0), generator, th.optim.Adam, spaces.Discrete(3)]
    objects += [TrainFreq(2, TrainFrequencyUnit.EPISODE), th.device("cpu"), th.nn.Parameter(th.ones(1))]
    write_data(path, objects)
    read = read_data(path)
    assert (read[0].mean == statistics.mean).all() and read[0].count == statistics.count
    assert read[1](0.5) == 0.5 and read[2].random() == generator.random() and read[3] is th.optim.Adam
    assert read[4:7] == objects[4:7] and isinstance(read[7], th.nn.Parameter)


@pytest.mark.parametrize(
    "value",
    [lambda: 1, print, object(), Path("a"), b"bytes", 1j, pickle, type, int],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_data_is_not_written(value: Any, tmp_path: Path) -> None:
    assert not is_data([value])
    with pytest.raises(ValueError) as error:
        write_data(tmp_path / "a.npz", {"here": [value]})
    assert_one_clear_sentence(error.value, "/here/0 is .* which is no data")
    assert not any(tmp_path.iterdir())


STRUCTURES: list[Any] = [
    {"class": "os.system"},
    {"class": "posix.system"},
    {"object": ["builtins.object", {"dict": []}]},
    {"object": ["torch.optim.adam.Adam", {"dict": []}]},
    {"enum": ["stable_baselines3.common.type_aliases.TrainFrequencyUnit", "__class__"]},
    {"named": ["os.system", ["ls"]]},
    {"read_class": 1},
    {"": 1},
    {"refuse": 1},
    {"array": "1"},
    {"array": "../0"},
    {"array": 0, "more": 1},
    {"objects": [[2**40], []]},
    {"objects": [[1], [[5, 1]]]},
    {"dict": 3},
    {"dict": [[{"dict": []}, 1]]},
    {"deque": [[1], "x"]},
    {"generator": {"dict": [["bit_generator", "os"]]}},
    {"space": {"type": "Box", "shape": [2**40], "low": 0, "high": 1}},
    {"device": "nowhere"},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: json.dumps(structure)[:40])
def test_what_is_no_data_is_not_read(structure: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_data(path, np.ones(3))
    with zipfile.ZipFile(path) as archive:
        array = archive.read("0.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", array)
        archive.writestr(STRUCTURE, json.dumps(structure))
    with pytest.raises(ValueError) as error:
        read_data(path)
    assert_one_clear_sentence(error.value, "a.npz is not a complete file of data")


def test_damage_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_data(path, dict(a=np.arange(100.0), b=[1, 2]))
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for content in (b"", b"PK", pickle.dumps(1), data[:-1], data[: len(data) // 2], data[100:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a complete file of data"):
            read_data(path)
    found = 0
    for at in rng.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[at] ^= 1 << int(at % 8)
        path.write_bytes(broken)
        try:
            read_data(path)
        except ValueError:
            found += 1
    assert found > 30  # the rest are bits that mean nothing, such as times; checkpoints have checksums beside that
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(STRUCTURE, "0" * 10**6)
    with pytest.raises(ValueError, match="is compressed"):
        read_data(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(STRUCTURE, "[" * 10**5)
    with pytest.raises(ValueError, match="not a complete file of data"):
        read_data(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_data(tmp_path / "b.npz")


def test_learning_rates_of_presets_are_data(tmp_path: Path) -> None:
    """Those of rl_zoo3, without which a run of most presets could not be resumed."""
    utils = pytest.importorskip("rl_zoo3.utils", reason="needs the extra zoo")
    write_data(tmp_path / "a.npz", utils.SimpleLinearSchedule(0.002))
    read = read_data(tmp_path / "a.npz")
    assert type(read) is utils.SimpleLinearSchedule and read(0.5) == 0.001


def test_training_of_an_agent_without_a_planner_is_data(tmp_path: Path) -> None:
    from sb3_mpc.common.planning.prior import PriorPlanner

    write_data(tmp_path / "a.npz", dict(planner_class=PriorPlanner))
    assert read_data(tmp_path / "a.npz") == dict(planner_class=PriorPlanner)
