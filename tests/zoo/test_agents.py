"""Trained agents by name: from the package, from folders, from the hub; their cards and conversions."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc import TDMPC2, FacTDMPC, zoo
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.agents.agent_format import read_agent
from sb3_mpc.zoo import agents, card_facts, cards
from sb3_mpc.zoo.__main__ import main
from tests.support.agents import (
    PointEnv,
    assert_one_clear_sentence,
    assert_same_state,
    make_agent,
    observations_of,
    vec,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: a folder with an agent of an environment of Gymnasium, and one of another method"""
    folder = tmp_path_factory.mktemp("agents")
    evaluation = dict(
        episodes=10, mean_return=-150.25, std_return=1.0, network_mean_return=-300.0, network_std_return=2.0
    )
    for algorithm, key in ((TDMPC2, "tdmpc2"), (FacTDMPC, "fac_tdmpc")):
        model = make_agent(algorithm, "Pendulum-v1", seed=1)
        steps = dict(decisions=10_000, frames=10_000)
        save_agent(model, folder / f"{key}-Pendulum-v1", evaluation=evaluation, steps=steps, preset="cpu", commit="abc")
    return folder


# -- The package's own -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trained_agent_swings_the_pole_up() -> None:
    pytest.importorskip("dm_control")
    env = gym.make("dmc/cartpole-swingup-v0")
    model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0", env=env, device="cpu")
    (observation, _), state, rewards = env.reset(seed=0), None, []
    for _ in range(85):
        action, state = model.predict(observation, state=state, deterministic=True)
        observation, reward, *_ = env.step(action)
        rewards.append(float(reward))
    assert sum(rewards[-10:]) > 10  # random actions earn 0.6, the most is 20


def test_what_the_package_has_is_whole_and_named_by_the_rule() -> None:
    assert ("tdmpc2", "dmc/cartpole-swingup-v0") in zoo.available()
    for algo, env_id in zoo.available():
        path = agents.find(algo, env_id)
        assert path.parent == cards.CHECKPOINTS and path.stem == card_facts.agent_name(algo, env_id)
        read_agent(path)


def test_texts_are_those_that_follow_from_the_files() -> None:
    """Otherwise: python -m sb3_mpc.zoo.cards"""
    texts = cards.texts()
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, path
    assert set(cards.CHECKPOINTS.glob("*.md")) < set(texts)
    assert "TDMPC2 | dmc/cartpole-swingup-v0 | 854.9 ± 2.0" in texts[cards.FOLDER / "README.md"]


# -- Elsewhere ---------------------------------------------------------------------------------------------------------


def test_folder_in_place_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load("tdmpc2", "Pendulum-v1", "Pendulum-v1", "cpu", repo_id=str(folder))
    assert type(model) is TDMPC2 and model.get_env() is not None
    monkeypatch.setenv("SB3_MPC_HUB", str(folder))
    assert type(zoo.load("fac_tdmpc", "Pendulum-v1")) is FacTDMPC


def test_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo_id: str, filename: str, revision: str | None, **_: Any) -> str:
        asked.append((repo_id, filename, revision))
        if revision == "gone":
            raise OSError("404 Client Error.\nEntry Not Found")
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    zoo.load("tdmpc2", "Pendulum-v1", repo_id="somebody/agents", revision="main")
    assert asked == [("somebody/agents", "tdmpc2-Pendulum-v1.safetensors", "main")]
    with pytest.raises(ValueError) as caught:
        zoo.load("tdmpc2", "Pendulum-v1", repo_id="somebody/agents", revision="gone")
    assert_one_clear_sentence(caught.value, "could not be downloaded from somebody/agents .* 404 Client Error. Entry")


def test_unknown_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SB3_MPC_HUB", raising=False)
    for arguments, word in (
        (dict(algo="tdmcp2", env_id="Pendulum-v1"), "no method 'tdmcp2': nearest are tdmpc2"),
        (dict(algo="tdmpc2", env_id="dmc/cartpole-swing-v0"), "nearest are tdmpc2 for dmc/cartpole-swingup-v0"),
        (dict(algo="tdmpc2", env_id="Pendulum-v0", repo_id=str(folder)), "nearest are tdmpc2-Pendulum-v1"),
        (dict(algo="tdmpc2", env_id="../../../etc/passwd", repo_id=str(folder)), "has no tdmpc2-..-..-..-etc-passwd"),
    ):
        with pytest.raises(ValueError) as caught:
            zoo.load(**arguments)
        assert_one_clear_sentence(caught.value, word)


def test_file_under_a_wrong_name(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "fac_tdmpc-Pendulum-v1.safetensors", tmp_path / "tdmpc2-Pendulum-v1.safetensors")
    with pytest.raises(ValueError, match="holds a FacTDMPC in spite of its name"):
        zoo.load("tdmpc2", "Pendulum-v1", repo_id=str(tmp_path))


def test_push(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = tmp_path / "hub"

    class Hub:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            assert (repo_id, private, exist_ok) == ("me/agents", True, True)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, hub)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    path = folder / "tdmpc2-Pendulum-v1.safetensors"
    assert agents.push(path, "me/agents", private=True) == "https://hub/me/agents"
    assert sorted(file.name for file in hub.iterdir()) == ["README.md", path.name]
    assert type(zoo.load("tdmpc2", "Pendulum-v1", repo_id=str(hub))) is TDMPC2
    about = huggingface_hub.ModelCard.load(hub / "README.md")
    assert about.data.library_name == "sb3-mpc" and about.data.eval_results[0].metric_value == -150.25
    assert about.text.lstrip().startswith("# TDMPC2 on Pendulum-v1")
    path = save_agent(make_agent(TDMPC2, PointEnv()), tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not name its environment"):
        agents.push(path, "me/agents")


# -- Cards -------------------------------------------------------------------------------------------------------------


def test_card_text(folder: Path, tmp_path: Path) -> None:
    card = read_card(folder / "tdmpc2-Pendulum-v1")
    text = cards.card_text(card, ["video.gif"])
    for part in (
        "# TDMPC2 on Pendulum-v1",
        "| Environment | `Pendulum-v1`, episodes of 200 decisions |",
        "10,000 decisions, 10,000 simulator frames, seed 1",
        "| Return of the planner | -150.2 ± 1.0 over 10 episodes |",
        "| Return of the network policy | -300.0 ± 2.0 over 10 episodes |",
        "![video.gif](video.gif)",
        'zoo.load("tdmpc2", "Pendulum-v1")',
        "python -m sb3_mpc.zoo train --algo tdmpc2 --env Pendulum-v1 --preset cpu --seed 1 -n 10000",
        f"torch {card['versions']['torch']}",
        "git checkout abc\n",
        "    horizon=2,\n",
    ):
        assert part in text, part
    bare = read_card(save_agent(make_agent(TDMPC2, PointEnv()), tmp_path / "bare"))
    assert "an environment that its file does not name" in cards.card_text({**bare, "steps": None, "commit": None})


def test_published_returns_at_the_same_frames() -> None:
    card: dict[str, Any] = dict(algorithm="tdmpc2", environment=dict(id="dmc/cartpole-swingup-v0"), evaluation=None)
    returns = {n: card_facts.published_result({**card, "steps": dict(frames=n)}) for n in (50_000, 100_000, 10**9)}
    assert returns == {50_000: "839.4 (at 100,000)", 100_000: "839.4", 10**9: "-"}
    assert card_facts.published_result({**card, "steps": None}) == "-"


def test_success_is_beside_published_success(folder: Path, tmp_path: Path) -> None:
    """Where an environment has successes, they are what was published."""
    evaluation = dict(episodes=10, mean_return=1629.9, std_return=319.2, success=0.9, network_mean_return=1545.0)
    model = load_agent(folder / "tdmpc2-Pendulum-v1.safetensors")
    save_agent(model, tmp_path / "agent", evaluation=evaluation, steps=dict(decisions=50_000, frames=100_000))
    environment = dict(id="metaworld/push-v3", kwargs={}, max_episode_steps=100)
    card = {**read_card(tmp_path / "agent.safetensors"), "environment": environment}
    assert card_facts.returns_of(card) == ("1629.9 ± 319.2, success 90 %", "1545.0")
    assert card_facts.published_result(card) == "success 63 %"
    text = cards.card_text(card)
    assert "| Return of the planner | 1629.9 ± 319.2, success 90 % over 10 episodes |" in text
    assert "| Published at these frames | success 63 % |" in text


# -- Conversion --------------------------------------------------------------------------------------------------------


def test_conversion_there_and_back(algorithm: Any, tmp_path: Path) -> None:
    own: dict[str, Any] = dict(distill_steps=3) if algorithm is FacTDMPC else {}
    model = make_agent(algorithm, vec(lambda: PointEnv(4, terminate=True)), **own).learn(20)
    key = next(key for key, known in sb3_mpc.ALGORITHMS.items() if known is algorithm)
    model.save(tmp_path / "a.zip")
    agents.convert(tmp_path / "a.zip", tmp_path / "b.safetensors", key, "Pendulum-v1")
    agents.convert(tmp_path / "b.safetensors", tmp_path / "c.zip")
    observations = observations_of(PointEnv(), 3)
    expected = model.predict(observations, deterministic=True)
    for loaded in (load_agent(tmp_path / "b"), algorithm.load(tmp_path / "c.zip", env=PointEnv())):
        assert_same_state(loaded.predict(observations, deterministic=True), expected)
    loaded.learn(10, reset_num_timesteps=False)
    assert read_card(tmp_path / "b")["environment"]["id"] == "Pendulum-v1"


def test_what_cannot_be_converted(folder: Path, tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import VecNormalize

    (tmp_path / "a.zip").touch()
    normalized = make_agent(TDMPC2, VecNormalize(vec(PointEnv))).learn(12)
    path = save_agent(normalized, tmp_path / "normalized")
    for source, target, word in (
        (tmp_path / "a.zip", tmp_path / "b.safetensors", "give algo, one of tdmpc2"),
        (tmp_path / "a.zip", tmp_path / "b.zip", "one is to end in .zip, the other in .safetensors"),
        (path, tmp_path / "b.zip", "trained under VecNormalize"),
    ):
        with pytest.raises(ValueError) as caught:
            agents.convert(source, target)
        assert_one_clear_sentence(caught.value, word)
    assert not (tmp_path / "b.zip").exists()


# -- Commands ----------------------------------------------------------------------------------------------------------


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_agent(TDMPC2, "Pendulum-v1").save(tmp_path / "a.zip")
    for command in (
        f"list --folder {folder}",
        f"load-from-hub --algo tdmpc2 --env Pendulum-v1 --repo-id {folder} --folder {tmp_path}",
        f"convert {tmp_path}/a.zip {tmp_path}/b.safetensors --algo tdmpc2 --env Pendulum-v1 --trust",
    ):
        assert main(command.split()) == 0
    output = capsys.readouterr().out
    assert "fac_tdmpc  Pendulum-v1  10,000  -150.2 ± 1.0  fac_tdmpc-Pendulum-v1" in output.replace("   ", "  ")
    assert f"Wrote {tmp_path}/tdmpc2-Pendulum-v1.safetensors, a TDMPC2 for Pendulum-v1" in output
    assert json.dumps(read_card(tmp_path / "b")["environment"]["id"]) == '"Pendulum-v1"'
    action, _ = load_agent(tmp_path / "b").predict(np.zeros(3, np.float32))
    assert action.shape == (1,)
    assert main(["load-from-hub", "--algo", "sac", "--env", "Pendulum-v1"]) == 1
    assert "There is no method 'sac'" in capsys.readouterr().err
