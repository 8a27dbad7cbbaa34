"""
Learning curves of model size 1: train, evaluate the checkpoints, and draw them with ``python -m sb3_mpc.zoo plot``.

    python -m sb3_mpc.zoo.studies.learning train cartpole-swingup --seed 1
    python -m sb3_mpc.zoo.studies.learning evaluate cartpole-swingup --seed 1
    python -m sb3_mpc.zoo plot zoo/studies/results/tdmpc2-size1-*-1.csv --episodes --output tdmpc2.png

One row of the CSV is the mean return of 10 deterministic episodes; ``frames`` are simulator frames, decisions times the
action repeat of 2. The settings are for two CPU cores: model size 1 and a smaller planner.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import TDMPC2

ACTION_REPEAT = 2
RESULTS = Path(__file__).parent / "results"
METHOD = "TDMPC2 (1M)"
SETTINGS = dict(num_samples=256, num_elites=32, iterations=4, policy_kwargs=dict(model_size=1))


def train(task: str, seed: int, steps: int, every: int, folder: Path, compile: bool) -> None:
    """
    A run whose folder holds checkpoints is resumed from the newest one.

    :param task: DMControl task
    :param seed: seed of agent and environment
    :param steps: agent decisions
    :param every: decisions between checkpoints
    :param folder: where checkpoints and the returns of the training episodes are written
    :param compile: compile plan and update
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = checkpoints(folder)
    # A resumed run appends to the returns of its training episodes
    env: Monitor = Monitor(gym.make(f"dmc/{task}-v0"), str(folder / "train"), override_existing=not saved)
    if saved:
        done = max(saved)
        model = TDMPC2.load(saved[done], env, compile=compile)
        model.load_replay_buffer(folder / f"model_replay_buffer_{done}_steps.pkl")
    else:
        model = TDMPC2("MlpPolicy", env, seed=seed, verbose=1, compile=compile, **SETTINGS)  # type: ignore[arg-type]
    settings = dict(SETTINGS, task=task, seed=seed, steps=steps, threads=th.get_num_threads(), compile=compile)
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    callback = CheckpointCallback(every, str(folder), name_prefix="model", save_replay_buffer=True)
    model.learn(steps - model.num_timesteps, callback, log_interval=1, reset_num_timesteps=False)


def checkpoints(folder: Path) -> dict[int, Path]:
    """
    :param folder: folder of a training run
    :return: its checkpoints by the number of decisions
    """
    return {int(path.stem.split("_")[1]): path for path in folder.glob("model_*_steps.zip")}


def evaluate(task: str, seed: int, folder: Path, output: Path, episodes: int) -> None:
    """
    :param task: DMControl task
    :param seed: seed of the training run
    :param folder: where its checkpoints are
    :param output: CSV file to append to; checkpoints that it has already are left out
    :param episodes: number of evaluation episodes
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if output.exists():
        with output.open() as file:
            done = {int(row["frames"]) // ACTION_REPEAT for row in csv.DictReader(file)}
    with (folder / "train.monitor.csv").open() as file:  # two lines of header
        episodes_seen = list(csv.reader(file))[2:]
    with output.with_suffix(".train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["return", "length"], *(row[:2] for row in episodes_seen)])
    for steps, path in sorted(checkpoints(folder).items()):
        if steps in done:
            continue
        env = make_vec_env(f"dmc/{task}-v0", n_envs=episodes, seed=10_000 + seed)
        started = time.time()
        returns, _ = evaluate_policy(
            TDMPC2.load(path), env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
        )
        new = not output.exists()
        with output.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["method", "task", "frames", "return", "seed", "std_return", "episodes"])
            mean, std = float(np.mean(returns)), float(np.std(returns))
            row = [METHOD, f"dmc/{task}-v0", steps * ACTION_REPEAT, round(mean, 2), seed, round(std, 2), episodes]
            writer.writerow(row)
        seconds = time.time() - started
        print(f"{task} seed {seed}: {steps * ACTION_REPEAT} frames, return {mean:.1f} +- {std:.1f} ({seconds:.0f} s)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("task", nargs="+", help="DMControl task such as cartpole-swingup")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25_000, help="agent decisions")
    parser.add_argument("--every", type=int, default=2_500, help="decisions between checkpoints")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=None, help="CSV file to write")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    for task in args.task:
        folder = args.runs / f"{task}-{args.seed}"
        if args.command == "train":
            train(task, args.seed, args.steps, args.every, folder, args.compile)
        else:
            output = args.output or RESULTS / f"tdmpc2-size1-{task}-{args.seed}.csv"
            evaluate(task, args.seed, folder, output, args.episodes)


if __name__ == "__main__":
    main()
