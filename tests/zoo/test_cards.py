"""Every card says what its agent file says, and what it calls reproduction is complete."""

import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc.agents.agent_files import read_card, save_agent
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.envs import SUITES
from sb3_mpc.zoo import card_facts, cards, gallery
from sb3_mpc.zoo.presets import load_preset
from tests.support.agents import make_agent

ALL = sorted(cards.CHECKPOINTS.glob("*.safetensors"))
SEVERAL = [path for path in ALL if card_facts.scores_of(read_card(path))]  # agents of several tasks
FILES = [path for path in ALL if path not in SEVERAL]


def block(text: str, heading: str, language: str = "") -> str:
    """:return: the code under a heading"""
    found = re.search(rf"^## {heading}\n.*?^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_card_agrees_with_its_file(path: Path) -> None:
    card, text = read_card(path), path.with_suffix(".md").read_text(encoding="utf-8")
    facts = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    evaluation, steps = card["evaluation"], card["steps"]
    assert facts["Training"] == (
        f"{steps['decisions']:,} decisions, {steps['frames']:,} simulator frames, seed {card['seed']}"
    )
    for name, prefix in (("planner", ""), ("network policy", "network_")):
        mean, std = (evaluation[f"{prefix}{key}_return"] for key in ("mean", "std"))
        success = evaluation.get(f"{prefix}success")
        words = f"{mean:.1f} ± {std:.1f}" + ("" if success is None else f", success {100 * success:.0f} %")
        assert facts[f"Return of the {name}"] == f"{words} over {evaluation['episodes']} episodes"
    check_commands(card, text)


def check_commands(card: dict[str, Any], text: str) -> None:
    """The commands to reproduce an agent are those of its file."""
    facts = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    checkout, *commands = block(text, "Reproduce").splitlines()
    assert checkout == f"git checkout {card['commit']}" and facts["Commit"] == card["commit"]
    assert "\n".join(commands) == card["command"]
    assert all(command.startswith("python -m sb3_mpc.zoo") for command in commands)


@pytest.mark.parametrize("path", SEVERAL, ids=lambda path: path.stem)
def test_agent_of_several_tasks(path: Path) -> None:
    """Its card agrees with the file, and its example makes environments in which it acts."""
    pytest.importorskip("dm_control")
    card, text = read_card(path), path.with_suffix(".md").read_text(encoding="utf-8")
    check_commands(card, text)
    for task, score in card_facts.scores_of(card).items():
        assert f"{task} {score:.1f}" in text
    names: dict[str, Any] = {}
    exec(block(text, "Use", "python"), names)
    model, env = names["model"], names["env"]
    assert model.policy.task_names == list(card_facts.scores_of(card))
    assert model.num_timesteps == card["steps"]["decisions"]
    assert env.step(model.predict(env.reset())[0])[1].shape == (len(model.policy.task_names),)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arguments_of_a_card_make_the_agent(path: Path, tmp_path: Path) -> None:
    """The call runs today, and the agent that it makes has the arguments of the file."""
    card, text = read_card(path), path.with_suffix(".md").read_text(encoding="utf-8")
    suite, _, of_suite = card["environment"]["id"].partition("/")
    pytest.importorskip(SUITES[suite].package if of_suite else "mujoco")
    classes = (WorldModel, MPPIPlanner, ImprovedPlanner, th.optim.Adam)
    names = {cls.__name__: cls for cls in (*sb3_mpc.ALGORITHMS.values(), *classes)}
    names |= dict(LinearSchedule=LinearSchedule, env=gym.make(card["environment"]["id"]))
    model = eval(block(text, "Arguments", "python"), names)
    made = read_card(save_agent(model, tmp_path / "agent"))
    for name in made["arguments"].keys() - card["arguments"].keys():  # newer than the file: as if it was not there
        assert made["arguments"].pop(name) == inspect.signature(type(model)).parameters[name].default
    for key in ("algorithm", "policy", "arguments", "seed", "environment"):
        assert made[key] == card[key], key
    assert model.lr_schedule(0.0) == card.get("final_learning_rate", card["arguments"]["learning_rate"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_card_says_whether_its_preset_has_changed(path: Path) -> None:
    card, text = read_card(path), path.with_suffix(".md").read_text(encoding="utf-8")
    if card["preset"] is None:  # all of its arguments were given
        assert "other values today" not in text
        return
    today = load_preset(card["algorithm"], card["environment"]["id"], card["preset"])
    rate = LinearSchedule(card["arguments"]["learning_rate"], card.get("final_learning_rate", 1.0), 1.0)
    same = str(today.get("learning_rate", card["arguments"]["learning_rate"])) in (str(rate), str(rate.start))
    same &= today["policy_kwargs"].items() <= card["arguments"]["policy_kwargs"].items()
    for name in today.keys() & card["arguments"].keys() - {"learning_rate", "policy_kwargs", "distill_steps"}:
        if today[name] != card["arguments"][name]:
            same = False
            assert f"`{name}` was `{card['arguments'][name]}` and is `{today[name]}`" in text
    assert (f"The preset `{card['preset']}` has other values today" in text) is not same


def test_preset_that_is_unknown_and_code_that_was_changed(tmp_path: Path) -> None:
    path = save_agent(make_agent(sb3_mpc.TDMPC2, "Pendulum-v1"), tmp_path / "agent", preset="mine", commit="abc-dirty")
    card: dict[str, Any] = {**read_card(path), "steps": dict(decisions=10), "final_learning_rate": 0.0}
    text = cards.card_text(card)
    assert "There is no preset `mine` today." in text and "git checkout abc\n" in text
    assert "to which changes had been made" in text and "LinearSchedule(0.0003, 0.0, 1.0)" in text
    assert "git checkout" not in cards.card_text({**card, "commit": None})


def test_text_of_strangers_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in a card ends a block of code, a row or a page, and no command is other than it looks."""
    card = read_card(FILES[0])
    card |= dict(
        policy="`|x",
        preset="a`b; touch executed",
        note="<script>alert(1)</script> [x](http://x) ```",
        command="python -m sb3_mpc.zoo train --algo tdmpc2; touch executed ```",
        versions={"<b>": "|"},
    )
    text = cards.card_text(card)
    assert "<script>" not in text and "<b>" not in text and "[x](" not in text and "\n```\nimport" not in text
    assert "train --algo 'tdmpc2;' touch executed '```'\n````" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert card_facts.training_command({**card, "command": "rm -rf ~"}) is None
    card["arguments"] = {**card["arguments"], "policy_kwargs": {"x": {"class": "os.system('x')"}}}
    assert "os.system('x')" not in cards.card_text(card).replace("\"os.system('x')\"", "")
    # A file that is damaged is left out of the list of its folder, and named
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    (tmp_path / "good.safetensors").write_bytes(FILES[0].read_bytes())
    assert list(cards.read_cards(tmp_path)) == ["good"]
    assert "Left out: " in capsys.readouterr().err


def test_card_says_what_normalises_observations() -> None:
    card = {**read_card(FILES[0]), "vec_normalize": None}
    for kwargs, words in (({}, "not normalised"), (dict(normalize_observations=True), "normalised by the agent")):
        arguments = {**card["arguments"], "policy_kwargs": kwargs}
        assert f"| Observations | {words} |" in cards.card_text({**card, "arguments": arguments})
    assert "normalised by `VecNormalize`" in cards.card_text({**card, "vec_normalize": dict(norm_obs=True)})


def test_card_of_several_tasks() -> None:
    scores = {"score dmc/walker-walk-v0": 50.04, "score a|<b>": 10.0, "score untried": None}
    card = {**read_card(FILES[0]), "steps": None, "evaluation": dict(scores, episodes=10)}
    text = cards.card_text(card)
    assert (
        "| Scores of the planner over 10 episodes each | dmc/walker-walk-v0 50.0, a\\|" in text
        and "mean 30.0 |" in text
    )
    assert "<b>" not in text.split("```")[0] and "untried" not in text and "unknown, or none, seed" in text
    assert 'env = make_multitask(\n    [\n        "dmc/walker-walk-v0",\n' in text
    assert "score 30.0" in cards.table({"agent": card})
    # No command is made up that trains a single task of this name
    del card["command"]
    assert card_facts.training_command({**card, "steps": dict(decisions=10), "preset": "small"}) is None


def test_card_makes_an_environment_only_where_it_differs_from_its_id() -> None:
    card = read_card(next(path for path in FILES if path.stem == "tdmpc2-myosuite-reach-v0"))
    assert card["environment"]["kwargs"]["terminates"] is False  # as the id has it
    assert "terminates" not in cards.card_text(card) and "gym.make" not in cards.card_text(card)
    card["environment"]["kwargs"]["terminates"] = True
    text = cards.card_text(card)
    assert "100 decisions, terminates=True" in text and "terminates=True, max_episode_steps=100)" in text


def test_gallery_shows_the_best_agent_of_each_task_by_suite() -> None:
    found = cards.read_cards()
    text = gallery.page({name: card for name, card in found.items() if (cards.CHECKPOINTS / f"{name}.gif").exists()})
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert all((cards.FOLDER / picture).is_file() for picture in pictures)
    assert "checkpoints/tdmpc2-dmc-walker-walk-v0.gif" in pictures
    assert "checkpoints/mbdpo-dmc-walker-walk-v0.gif" not in pictures  # has a lower return
    order = ["## Gymnasium", "tdmpc2-Ant-v5", "## DMControl", "tdmpc2-dmc-walker-walk-v0", "## Meta-World"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
