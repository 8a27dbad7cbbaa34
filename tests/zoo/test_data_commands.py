"""Commands for data sets: `collect`, `data`, `pretrain` and `train --save-data`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
import h5py
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import TDMPC2
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.agents.training_files import load_training, save_buffer
from sb3_mpc.offline import Dataset, merge
from sb3_mpc.zoo.__main__ import main
from sb3_mpc.zoo.data import play
from sb3_mpc.zoo.pretrain import setting
from tests.support.agents import PointEnv, SpaceEnv, assert_same_state, make_agent, two_envs, vec
from tests.support.zoo_runs import TINY, run, train_arguments


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: folder with a data set of random actions, `random`"""
    folder = tmp_path_factory.mktemp("data")
    run("collect", "--env", "Pendulum-v1", "-n", 410, "--n-envs", 2, "--output", folder / "random")
    return folder


def test_collect_random_actions(collected: Path) -> None:
    data = Dataset.load(collected / "random", verify=True)
    assert data.rows == 410 and sorted(data.episodes["length"]) == [5, 5, 200, 200]
    assert data.episodes["truncated"].sum() == 2 and data.tasks == [("Pendulum-v1", 1, 200)]
    assert data.source == "Pendulum-v1: random actions" and np.abs(data.columns["actions"]).max() > 0.9
    before, behind = data.episode(0)["observations"][:2]
    assert np.linalg.norm(before) > 0 and not np.array_equal(before, behind)


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_play_records_what_happens(kind: str) -> None:
    """In the order of time: final observations, terminations, raw numbers under VecNormalize."""
    if kind == "dict":
        space = PointEnv().observation_space
        from gymnasium import spaces

        env = vec(lambda: SpaceEnv(spaces.Dict(a=space, b=spaces.Discrete(3)), PointEnv().action_space, 4))
        episodes = list(play(env, None, 10, 0.0, False, np.random.default_rng(0)))
        assert [len(episode["rewards"]) for episode in episodes] == [4, 4, 2]
        assert episodes[0]["observations"]["a"].shape == (5, 3) and episodes[0]["observations"]["b"].shape == (5,)
        return
    env = VecNormalize(two_envs(terminate=True))
    model = make_agent(TDMPC2, env)
    episodes = list(play(env, model, 17, 0.5, False, np.random.default_rng(0)))
    assert sum(len(episode["rewards"]) for episode in episodes) == 17
    ends = {(len(e["rewards"]), e["terminated"], e["truncated"]) for e in episodes}
    assert ends == {(3, True, False), (5, False, True), (2, False, False), (4, False, False)}
    for episode in episodes:
        seen, length = episode["observations"], {True: 3}.get(episode["terminated"], 5)
        steps = seen[:, 2] * (3 if length == 3 else 5)
        if episode["terminated"] or episode["truncated"]:
            np.testing.assert_allclose(steps, np.arange(len(seen)), atol=1e-4)
            moved = seen[:-1, :2] + 0.1 * episode["actions"]
            np.testing.assert_allclose(seen[1:, :2], moved, atol=1e-3)
            np.testing.assert_allclose(episode["rewards"], -np.abs(moved).sum(1), atol=1e-3)


def test_collect_by_an_agent(tmp_path: Path) -> None:
    model = make_agent(TDMPC2, make_vec_env("Pendulum-v1"), seed=0)
    save_agent(model, tmp_path / "agent", environment="Pendulum-v1")
    file = tmp_path / "agent.safetensors"
    run("collect", file, "-n", 6, "--deterministic", "--device", "cpu", "--output", tmp_path / "data")
    data = Dataset.load(tmp_path / "data")
    expected = model.predict(data.episode(0)["observations"][0], deterministic=True)[0] / 2
    np.testing.assert_allclose(data.episode(0)["actions"][0], expected, atol=1e-5)
    run("collect", file, "-n", 6, "--random", 1, "--actor", "--device", "cpu", "--output", tmp_path / "random")
    assert "100% random" in Dataset.load(tmp_path / "random").source


def test_describe_split_and_merge(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("data", "describe", collected / "random", "--verify", "--picture", tmp_path / "returns.png")
    assert "410 transitions in 4 episodes" in capsys.readouterr().out and (tmp_path / "returns.png").exists()
    halves = (tmp_path / "one", tmp_path / "two")
    run("data", "split", collected / "random", "--fraction", 0.5, "--output", *halves)
    run("data", "merge", *halves, "--output", tmp_path / "both")
    assert Dataset.load(tmp_path / "both").rows == 410
    run("data", "merge", *halves, "--tasks", "first", "second", "--output", tmp_path / "tasks")
    assert [task.name for task in Dataset.load(tmp_path / "tasks").tasks] == ["first", "second"]
    run("data", "convert", tmp_path / "tasks", "--tasks", "second", "--output", tmp_path / "second")
    assert Dataset.load(tmp_path / "second").rows == Dataset.load(tmp_path / "two").rows


def test_convert_arrays_and_buffers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = dict(actions=rng.uniform(-1, 1, (5, 1)), rewards=np.ones(5), terminals=np.eye(5)[2])
    for name in ("observations", "next_observations"):
        arrays[name] = rng.normal(size=(5, 2)).astype(np.float32)
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
    run("data", "convert", tmp_path / "d4rl.hdf5", "--tasks", "hop", "--output", tmp_path / "d4rl")
    data = Dataset.load(tmp_path / "d4rl")
    assert data.episodes["terminated"].tolist() == [True, False] and data.tasks[0].name == "hop"
    np.savez(
        tmp_path / "arrays.npz",
        **{"observations.x": arrays["observations"], "actions": np.zeros((5, 1))},
        rewards=np.ones(5),
    )
    run("data", "convert", tmp_path / "arrays.npz", "--output", tmp_path / "arrays")
    assert Dataset.load(tmp_path / "arrays").rows == 4
    model = make_agent(TDMPC2, PointEnv(4)).learn(10)
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="may run code.*--trust"):
        run("data", "convert", tmp_path / "buffer.pkl", "--output", tmp_path / "buffer")
    run("data", "convert", tmp_path / "buffer.pkl", "--trust", "--output", tmp_path / "buffer")
    save_buffer(model, tmp_path / "replay_buffer.npz")
    run("data", "convert", tmp_path / "replay_buffer.npz", "--output", tmp_path / "same")
    first, second = (Dataset.load(tmp_path / name) for name in ("buffer", "same"))
    assert first.rows == 10
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, second.columns[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("collect -n 5 --output x", "Give an agent, or --env"),
        ("collect --env Pendulum-v1 -n 5 --random 0.5 --output x", "all actions are random"),
        ("collect --env Pendulum-v1 -n 5 --random 2 --output x", "--random=2.0 is out of range"),
        ("pretrain -n 5", "Give --data DIR"),
        ("pretrain --data nowhere", "nowhere is no data set"),
        ("pretrain --resume nowhere", "no pretrain.json in nowhere"),
        ("data describe nowhere", "nowhere is no data set"),
        ("data convert nowhere.npz --output x", "nowhere.npz"),
    ],
)
def test_mistakes(arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 1
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_pretrain(collected: Path, tmp_path: Path) -> None:
    """Killed after its checkpoint and resumed, the run ends with the same agent."""
    arguments = ("pretrain", "--data", collected / "random", "-n", 6, "--checkpoint-freq", 4, "--device", "cpu")
    more = ("--env", "Pendulum-v1", "--eval-freq", 3, "--eval-episodes", 1, "-f", tmp_path, "-params", *TINY)
    run(*arguments, *more)
    folder = tmp_path / "tdmpc2" / "random_1"
    assert read_card(folder / "agent.safetensors")["environment"]["id"] == "Pendulum-v1"
    whole = load_agent(folder / "agent.safetensors", device="cpu")
    results = np.load(folder / "evaluations.npz")
    assert results["timesteps"].tolist() == [3, 6] and (folder / "best_model.safetensors").exists()
    assert not list(folder.glob(".*"))
    assert "offline/value_of_data" in (folder / "progress.csv").read_text()
    settings = json.loads((folder / "pretrain.json").read_text())
    assert settings["gradient_steps"] == 6 and settings["seed"] == 0

    killed = (*arguments[:4], 5, *arguments[5:])
    run(*killed, *more)
    folder = tmp_path / "tdmpc2" / "random_2"
    (folder / "pretrain.json").write_text(json.dumps(settings))  # as if it had been six from the start
    model = load_training(folder / "checkpoint.npz", TDMPC2, Dataset.load(collected / "random").as_env())
    assert model.num_timesteps == 5
    run("pretrain", "--resume", folder, "--device", "cpu")
    resumed = load_agent(folder / "agent.safetensors", device="cpu")
    assert_same_state(resumed.policy.state_dict(), whole.policy.state_dict())
    again = np.load(folder / "evaluations.npz")
    assert_same_state(dict(again), dict(results))


def test_pretrain_of_several_tasks(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent knows its tasks by the names that the data have for them."""
    data, names = Dataset.load(collected / "random"), ["Pendulum-v1", "another"]
    path = merge([data, data], tmp_path / "tasks", names).path
    arguments = ("pretrain", "--data", path, "-n", 2, "--device", "cpu", "-f", tmp_path, "-params", *TINY)
    assert main([*map(str, arguments), "--env", "Pendulum-v1"]) == 1
    assert "has several tasks: leave out --env" in capsys.readouterr().err
    run(*arguments)
    file = tmp_path / "tdmpc2" / "tasks_1" / "agent.safetensors"
    model: Any = load_agent(file, device="cpu")
    assert model.policy.task_names == names and read_card(file)["steps"] is None
    assert read_card(save_agent(model, tmp_path / "again"))["steps"] is None  # updates are no decisions
    assert main(["evaluate", str(file)]) == 1
    assert "give those to act in by --tasks" in capsys.readouterr().err


def test_settings_of_pretrain(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Literals, and the `dict(...)` of presets; what is wrong leaves no folder behind, and nothing is executed."""
    assert setting("batch_size:8") == dict(batch_size=8)
    assert setting("policy_kwargs:dict(num_q=3, hidden=[8])") == dict(policy_kwargs=dict(num_q=3, hidden=[8]))
    for wrong in ("policy_kwargs:dict(num_q=open('x'))", "batch_size:exit()", "policy_kwargs:3", "tau:dict(3)"):
        arguments = ("pretrain", "--data", collected / "random", "-n", 2, "-f", tmp_path / "logs", "-params", wrong)
        assert main([*map(str, arguments)]) == 1
        assert f"-params {wrong}" in capsys.readouterr().err
    for wrong in (["--env", "MountainCarContinuous-v0"], ["--preset", "none"]):
        arguments = ("pretrain", "--data", collected / "random", "-n", 2, "-f", tmp_path / "logs", *wrong)
        assert main([*map(str, arguments)]) == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_train_saves_its_data(tmp_path: Path) -> None:
    run(*train_arguments(tmp_path, 40, "--save-data"))
    data = Dataset.load(tmp_path / "tdmpc2" / "Pendulum-v1_1" / "data")
    assert data.rows == 40 and data.tasks == [("Pendulum-v1", 1, 20)]
