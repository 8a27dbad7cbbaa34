"""The examples run as they stand, with a tiny agent in place of the one that they ask for."""

import json
import re
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc import TDMPC2, FacTDMPC
from tests.support import ROOT
from tests.support.rendering import needs_gl

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
OF_ARCHITECTURE = ("own_suite.py", "sixth_method.py")  # see test_architecture_page.py
SHORT = sorted({path.name for path in EXAMPLES.glob("*.py")} - {"demo.py", *OF_ARCHITECTURE})
DEMO_TASK = re.findall(r'^TASK = "(.*)"$', (EXAMPLES / "demo.py").read_text(), re.MULTILINE)[0]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as ``python examples/<name> <arguments>``; gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def number(pattern: str, output: str) -> float:
    found = re.search(pattern + r"[^-\d]*(-?\d+)", output)
    assert found, output
    return float(found[1])


def test_all_examples_are_tested():
    assert SHORT == [
        "custom_env.py",
        "evaluate_saved.py",
        "factored.py",
        "methods.py",
        "pixels.py",
        "record_video.py",
        "sac_swap.py",
        "suites.py",
        "vectorised.py",
    ]


@pytest.mark.parametrize("name", SHORT)
def test_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 40


def test_sac_swap(run, models):
    output = run("sac_swap.py", "--steps", 80)
    assert -2000 < number("Return over 10 episodes", output) < 0
    assert models[0].num_timesteps == 80 and models[0]._n_updates == 30 + 2
    assert TDMPC2.load("logs/pendulum").num_timesteps == 80


def test_sac_swap_is_sac_but_for_the_class():
    text = (EXAMPLES / "sac_swap.py").read_text()
    for line in text.splitlines():
        now, _, before = line.partition("  # was: ")
        if before:
            assert now.replace("sb3_mpc", "stable_baselines3").replace("TDMPC2", "SAC") == before
    assert text.count("# was: ") == 2


def test_evaluate_saved(run, models):
    output = run("evaluate_saved.py", "--steps", 80)
    assert -2000 < number("Planning: return over 10 episodes", output) < 0
    assert -2000 < number("Policy prior alone: return over 10 episodes", output) < 0
    again = run("evaluate_saved.py", "logs/small.zip")
    assert len(models) == 1, "a model that is given must not be trained again"
    assert again == output[output.index("Planning:") :], "deterministic episodes of the same seed differ"


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_vectorised(run, models):
    pytest.importorskip("dm_control")
    output = run("vectorised.py", "--steps", 120)
    assert number("Best mean return", output) >= 0
    assert {path.name for path in Path("logs/walker").iterdir()} == {
        "best_model.zip",
        "final_model.zip",
        "vecnormalize.pkl",
    }
    assert models[0].n_envs == 4 and models[0].get_vec_normalize_env() is not None


def test_suites(run, models):
    pytest.importorskip("dm_control")
    output = run("suites.py", "dmc/walker-walk-v0", "--steps", 60, "--episodes", 2)
    assert 0 <= number("Return over 2 episodes", output) <= 40 and "successes: 0" in output
    assert TDMPC2.load("logs/dmc-walker-walk-v0").num_timesteps == 60


def test_custom_env(run, models):
    try:
        output = run("custom_env.py", "--steps", 120)
    finally:
        gym.registry.pop("Hover-v0", None)
    assert "Predicts terminations: True" in output
    assert 0 < number("at most 100:", output) <= 100
    assert models[0].gamma == 0.95  # from the 100 steps of an episode


@pytest.mark.parametrize("method", sb3_mpc.__all__)
def test_methods(run, models, method):
    pytest.importorskip("dm_control")
    output = run("methods.py", method, "--steps", 60)
    assert number("Planner: return over 10 episodes", output) >= 0
    assert number("Policy network alone: return over 10 episodes", output) >= 0
    assert getattr(sb3_mpc, method).load(f"logs/{method.lower()}").num_timesteps == 60


def test_factored(run, models):
    pytest.importorskip("dm_control")
    output = run("factored.py", "--steps", 60)
    assert number("TDMPC2: return", output) >= 0 and number("FacTDMPC: return", output) >= 0
    assert FacTDMPC.load("logs/walker-factored").policy.distilled


@needs_gl
def test_pixels(run, models):
    output = run("pixels.py", "--steps", 60)
    assert 0 <= number("Return over 5 episodes", output) <= 40
    assert models[0].replay_buffer.nbytes < 4e6, "the buffer must not be larger than the training"
    assert Path("logs/cup_catch_pixels.zip").exists()


@needs_gl
def test_record_video(run, models):
    TDMPC2("MlpPolicy", DEMO_TASK).save("demo/tdmpc2")
    assert run("record_video.py", "--episodes", 2).splitlines() == [
        f"Video: videos/{DEMO_TASK.replace('/', '-')}-episode-{number}.mp4" for number in (0, 1)
    ]
    assert len(list(Path("videos").glob("*.mp4"))) == 2


def test_demo(run, models):
    pytest.importorskip("dm_control")
    output = run("demo.py", "--steps", 60)
    table = json.loads(Path("demo/table.json").read_text())
    assert [row["agent"] for row in table["rows"]] == ["random", "SAC", "TDMPC2"]
    assert [row["steps"] for row in table["rows"]] == [0, 60, 60]
    assert Path("demo/table.txt").read_text() in output and "reduced model and planner" in output
    assert Path("demo/learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert TDMPC2.load("demo/tdmpc2").num_timesteps == 60
    assert Path("demo/tdmpc2-episode-0.mp4").exists() or "No video: " in output
