"""
What planning with a learned model is worth: TDMPC2 and SAC after the same few minutes of experience (``make demo``).

Trains both on a DMControl task and evaluates them beside a random policy. The folder ``demo/`` receives the model, the
learning curves as a picture, the table as text and JSON and, where the machine can render, a video of the agent.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2
from sb3_mpc.envs.video import record_video

TASK = "dmc/cartpole-swingup-v0"
# A decision lasts eight frames here, as in PlaNet, and not two: fewer decisions, each of which says more
PROTOCOL: dict[str, Any] = dict(action_repeat=8, max_episode_steps=125)
EPISODES = 10
# Reduced to fit into minutes on a CPU. The defaults are the paper's: 5 million parameters and 6 x 512 candidates.
REDUCED: dict[str, Any] = dict(
    learning_rate=1e-3,
    batch_size=128,
    learning_starts=1_000,
    pretrain_gradient_steps=500,
    iterations=3,
    num_samples=128,
    num_elites=16,
    num_pi_trajs=16,
    policy_kwargs=dict(latent_dim=64, enc_dim=128, net_arch=[128, 128], num_q=2),
)


class RandomPolicy:
    """Uniformly random actions, for :func:`evaluate_policy`."""

    def __init__(self, action_space: gym.Space, seed: int) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        """
        :param observation: observations of all environments
        :return: an action for each, and no state
        """
        return np.array([self.action_space.sample() for _ in observation]), None


def train(algorithm: type[OffPolicyAlgorithm], steps: int, seed: int, **settings: Any) -> tuple[Any, float]:
    """
    :param algorithm: class of the agent
    :param steps: agent decisions
    :param seed: seed of agent and environment
    :param settings: arguments of the agent
    :return: the trained agent, and the seconds that it took
    """
    started = time.perf_counter()
    env = make_vec_env(TASK, seed=seed, env_kwargs=PROTOCOL)
    model = algorithm("MlpPolicy", env, seed=seed, **settings).learn(steps, progress_bar=True)
    return model, time.perf_counter() - started


def evaluate(name: str, agent: Any, env: VecEnv, seed: int, seconds: float = 0.0) -> dict[str, Any]:
    """
    :param name: name of the agent
    :param agent: trained model or random policy
    :param env: ``EPISODES`` environments
    :param seed: seed of the episodes
    :param seconds: how long the training took
    :return: a row of the table, with the returns of training and evaluation
    """
    env.seed(seed)
    returns, _ = evaluate_policy(agent, env, n_eval_episodes=EPISODES, return_episode_rewards=True)
    row: dict[str, Any] = dict(agent=name, mean=float(np.mean(returns)), std=float(np.std(returns)), returns=returns)
    row |= dict(steps=0, seconds=round(seconds, 1), training_steps=[], training_returns=[])
    if isinstance(agent, OffPolicyAlgorithm):
        training = agent.get_env()
        assert training is not None
        row["steps"] = agent.num_timesteps
        row["training_steps"] = np.cumsum(training.env_method("get_episode_lengths")[0]).tolist()
        row["training_returns"] = training.env_method("get_episode_rewards")[0]
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """
    :param rows: random policy, SAC and TDMPC2
    :param path: where the picture goes
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    random, *trained = rows
    for row, color in zip(trained, ("tab:orange", "tab:blue"), strict=True):
        axes.plot(row["training_steps"], row["training_returns"], "o-", color=color, label=row["agent"])
        axes.errorbar(row["steps"], row["mean"], row["std"], fmt="*", color=color, ms=13, capsize=4)
    axes.axhline(random["mean"], color="tab:gray", ls="--", label="random policy")
    axes.plot([], [], "k*", ms=10, label=f"after training, {EPISODES} episodes")
    axes.set(
        xlabel="steps (agent decisions)",
        ylabel="episode return",
        title=f"{TASK}, action repeat 8, TDMPC2 with reduced settings",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def record(model: Any, folder: Path, seed: int) -> str:
    """
    :param model: trained agent
    :param folder: where the video goes
    :param seed: seed of the episode
    :return: one line that says where the video is, or why there is none
    """
    try:
        (path,) = record_video(model, TASK, folder, seed=seed, name="tdmpc2", width=256, height=256, **PROTOCOL)
    except (gym.error.DependencyNotInstalled, RuntimeError) as error:
        return f"No video: {error}"
    return f"Video: {path}"


def main() -> None:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_500, help="agent decisions of each agent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the results are saved")
    args = parser.parse_args()
    folder, steps, seed = args.folder, args.steps, args.seed
    folder.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # with more, a busy core brings the training to a standstill
    print(f"{TASK}: {steps} steps for each agent. A step is one decision, which lasts eight frames of dm_control.")
    print("TDMPC2 has a REDUCED model and planner here, to fit into minutes on a CPU; SAC has its default settings.")

    print("\nTraining SAC")
    sac, sac_seconds = train(SAC, steps, seed)
    print("\nTraining TDMPC2; the first steps are random, learning begins after them")
    tdmpc2, tdmpc2_seconds = train(TDMPC2, steps, seed, **REDUCED)
    tdmpc2.save(folder / "tdmpc2")

    print(f"\nEvaluating, {EPISODES} episodes of each agent")
    env = make_vec_env(TASK, n_envs=EPISODES, env_kwargs=PROTOCOL)  # plans are made in one batch
    rows = [
        evaluate("random", RandomPolicy(env.action_space, seed), env, seed + 1_000),
        evaluate("SAC", sac, env, seed + 1_000, sac_seconds),
        evaluate("TDMPC2", tdmpc2, env, seed + 1_000, tdmpc2_seconds),
    ]
    table = f"{'agent':<8}{'return':>14}{'steps':>10}{'training':>12}\n"
    for row in rows:
        score = f"{row['mean']:.0f} +- {row['std']:.0f}"
        table += f"{row['agent']:<8}{score:>14}{row['steps']:>10}{row['seconds']:>10.0f} s\n"
    table += f"Mean and standard deviation of {EPISODES} episodes on {TASK} with action repeat 8;\n"
    table += "TDMPC2 with a reduced model and planner.\n"
    print(f"\n{table}")

    (folder / "table.txt").write_text(table)
    (folder / "table.json").write_text(json.dumps(dict(task=TASK, seed=seed, rows=rows), indent=1))
    plot(rows, folder / "learning_curves.png")
    print(f"Model: {folder}/tdmpc2.zip\nLearning curves: {folder}/learning_curves.png")
    print(record(tdmpc2, folder, seed))


if __name__ == "__main__":
    main()
