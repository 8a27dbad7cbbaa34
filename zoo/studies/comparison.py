"""
The methods compared on small models and a small budget: curves, network policy and overestimation.

    python -m sb3_mpc.zoo.studies.comparison train bmpc dmc/walker-walk-v0 --seed 1
    python -m sb3_mpc.zoo.studies.comparison plot

One row of ``results/comparison.csv`` is one evaluation in a run: mean return of 10 deterministic episodes by planning
and by the policy network alone, and value and discounted return of the first states of 20 episodes of the network
(:class:`sb3_mpc.common.callbacks.OverestimationCallback`). Models, planners and budget are those of
the preset "small", far below the papers': differences between methods here say little about that scale.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc
import sb3_mpc.envs  # registers the ids
from sb3_mpc import FacTDMPC
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.callbacks import OverestimationCallback
from sb3_mpc.zoo.card_facts import agent_name
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.returns import action_repeat

RESULTS = Path(__file__).parent / "results"
METHODS = {key: cls for key, cls in sb3_mpc.ALGORITHMS.items() if cls is not FacTDMPC}  # which learns from another
TASKS = ("dmc/cartpole-swingup-v0", "dmc/walker-walk-v0")
PRESET = "small"
EPISODES, OVERESTIMATION_EPISODES = 10, 20
COLUMNS = ("method", "task", "seed", "decisions", "frames", "return", "std", "network", "value", "mc_return")


class Measure(BaseCallback):
    """
    Evaluates the agent at intervals and appends the results to a CSV file.

    :param run: method, task and seed
    :param every: decisions between evaluations
    :param output: CSV file
    """

    def __init__(self, run: dict[str, Any], every: int, output: Path) -> None:
        super().__init__()
        self.run, self.every, self.output = run, every, output
        env_id = run["task"]
        self.action_repeat = action_repeat(env_id, {})
        self.env = make_vec_env(env_id, EPISODES, seed=1_000 + run["seed"])
        self.overestimation = OverestimationCallback(
            make_vec_env(env_id, EPISODES, seed=2_000 + run["seed"]), n_eval_episodes=OVERESTIMATION_EPISODES
        )

    def _init_callback(self) -> None:
        self.overestimation.init_callback(self.model)

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every < self.model.n_envs and self.num_timesteps > self.model.learning_starts:  # type: ignore[attr-defined]
            returns, _ = evaluate_policy(self.model, self.env, EPISODES, return_episode_rewards=True)
            network, _ = evaluate_policy(self.model.actor, self.env, EPISODES)  # type: ignore[attr-defined]
            found = self.overestimation.measure()
            frames = self.num_timesteps * self.action_repeat
            row = dict(self.run, decisions=self.num_timesteps, frames=frames)
            row |= {"return": np.mean(returns), "std": np.std(returns), "network": network}
            append({**row, "value": found["value"], "mc_return": found["mc_return"]}, self.output)
        return True


def append(row: dict[str, Any], path: Path) -> None:
    """
    :param row: one value for each of ``COLUMNS``
    :param path: CSV file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()})


def make(method: str, task: str, seed: int, **changed: Any) -> tuple[WorldModelAlgorithm, int]:
    """
    :param method: one of ``METHODS``
    :param task: id of the environment
    :param seed: seed of agent and environments
    :param changed: settings that override those of the preset
    :return: a new agent with the settings of the preset, and the number of its decisions
    """
    settings = load_preset(method, task, PRESET) | changed
    policy, steps = settings.pop("policy"), settings.pop("n_timesteps")
    env = make_vec_env(task, settings.pop("n_envs"), seed=seed)
    return METHODS[method](policy, env, seed=seed, device="cpu", **settings), steps


def train(method: str, task: str, seed: int, every: int, output: Path, **changed: Any) -> WorldModelAlgorithm:
    """
    :param method: one of ``METHODS``
    :param task: id of the environment
    :param seed: seed of agent and environments
    :param every: decisions between evaluations
    :param output: CSV file to append to
    :param changed: settings that override those of the preset
    :return: the trained agent
    """
    model, steps = make(method, task, seed, **changed)
    return model.learn(steps, Measure(dict(method=method, task=task, seed=seed), every, output))


def save(model: WorldModelAlgorithm, folder: Path, task: str) -> None:
    """
    :param model: trained agent
    :param folder: folder for agent and replay buffer
    :param task: id of the environment
    """
    method = next(key for key, algorithm in METHODS.items() if type(model) is algorithm)
    name = f"{agent_name(method, task)}-{model.seed}"
    model.save(folder / name)
    model.save_replay_buffer(folder / f"{name}-buffer")


def plot(source: Path, folder: Path) -> None:
    """
    :param source: CSV file of the runs
    :param folder: folder for ``comparison.png`` and ``overestimation.png``
    """
    from matplotlib.figure import Figure

    with source.open() as file:
        rows = list(csv.DictReader(file))
    present = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figures = [Figure(figsize=(5.5 * len(present), 4.2), layout="constrained") for _ in range(2)]
    panels = [np.atleast_1d(figure.subplots(1, len(present))) for figure in figures]
    for index, task in enumerate(present):
        curves, errors = (panel[index] for panel in panels)
        for number, (method, algorithm) in enumerate(METHODS.items()):
            own = [row for row in rows if row["task"] == task and row["method"] == method]
            if not own:
                continue
            steps = sorted({int(row["decisions"]) for row in own})

            def mean(name: str, own: list[dict[str, str]] = own, steps: list[int] = steps) -> list[float]:
                return [float(np.mean([float(r[name]) for r in own if int(r["decisions"]) == step])) for step in steps]

            seeds = len({row["seed"] for row in own})
            label = f"{algorithm.__name__}, {seeds} {'seeds' if seeds > 1 else 'seed'}"
            curves.plot(steps, mean("return"), "o-", color=f"C{number}", label=label)
            curves.plot(steps, mean("network"), "x:", color=f"C{number}")
            errors.plot(steps, mean("value"), "o-", color=f"C{number}", label=f"{algorithm.__name__}: value")
            errors.plot(steps, mean("mc_return"), "x:", color=f"C{number}")
        curves.plot([], [], "kx:", label="network alone")
        errors.plot([], [], "kx:", label="discounted return")
        for axes in (curves, errors):
            axes.set(xlabel="agent decisions", title=f"{task}, small models")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
        curves.set_ylabel(f"return, mean of {EPISODES} episodes")
        errors.set_ylabel("at the first states of an episode")
    for figure, name in zip(figures, ("comparison.png", "overestimation.png"), strict=True):
        figure.savefig(folder / name, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train one method on one task")
    trainer.add_argument("method", choices=METHODS)
    trainer.add_argument("task", help=f"environment, such as {' or '.join(TASKS)}")
    trainer.add_argument("--seed", type=int, default=1)
    trainer.add_argument("--steps", type=int, help="decisions instead of the preset's")
    trainer.add_argument("--every", type=int, default=3_000, help="decisions between evaluations")
    trainer.add_argument("--compile", action="store_true", help="compile plan and update")
    trainer.add_argument("--save", type=Path, help="folder for the trained agent and its replay buffer")
    for command in (trainer, commands.add_parser("plot", help="draw the pictures")):
        command.add_argument("--data", type=Path, default=RESULTS / "comparison.csv", help="CSV file of the runs")
    args = parser.parse_args()
    if args.command == "plot":
        plot(args.data, args.data.parent)
    else:
        changed = {"compile": args.compile} | ({"n_timesteps": args.steps} if args.steps else {})
        model = train(args.method, args.task, args.seed, args.every, args.data, **changed)
        if args.save:
            save(model, args.save, args.task)


if __name__ == "__main__":
    main()
