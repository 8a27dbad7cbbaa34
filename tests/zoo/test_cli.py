"""The command line of the zoo: presets, training through rl_zoo3, searching, watching, plots, and its messages."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
import gymnasium as gym
import pandas as pd
import rl_zoo3
import yaml

import sb3_mpc
from sb3_mpc import METHODS
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.envs import SUITES
from sb3_mpc.zoo import aggregate, returns, rl_zoo
from sb3_mpc.zoo.__main__ import COMMANDS, main
from sb3_mpc.zoo.cards import CHECKPOINTS
from sb3_mpc.zoo.checkpoint_files import checkpoints_of
from sb3_mpc.zoo.presets import PRESETS, load_preset, preset_file, preset_key
from sb3_mpc.zoo.run_folder import read_settings
from tests.support import ROOT
from tests.support.agents import assert_one_clear_sentence, make_agent
from tests.support.rendering import needs_gl
from tests.support.zoo_runs import TINY, run, train_arguments

IDS = [env_id for suite in SUITES.values() for env_id in suite.ids]
# Keys of rl_zoo3 that are no arguments of an agent
OF_RL_ZOO3 = {"n_timesteps", "n_envs"}
TASK, NAME = "dmc/pendulum-swingup-v0", "dmc-pendulum-swingup-v0"


def build(algo: str, preset: dict[str, Any], env: Any = None) -> WorldModelAlgorithm:
    """:return: the agent of a preset, without the networks if there is no environment"""
    arguments = {name: value for name, value in preset.items() if name not in OF_RL_ZOO3}
    return sb3_mpc.ALGORITHMS[algo](env=env, _init_setup_model=env is not None, **arguments)


# -- Presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", METHODS)
def test_presets(algo: str) -> None:
    """Every entry is made of arguments of the class, and every registered id finds one."""
    entries = yaml.safe_load(preset_file(algo).read_text())
    for name in (*entries, *sb3_mpc.ALGORITHMS[algo].presets):
        preset = load_preset(algo, name) if name in entries else load_preset(algo, "dmc/walker-walk-v0", name)
        build(algo, preset)
        assert preset["n_timesteps"] > 0 and preset["policy"] in ("MlpPolicy", "CnnPolicy")
        if "/" in name or name[0].isupper():
            assert name in gym.registry, name
    for env_id in IDS:
        key = preset_key(entries, env_id)
        assert key != "default" and (key == env_id or key.removesuffix("-pixels") == env_id.split("/")[0])
        assert (entries[key]["policy"] == "CnnPolicy") == ("-pixels-" in env_id)
    assert load_preset(algo, "somebodys-env-v3") == entries["default"]
    assert load_preset(algo, "module:Hopper-v5")["rho"] == 0.7


@pytest.mark.parametrize("algo", METHODS)
def test_reduced_preset(algo: str) -> None:
    model = build(algo, load_preset(algo, "Pendulum-v1", "cpu"), "Pendulum-v1")
    assert model.policy_kwargs == dict(model_size=1) and model.num_samples <= 256 and model.gamma == 0.975
    assert (
        load_preset(algo, "dmc/dog-run-v0", "cpu")["n_timesteps"] == load_preset(algo, "dmc/dog-run-v0")["n_timesteps"]
    )


@pytest.mark.parametrize("algo", METHODS)
def test_small_preset(algo: str) -> None:
    """The trained agents are of this size."""
    preset = load_preset(algo, "Pendulum-v1", "small")
    model = build(algo, preset, "Pendulum-v1")
    assert (preset["n_envs"], preset["n_timesteps"], model.gradient_steps) == (10, 50_000, 10)
    assert [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == [1e-3, 5e-4, 0.0]
    assert sum(p.numel() for p in model.policy.world_model.parameters()) < 500_000


def test_presets_are_those_of_the_papers() -> None:
    steps = {algo: load_preset(algo, "dmc/dog-run-v0")["n_timesteps"] for algo in METHODS}
    assert steps == dict(tdmpc2=7_000_000, tdmpc_square=2_000_000, bmpc=2_000_000, mbdpo=4_000_000, fac_tdmpc=7_000_000)
    assert load_preset("tdmpc2", "metaworld/assembly-v3")["n_timesteps"] == 1_000_000
    ignore = [algo for algo in METHODS if load_preset(algo, "humanoid-bench/h1hand-run-v0").get("episodic") is False]
    assert sorted(ignore) == ["bmpc", "tdmpc_square"]  # their codes learn values as if a fall were no end
    assert all("episodic" not in load_preset(algo, "Hopper-v5") for algo in METHODS)
    model = build("tdmpc2", load_preset("tdmpc2", "dmc/walker-walk-v0"))
    assert (model.rho, model.num_samples, model.iterations, model.gamma) == (0.5, 512, 6, "auto")


# -- Training, searching, watching -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: log folder of a tiny run whose environment's id has a slash"""
    folder = tmp_path_factory.mktemp("logs")
    pytest.importorskip("dm_control")
    run(*train_arguments(folder, 40, "--preset", "cpu", env=TASK))
    return folder


def test_run_folder(finished: Path) -> None:
    folder = finished / "tdmpc2" / f"{NAME}_1"
    saved = read_settings(folder / NAME / "config.yml", trust=True)  # for its callback
    model = load_agent(folder / NAME)
    # the preset under the reduced one under what the command line says
    assert (saved["n_timesteps"], saved["num_samples"], saved["batch_size"]) == (2_000_000, 16, 16)
    assert (model.num_timesteps, model.num_samples, model.rho) == (40, 16, 0.5)
    assert list(checkpoints_of(folder / "checkpoints")) == [40]
    pickles = {path.suffix for path in folder.rglob("*")} & {".zip", ".pkl", ".pth"}
    assert not pickles, "a run folder holds data only"


@pytest.mark.slow
def test_evaluate_and_enjoy(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished / "tdmpc2" / f"{NAME}_1"
    run("evaluate", folder, "--episodes", 2, "--actor", "--device", "cpu")
    by_run = capsys.readouterr().out.splitlines()
    assert f"TDMPC2 on {TASK}, 2 episodes" in by_run[-3]
    assert [line.split(" return ")[0].strip() for line in by_run[-2:]] == ["planner", "network policy"]
    monkeypatch.setattr(gym.spec(TASK), "max_episode_steps", 20)
    agent = load_agent(folder / NAME, gym.make(TASK, max_episode_steps=20))
    agent.save(tmp_path / "agent.zip")
    file = [tmp_path / "agent.zip", "--algo", "tdmpc2", "--env", TASK, "--device", "cpu", "--trust"]
    run("evaluate", *file, "--episodes", 2)
    assert capsys.readouterr().out.splitlines()[-1] == by_run[-2]
    run("evaluate", save_agent(agent, tmp_path / "agent"), "--episodes", 2, "--device", "cpu")
    assert capsys.readouterr().out.splitlines()[-1] == by_run[-2]
    run("enjoy", "--algo", "tdmpc2", "--env", TASK, "-f", finished, "--no-render", "-n", 20)
    assert "Episode Reward" in capsys.readouterr().out


@pytest.mark.slow
@needs_gl
def test_record(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    folder = finished / "tdmpc2" / f"{NAME}_1"
    run("record", folder, "--folder", tmp_path, "--device", "cpu")
    assert (tmp_path / f"{NAME}-episode-0.mp4").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("film", [False, pytest.param(True, marks=needs_gl)])
def test_publish(film: bool, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "tdmpc2" / f"{NAME}_1"
    curve, options = tmp_path / "curve.csv", [] if film else ["--no-film"]
    curve.write_text(f"method,task,frames,return,seed\ntdmpc2,{TASK},40,10.0,1\ntdmpc2,{TASK},80,20.0,1\n")
    for _ in range(2):  # the second time the files are replaced
        run("publish", folder, "--episodes", 1, "--device", "cpu", "--folder", tmp_path, "--curve", curve, *options)
    file = tmp_path / f"tdmpc2-{NAME}.safetensors"
    card, output = read_card(file), capsys.readouterr().out
    assert card["steps"] == dict(decisions=40, frames=80) and card["preset"] == "cpu" and card["dtype"] == "float16"
    for name, key in (("planner", "mean_return"), ("network policy", "network_mean_return")):
        assert f"{name} return {card['evaluation'][key]:.1f}" in " ".join(output.split())
    text = file.with_suffix(".md").read_text()
    assert f"--algo tdmpc2 --env {TASK} --seed 1 --preset cpu" in text and "--n-timesteps 40 --hyperparams" in text
    assert "--log-folder" not in text
    pictures = [".png", ".gif"] if film else [".png"]
    assert all((tmp_path / f"tdmpc2-{NAME}{suffix}").stat().st_size > 0 for suffix in pictures)
    assert all((f"tdmpc2-{NAME}{suffix})" in text) == (suffix in pictures) for suffix in (".png", ".gif"))
    run("evaluate", file, "--episodes", 1, "--device", "cpu")
    assert f"return {card['evaluation']['mean_return']:.1f}" in capsys.readouterr().out


@pytest.mark.slow
def test_file_that_is_evaluated_again_says_how_it_was_trained(tmp_path: Path) -> None:
    known: dict[str, Any] = dict(
        commit="abc1234", steps=dict(decisions=40, frames=80), seed=3, note="by hand", preset="cpu", command="python"
    )
    trained = save_agent(make_agent(sb3_mpc.TDMPC2, "Pendulum-v1"), tmp_path / "trained", **known)
    options = ["--episodes", 1, "--device", "cpu", "--folder", tmp_path, "--no-film"]
    run("publish", trained, *options)
    card = read_card(tmp_path / "tdmpc2-Pendulum-v1.safetensors")
    assert card["evaluation"]["episodes"] == 1 and {name: card[name] for name in known} == known
    save_agent(make_agent(sb3_mpc.TDMPC2, "Pendulum-v1"), trained, steps=dict(decisions=40))
    run("publish", trained, *options, "--preset", "small")
    assert read_card(tmp_path / "tdmpc2-Pendulum-v1.safetensors")["steps"] == dict(decisions=40, frames=40)
    assert read_card(tmp_path / "tdmpc2-Pendulum-v1.safetensors")["preset"] == "small"


@pytest.mark.slow
def test_agent_of_the_zoo_that_is_evaluated_again_says_how_it_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    of = ["--algo", "tdmpc2", "--env", "dmc/cartpole-swingup-v0"]
    run("publish", *of, "--episodes", 1, "--device", "cpu", "--folder", tmp_path, "--no-film")
    its, new = (read_card(f / "tdmpc2-dmc-cartpole-swingup-v0.safetensors") for f in (CHECKPOINTS, tmp_path))
    assert new["evaluation"]["episodes"] == 1
    assert all(new[name] == its[name] for name in ("commit", "steps", "seed", "preset"))


@pytest.mark.slow
def test_environment_with_arguments_and_a_run_that_is_extended(tmp_path: Path, capsys: Any) -> None:
    """An agent is judged in the environment that it was trained in, also after its run was made longer."""
    arguments = train_arguments(tmp_path, 40)
    at = arguments.index("max_episode_steps:20")
    run(*arguments[:at], "g:5.0", *arguments[at:])
    folder = tmp_path / "tdmpc2" / "Pendulum-v1_1"
    run("train", "--resume", folder, "-n", 60, "--trust")
    run("train", "--resume", folder, "--trust")  # has nothing left to do
    assert json.loads((folder / "train.json").read_text())["arguments"].count("--n-timesteps") == 1
    capsys.readouterr()
    run("evaluate", folder, "--episodes", 1)
    expected = capsys.readouterr().out.split(" return ")[1].split()[0]
    run("publish", folder, "--episodes", 1, "--folder", tmp_path, "--no-film", "--dtype", "float32")
    assert f"planner         return {expected}" in capsys.readouterr().out
    card = read_card(tmp_path / "tdmpc2-Pendulum-v1.safetensors")
    assert card["environment"]["kwargs"]["g"] == 5.0 and "--n-timesteps 60" in card["command"]
    run("evaluate", tmp_path / "tdmpc2-Pendulum-v1.safetensors", "--episodes", 1)
    assert "trained with other arguments of Pendulum-v1, which no file may choose: {'g': 5.0" in capsys.readouterr().out


@pytest.mark.slow
def test_stacked_observations(tmp_path: Path, capsys: Any) -> None:
    run(*train_arguments(tmp_path, 40), "frame_stack:2")
    folder = tmp_path / "tdmpc2" / "Pendulum-v1_1"
    run("evaluate", folder, "--episodes", 1)
    assert "planner         return" in capsys.readouterr().out
    for command in ("record", "publish"):
        assert main([command, str(folder), "--folder", str(tmp_path)]) == 1
        assert_one_clear_sentence(RuntimeError(capsys.readouterr().err), "frame_stack=2", "evaluate")
    assert not [*tmp_path.glob("*.safetensors")]


@pytest.mark.slow
@pytest.mark.parametrize("algo", METHODS)
def test_two_trials_of_a_search(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [setting for setting in TINY if not setting.startswith(("horizon", "batch_size"))]
    settings += ["distill_steps:2"] if algo == "fac_tdmpc" else []
    options = f"train --algo {algo} --env Pendulum-v1 -n 24 --optimize --n-trials 2 --n-evaluations 1 --seed 0"
    more = f"--eval-episodes 1 --env-kwargs max_episode_steps:5 --device cpu --log-folder {tmp_path} -params"
    run(*options.split(), *more.split(), *settings)
    assert "Number of finished trials:  2" in capsys.readouterr().out
    (report,) = (tmp_path / algo).glob("report*.csv")
    rows = list(csv.DictReader(report.open()))
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE"] and 2 <= int(rows[0]["params_horizon"]) <= 5


def test_registration() -> None:
    rl_zoo.register()
    assert rl_zoo3.ALGOS.items() >= sb3_mpc.ALGORITHMS.items()
    assert {path.stem for path in PRESETS.glob("*.yml")} == {*METHODS, "sac"}  # what they are compared with
    assert rl_zoo.find_environment("gymnasium.envs.classic_control:Pendulum-v1") == "Pendulum-v1"


# -- Messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --algo tdmpc --env Pendulum-v1", ['no method "tdmpc"', "tdmpc2"]),
        ("train --algo tdmpc2 --env dmc/waker-walk-v0", ['"dmc/waker-walk-v0"', "dmc/walker-walk-v0"]),
        ("train --algo tdmpc2 --env nowhere:Env-v0", ["nowhere"]),
        ("train --algo tdmpc2", ["--env"]),
        ("train --algo tdmpc2 --env Pendulum-v1 --preset gpu", ['no preset "gpu"', "cpu"]),
        ("train --algo tdmpc2 --env Pendulum-v1 -n 0", ["--n-timesteps=0", "at least 1"]),
        ("train --algo tdmpc2 --env Pendulum-v1 --seed -3", ["--seed=-3", "at least 0"]),
        ("train --algo tdmpc2 --env Pendulum-v1 -params horizn:3", ["horizn", "horizon"]),
        (
            "train --algo tdmpc2 --env Pendulum-v1 -params learning_rate:lin_0.001",
            ["lin_0.001", "quotes"],
        ),
        ("train --algo tdmpc2 --env Pendulum-v1 -params policy:MlpPolicy", ["policy:MlpPolicy", "quotes"]),
        ("train --algo tdmpc2 --env nomodule:Pendulum-v1", ["nomodule:Pendulum-v1", "cannot be imported"]),
        ("train --resume missing --env-kwargs g:5.0", ["leave out --env-kwargs"]),
        ("train --resume missing -params horizon:2", ["leave out horizon:2"]),
        ("bench --obs 0", ["--obs=0", "at least 1"]),
        ("evaluate missing --n-envs 0", ["--n-envs=0", "at least 1"]),
        ("list --folder missing", ["no folder missing"]),
        ("convert missing.zip agent.safetensors --algo tdmpc2", ["no file missing.zip"]),
        ("train --resume missing", ["missing", "no folder of a run"]),
        ("train --resume missing --seed 3", ["leave out --seed"]),
        ("enjoy --algo sarsa --env Pendulum-v1", ['no method "sarsa"']),
        ("enjoy --algo tdmpc2 --env Pendulum-v1 -f missing", ["no run of tdmpc2 in Pendulum-v1 in missing"]),
        ("evaluate missing", ["no run and no file missing"]),
        ("evaluate README.md", ["may run code", "add --trust"]),
        ("evaluate README.md --trust", ["give --algo and --env"]),
        ("evaluate", ["Which agent"]),
        ("evaluate tests", ["no folder of a run"]),
        ("plot missing", ["neither a CSV file nor a folder"]),
        ("plot zoo/studies/results/tdmpc2-size1-cup-catch-1.train.csv", ["no table of returns", "method"]),
        (
            "plot zoo/studies/results/small.csv --output zoo/studies/results/small.png",
            ["small.csv is read and would be overwritten", "another --output"],
        ),
    ],
)
def test_bad_input(
    arguments: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("SB3_MPC_TRACEBACK", raising=False)
    monkeypatch.chdir(ROOT)
    more = ["--log-folder", str(tmp_path)] if arguments.startswith("train") else []
    assert main([*arguments.split(), *more]) == 1
    assert_one_clear_sentence(RuntimeError(capsys.readouterr().err), "^Error: ", *words)
    assert not any(tmp_path.rglob("*.zip"))


def test_run_that_is_further_than_asked(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(finished / "tdmpc2" / f"{NAME}_1", tmp_path / "run")
    assert main(["train", "--resume", str(copy), "-n", "20", "--trust"]) == 1
    assert_one_clear_sentence(RuntimeError(capsys.readouterr().err.splitlines()[-1]), "done 40 of 20 steps", "-n")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    monkeypatch.delitem(sys.modules, "sb3_mpc.zoo.rl_zoo")
    monkeypatch.delattr("sb3_mpc.zoo.rl_zoo")
    assert main(["train", "--algo", "tdmpc2", "--env", "Pendulum-v1"]) == 1
    assert 'needs rl_zoo3: pip install -e ".[zoo,extra]" in your clone' in capsys.readouterr().err


@pytest.mark.slow
def test_reader_that_has_seen_enough() -> None:
    """As in ``list | head``."""
    command = [sys.executable, "-m", "sb3_mpc.zoo", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_help_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from sb3_mpc.zoo.__main__ import main\n"
        "for command in ('train', 'plot'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'rl_zoo3', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "main(['list'])\n"
        "assert 'pandas' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "--resume" in output and "rl_zoo3.train" in output
    for name in COMMANDS:
        with pytest.raises(SystemExit) as exit_of_help:
            main([name, "--help"])
        assert exit_of_help.value.code == 0 and f"zoo {name}" in capsys.readouterr().out


# -- Plots -------------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("method", "task", "frames", "return", "seed"), *rows])


def test_plot_of_a_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "WINDOW", 2)
    run("plot", finished, "--episodes", "--output", tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert returns.read_episodes([finished])["frames"].tolist() == [40, 80]
    np.savez(finished / "tdmpc2" / f"{NAME}_1" / "evaluations.npz", timesteps=[20, 40], results=[[1, 3], [5, 7]])
    run("plot", finished, "--no-published", "--output", tmp_path / "curves.png")
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert [(row["method"], row["frames"], row["mean"]) for row in rows] == [
        ("tdmpc2 (cpu)", "40", "2.0"),
        ("tdmpc2 (cpu)", "80", "6.0"),
    ]
    assert returns.action_repeat("dmc/walker-walk-v0", {}) == 2 == returns.action_repeat("maniskill/pick-cube-v1", {})
    assert returns.action_repeat("dmc/walker-walk-v0", {"action_repeat": 4}) == 4
    assert returns.action_repeat("humanoid-bench/h1-run-v0", {}) == 1 == returns.action_repeat("Pendulum-v1", {})


def test_plot_of_successes(tmp_path: Path) -> None:
    write_table(tmp_path / "mine.csv", [("mine", "metaworld/reach-v3", f, f / 2_000, 1) for f in (0, 200_000)])
    run("plot", tmp_path / "mine.csv", "--success", "--output", tmp_path / "curves.png")
    found = {
        (row["method"], row["frames"]): float(row["mean"]) for row in csv.DictReader((tmp_path / "curves.csv").open())
    }
    assert found["mine", "200000"] == 100 and 0 < found["SAC, published", "200000"] <= 100
    assert 0 < found["TD-MPC2, published", "200000"] <= 100


def test_published_curves_are_of_registered_tasks() -> None:
    for success in (False, True):
        table = returns.read_published(success)
        assert set(table["task"]) <= set(IDS) and set(table["method"]) <= set(returns.LABELS)
        assert not table.duplicated(["method", "task", "frames", "seed"]).any()


def test_plot_with_published_curves_and_aggregates(tmp_path: Path) -> None:
    tasks = ("dmc/walker-walk-v0", "dmc/dog-run-v0")
    values = {tasks[0]: (900, 950, 980), tasks[1]: (100, 200, 330)}
    rows = [
        ("mine", task, f, v * f / 200_000, seed)
        for task in tasks
        for seed, v in enumerate(values[task])
        for f in (0, 200_000)
    ]
    write_table(tmp_path / "mine.csv", rows)
    run("plot", tmp_path / "mine.csv", "--output", tmp_path / "all.png", "--aggregate")
    found = list(csv.DictReader((tmp_path / "all.csv").open()))
    mine = {(row["task"], row["frames"]): row for row in found if row["method"] == "mine"}
    last = mine[tasks[1], "200000"]
    assert float(last["mean"]) == 210 and 100 <= float(last["low"]) < 210 < float(last["high"]) <= 330
    assert {row["method"] for row in found} == {"mine", *returns.LABELS.values()}
    aggregated = {row["method"]: row for row in csv.DictReader((tmp_path / "all-aggregate.csv").open())}
    # BMPC's means over seeds are no runs; of six scores the lowest and the highest are left out
    assert set(aggregated) == {"mine", returns.LABELS["tdmpc2"], returns.LABELS["sac"]}
    assert float(aggregated["mine"]["iqm"]) == pytest.approx(np.mean([0.2, 0.33, 0.9, 0.95]))
    assert aggregated["mine"]["runs"] == "6" and aggregated["mine"]["frames"] == "200000"


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=returns.COLUMNS)


def test_curves_and_bands() -> None:
    first, second = [("a", "t", 0, 0, "0"), ("a", "t", 10, 10, "0")], [("a", "t", 0, 2, "1"), ("a", "t", 5, 7, "1")]
    both = aggregate.curves(table(*first, *second, ("b", "t", 5, 3, "0")))
    one = both[both["method"] == "a"]
    # Each seed counts as far as it was trained, and is interpolated between its points
    assert (one["frames"].tolist(), one["mean"].tolist(), one["seeds"].tolist()) == ([0, 5, 10], [1, 6, 10], [2, 2, 1])
    assert (one["low"] <= one["mean"]).all() and (one["mean"] <= one["high"]).all()
    assert both["method"].tolist() == ["a", "a", "a", "b"]
    assert aggregate.curve(table(*first))["low"].tolist() == [0, 10]
    assert aggregate.curve(table(*first, ("a", "t", 10, 30, "0")))["mean"].tolist() == [0, 20]  # evaluated twice
    many = aggregate.curve(table(*(("a", "t", frames, frames, "0") for frames in range(1_000))))
    assert len(many) == aggregate.MAX_POINTS and many["frames"].iloc[-1] == 999


def test_aggregates() -> None:
    scores = np.arange(8) / 8
    assert aggregate.interquartile_mean(scores) == scores[2:6].mean()
    assert aggregate.profile(scores)[[0, 50]].tolist() == [7 / 8, 3 / 8]
    drawn = aggregate.resampled([np.zeros(3), np.ones(2)])
    assert (drawn.sum(1) == 2).all()
    # All runs are compared at the frames that the shortest of them has reached
    rows = [("a", "t", 0, 0, "0"), ("a", "t", 10, 10, "0"), ("a", "t", 5, 7, "1"), ("b", "t", 20, 9, "")]
    (one,) = aggregate.aggregates(table(*rows), full=10.0)
    assert (one.method, one.runs, one.frames, one.iqm[0]) == ("a", 2, 5, pytest.approx(0.6))
    with pytest.raises(ValueError, match="No method has runs on all of t, u"):
        aggregate.aggregates(table(("a", "t", 5, 7, "1"), ("b", "u", 5, 7, "1")), full=10.0)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content in ("", "method,task\n", "method,task,frames,return,seed\na,t,many,1.0,0\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="a.csv is no table of returns") as caught:
            returns.read([path])
        assert_one_clear_sentence(caught.value)
