"""
Fac-TDMPC compared with its expert on small models: the three studies of its paper, on one agent that this script
distils.

    python -m sb3_mpc.zoo.studies.comparison train tdmpc2 dmc/walker-walk-v0 --save logs  # the expert and its data
    python -m sb3_mpc.zoo.studies.factored train            # the agent distilled from them
    python -m sb3_mpc.zoo.studies.factored budget           # fewer samples and iterations
    python -m sb3_mpc.zoo.studies.factored robustness       # one action dimension executed at random, or scaled
    python -m sb3_mpc.zoo.studies.factored times            # one prediction of 512 samples at the paper's sizes
    python -m sb3_mpc.zoo.studies.factored plot

Each writes ``results/factored-<study>.csv``. Models and planners of the first three are those of the preset "small".
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import TDMPC2, FacTDMPC
from sb3_mpc.fac_tdmpc.distillation import expert_scores, student_scores
from sb3_mpc.zoo.cards import agent_name
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.studies.comparison import EPISODES, PRESET, RESULTS

ACTIONS = {"reacher-three": 3, "hopper": 4, "fish": 5, "walker": 6, "quadruped": 12}  # of the paper's Table 1
SAMPLES, ITERATIONS = (128, 64, 32, 16), (3, 1)
PERTURBATIONS = ("random", 0.5)
Row = dict[str, Any]


class Perturbed(gym.ActionWrapper):
    """
    Changes one action dimension without the knowledge of the agent.

    :param env: environment
    :param dimension: index of that dimension
    :param change: "random" for clipped normal draws in its place, or a factor on it
    """

    def __init__(self, env: gym.Env, dimension: int, change: str | float) -> None:
        super().__init__(env)
        self.dimension, self.change = dimension, change

    def action(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: action of the agent ``[A]``
        :return: action that is executed ``[A]``
        """
        action = action.copy()
        own = action[self.dimension]
        action[self.dimension] = (
            np.clip(self.np_random.standard_normal(), -1, 1) if self.change == "random" else float(self.change) * own
        )
        return action


def evaluate(model: FacTDMPC, args: argparse.Namespace, change: tuple[int, str | float] | None = None) -> Row:
    """
    :param model: distilled agent
    :param args: command line
    :param change: arguments of :class:`Perturbed`, none by default
    :return: mean return of expert and student
    """
    wrapper = None if change is None else (lambda env: Perturbed(env, *change))
    env = make_vec_env(args.task, args.episodes, wrapper_class=wrapper)
    row: Row = {}
    for name, student in (("expert", False), ("student", True)):
        model.policy.use_student(student)
        env.seed(1_000)
        mean, std = evaluate_policy(model, env, args.episodes)
        row |= {name: round(float(np.mean(mean)), 1), f"{name}_std": round(float(np.mean(std)), 1)}
    model.policy.use_student(True)
    return row


def rank_correlation(model: FacTDMPC, candidates: int = 64, states: int = 128) -> float:
    """
    :param model: distilled agent with its replay buffer
    :param candidates: random action sequences for each state
    :param states: number of states
    :return: Spearman's correlation between the returns that expert and student predict, mean over states
    """
    generator = th.Generator().manual_seed(0)
    batch = model.replay_buffer.sample(states)
    shape = (model.horizon + 1, states, candidates, model.action_space.shape[0])  # type: ignore[index]
    actions = th.rand(shape, generator=generator) * 2 - 1
    expert, student = model.policy.world_model, model.policy.student
    observations: Any = batch.observations
    with th.no_grad():
        its, *_ = expert_scores(expert, expert.encode(observations[0]), actions, th.zeros_like(actions), model.gamma)
        mine, _ = student_scores(student, student.encode(observations[0]), actions)
    discounts = model.gamma ** th.arange(model.horizon).view(-1, 1, 1)
    ranks = []
    for scores in (its, mine):
        rewards, values = scores.rewards[:-1], scores.values.mean(0)[-1]
        returns = (discounts * rewards).sum(0) + model.gamma**model.horizon * values
        rank = returns.argsort(-1).argsort(-1).double()
        ranks.append(rank - rank.mean(-1, keepdim=True))
    x, y = ranks
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean().item()


def train(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: one row: expert and student after training
    """
    settings = load_preset("fac_tdmpc", args.task, PRESET)
    for name in ("policy", "n_timesteps", "n_envs"):
        del settings[name]
    name = f"{agent_name('tdmpc2', args.task)}-{args.seed}"
    expert = TDMPC2.load(args.expert / name, device="cpu")
    steps = settings.pop("distill_steps")
    model = FacTDMPC.distill(expert, args.expert / f"{name}-buffer", steps, compile=args.compile, **settings)
    model.save(args.agent)
    row = dict(task=args.task, seed=args.seed, decisions=expert.num_timesteps, distill_steps=steps)
    row |= dict(rank_correlation=round(rank_correlation(model), 3))
    yield row | evaluate(model, args)


def budget(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each size of the planner
    """
    model = FacTDMPC.load(args.agent, device="cpu")
    planners = (model.policy.planner, model.policy.student_planner)
    for iterations in ITERATIONS:
        for samples in SAMPLES:
            for planner in planners:  # an eighth of the samples as elites and as proposals, as in the preset
                planner.num_samples, planner.iterations = samples, iterations
                planner.num_elites = max(samples // 8, 2)
                planner.num_pi_trajs = min(planner.num_pi_trajs, 1) * planner.num_elites  # the student has none
            yield dict(samples=samples, iterations=iterations, **evaluate(model, args))


def robustness(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each perturbation
    """
    model = FacTDMPC.load(args.agent, device="cpu")
    for dimension in range(model.action_space.shape[0]):  # type: ignore[index]
        for change in PERTURBATIONS:
            yield dict(dimension=dimension, change=change, **evaluate(model, args, (dimension, change)))


def milliseconds(function: Callable[[], Any], runs: int) -> float:
    """
    :param function: function to measure
    :param runs: number of calls, after three that do not count
    :return: median time of a call
    """
    times = []
    with th.no_grad():
        for _ in range(runs + 3):
            started = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - started))
    return round(float(np.median(times[3:])), 3)


def predictions(count: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """
    :param count: number of action dimensions
    :return: predictions of 512 samples by expert and student, untrained and of the paper's sizes
    """
    box = spaces.Box(-1, 1, (count,), np.float32)
    policy: Any = FacTDMPC.policy_aliases["MlpPolicy"](spaces.Box(-1, 1, (24,), np.float32), box, lambda _: 1e-4)
    expert, student = policy.world_model, policy.student
    z, action, members = th.rand(512, expert.latent_dim), th.rand(512, count), th.arange(2)
    blocks = student.split(th.rand(512, student.latent_dim)).view(count, 512, -1)
    actions = action.T.reshape(count, 512, 1)
    return {
        "dynamics": (lambda: expert.next(z, action), lambda: student.next(blocks, actions)),
        "reward": (lambda: expert.reward(z, action), lambda: student.reward(blocks, actions)),
        "values": (lambda: expert.value(z, action, members), lambda: student.value(blocks, actions)),
    }


def times(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each number of action dimensions, network and number of threads
    """
    available = th.get_num_threads()
    for name, count in ACTIONS.items():
        networks = predictions(count)
        for threads in sorted({1, available}):
            th.set_num_threads(threads)
            for network, (its, mine) in networks.items():
                row: Row = dict(model=name, actions=count, network=network, threads=threads)
                yield row | dict(expert_ms=milliseconds(its, args.runs), student_ms=milliseconds(mine, args.runs))
        th.set_num_threads(available)


def read(path: Path) -> list[dict[str, str]]:
    """
    :param path: CSV file
    :return: its rows
    """
    with path.open() as file:
        return list(csv.DictReader(file))


def plot(folder: Path) -> None:
    """
    :param folder: folder with the CSV files, in which ``factored.png`` is written
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = read(folder / "factored-budget.csv")
    for iterations, style in zip(ITERATIONS, ("-", ":"), strict=True):
        own = [row for row in rows if int(row["iterations"]) == iterations]
        for agent, color in (("expert", "tab:orange"), ("student", "tab:blue")):
            x, y = ([float(row[key]) for row in own] for key in ("samples", agent))
            left.plot(x, y, "o" + style, color=color, label=f"{agent}, {iterations} iterations")
    left.set(xlabel="samples", xscale="log", ylabel="return", title="planner budget")
    left.set_xticks(SAMPLES, map(str, SAMPLES))
    left.minorticks_off()
    rows = read(folder / "factored-robustness.csv")
    for index, change in enumerate(map(str, PERTURBATIONS)):
        own = [row for row in rows if row["change"] == change]
        for shift, agent, color in ((-0.2, "expert", "tab:orange"), (0.2, "student", "tab:blue")):
            values = [float(row[agent]) for row in own]
            middle.plot([index + shift] * len(values), values, "o", color=color, alpha=0.5)
            middle.plot(index + shift, np.mean(values), "_", ms=25, color=color, label=agent if index == 0 else None)
    labels = ["random" if change == "random" else f"times {change}" for change in PERTURBATIONS]
    middle.set_xticks(range(len(labels)), labels)
    middle.set(title="one action dimension executed otherwise", ylabel="return")
    rows = [row for row in read(folder / "factored-times.csv") if row["threads"] == "1"]
    for network, marker in (("dynamics", "o"), ("reward", "s"), ("values", "^")):
        own = [row for row in rows if row["network"] == network]
        for agent, color in (("expert", "tab:orange"), ("student", "tab:blue")):
            x, y = ([float(row[key]) for row in own] for key in ("actions", f"{agent}_ms"))
            right.plot(x, y, marker + "-", color=color, label=f"{agent}: {network}")
    right.set(xlabel="action dimensions", ylabel="ms", yscale="log", title="512 samples, paper's sizes, one thread")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(folder / "factored.png", dpi=120)


STUDIES = {"train": train, "budget": budget, "robustness": robustness, "times": times}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "plot"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--task", default="dmc/walker-walk-v0", help="environment")
    parser.add_argument("--expert", type=Path, default=Path("logs"), help="folder of the expert and its replay buffer")
    parser.add_argument("--compile", action="store_true", help="compile the updates of the student")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--runs", type=int, default=100, help="measurements of each time")
    parser.add_argument("--agent", type=Path, default=Path("logs/factored.zip"), help="where the trained agent is kept")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where CSV files and picture go")
    args = parser.parse_args()
    if args.study == "plot":
        plot(args.folder)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / f"factored-{args.study}.csv").open("w", newline="") as file:
        writer: csv.DictWriter | None = None
        for row in STUDIES[args.study](args):
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
