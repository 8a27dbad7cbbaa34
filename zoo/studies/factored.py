"""
Fac-TDMPC compared with its expert on small models: how good a student is, and the three studies of its paper.

    python -m sb3_mpc.zoo.studies.factored train --task dmc/walker-walk-v0   # distil the zoo's agent of TDMPC2
    python -m sb3_mpc.zoo.studies.factored budget           # fewer samples and iterations
    python -m sb3_mpc.zoo.studies.factored robustness       # one action dimension executed at random, or scaled
    python -m sb3_mpc.zoo.studies.factored times            # one prediction of 512 samples at the paper's sizes
    python -m sb3_mpc.zoo.studies.factored plot

Each writes ``results/factored-<study>.csv``, to which ``train`` appends. Sizes of models and planners of the first
three are those of the preset "small", unless the command line gives others.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch.utils.flop_counter import FlopCounterMode

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import TDMPC2, FacTDMPC, zoo
from sb3_mpc.agents import load_agent
from sb3_mpc.common.networks.losses import time_slice
from sb3_mpc.fac_tdmpc.distillation import expert_scores, student_scores
from sb3_mpc.zoo.card_facts import agent_name
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.studies.comparison import EPISODES, PRESET, RESULTS
from sb3_mpc.zoo.studies.factored_times import times

SAMPLES, ITERATIONS = (128, 64, 32, 16), (3, 1)
SETTINGS = ("distill_batch_size", "distill_learning_rate", "candidate_std", "distill_temperature")  # options of train
PERTURBATIONS = ("random", 0.5)
# Table 1 of the paper, in milliseconds: experts on one thread, students on one for each action dimension
PAPER_MS: dict[str, tuple[float, ...]] = {
    "actions": (3, 4, 5, 6, 12),
    "expert dynamics": (5.83, 5.86, 5.83, 5.86, 5.96),
    "expert reward": (5.32, 5.34, 5.26, 5.28, 5.34),
    "expert values": (11.70, 11.70, 11.70, 11.71, 11.86),
    "dynamics": (1.25, 0.83, 0.77, 0.721, 0.63),
    "reward": (1.02, 0.65, 0.57, 0.48, 0.49),
    "values": (2.56, 1.71, 1.53, 1.32, 0.96),
}
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


def evaluate(
    model: FacTDMPC,
    args: argparse.Namespace,
    change: tuple[int, str | float] | None = None,
    agents: tuple[str, ...] = ("expert", "student"),
) -> Row:
    """
    :param model: distilled agent
    :param args: command line
    :param change: arguments of :class:`Perturbed`, none by default
    :param agents: which are evaluated
    :return: mean return and standard deviation of the episodes of each
    """
    wrapper = None if change is None else (lambda env: Perturbed(env, *change))
    env = make_vec_env(args.task, args.episodes, wrapper_class=wrapper)
    row: Row = {}
    for name in agents:
        model.policy.use_student(name == "student")
        env.seed(1_000)
        returns, _ = evaluate_policy(model, env, args.episodes, return_episode_rewards=True)
        row |= {name: round(float(np.mean(returns)), 1), f"{name}_std": round(float(np.std(returns)), 1)}
    model.policy.use_student(True)
    return row


@th.no_grad()
def rank_correlation(model: FacTDMPC, planned: bool, candidates: int = 64, states: int = 128) -> float:
    """
    :param model: distilled agent with its replay buffer
    :param planned: draw sequences from the expert's plans, as in the last iterations, instead of uniform ones
    :param candidates: action sequences for each state
    :param states: number of states
    :return: Spearman's correlation between the returns that expert and student predict, mean over states
    """
    generator = th.Generator().manual_seed(0)
    expert, student, planner = model.policy.world_model, model.policy.student, model.policy.planner
    observations = time_slice(model.replay_buffer.sample(states).observations, 0)
    z, dim, horizon = expert.encode(observations), expert.action_dim, model.horizon
    if planned:
        noise = planner.draw(states, generator, explore=True)
        plan = planner.plan(z, th.zeros(states, horizon, dim), noise)
        mean, std = (x.transpose(0, 1).unsqueeze(2) for x in (plan.mean, plan.std))
        actions = (mean + std * th.randn(horizon, states, candidates, dim, generator=generator)).clamp(-1, 1)
        last = z.unsqueeze(1).expand(-1, candidates, -1)
        for action in actions:
            last = expert.next(last, action)
        actions = th.cat([actions, expert.act(last, th.randn(states, candidates, dim, generator=generator))[None]])
    else:
        actions = th.rand(horizon + 1, states, candidates, dim, generator=generator) * 2 - 1
    its, *_ = expert_scores(expert, z, actions, th.zeros_like(actions), model.gamma)
    mine, _ = student_scores(student, student.encode(observations), actions)
    discounts = model.gamma ** th.arange(horizon).view(-1, 1, 1)
    ranks = []
    for scores in (its, mine):
        rewards, values = scores.rewards[:-1], scores.values.mean(0)[-1]
        returns = (discounts * rewards).sum(0) + model.gamma**horizon * values
        rank = returns.argsort(-1).argsort(-1).double()
        ranks.append(rank - rank.mean(-1, keepdim=True))
    x, y = ranks
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean().item()


def multiplications(model: FacTDMPC, student: bool) -> float:
    """
    :param model: distilled agent
    :param student: of the student's plan or the expert's
    :return: multiplications and additions of one plan, in millions
    """
    policy = model.policy
    before = policy.distilled
    policy.use_student(student)
    _, planner = policy.active()
    observation, _ = policy.obs_to_tensor(model.observation_space.sample())
    noise = planner.draw(1, th.Generator().manual_seed(0), explore=False)
    with FlopCounterMode(display=False) as counter:
        policy.plan(observation, th.zeros(1, planner.horizon, planner.action_dim), None, noise)
    policy.use_student(before)
    return round(counter.get_total_flops() / 1e6, 1)


def expert_and_data(args: argparse.Namespace) -> tuple[TDMPC2, Any]:
    """
    :param args: command line
    :return: agent and replay buffer that the study "comparison" has saved; without them the agent of the zoo, and
        transitions collected by it, a fifth of which are random
    """
    name = f"{agent_name('tdmpc2', args.task)}-{args.seed}"
    if (args.expert / f"{name}.zip").exists():
        return TDMPC2.load(args.expert / name, device="cpu"), args.expert / f"{name}-buffer"
    expert: Any = zoo.load("tdmpc2", args.task, device="cpu")
    env = make_vec_env(args.task, 10, seed=args.seed)
    start = args.decisions // 5
    collector = FacTDMPC("MlpPolicy", env, expert=expert, learning_starts=start, distill_steps=0, seed=args.seed)
    return expert, collector.learn(args.decisions).replay_buffer


def train(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: one row: expert and student after training
    """
    settings = load_preset("fac_tdmpc", args.task, PRESET)
    for name in ("policy", "n_timesteps", "n_envs"):
        del settings[name]
    steps = settings.pop("distill_steps") if args.updates is None else args.updates
    settings |= {name: value for name, value in vars(args).items() if name in SETTINGS and value is not None}
    if args.latent_dim is not None:
        settings["policy_kwargs"] = {**settings["policy_kwargs"], "student_latent_dim": args.latent_dim}
    if args.net_arch is not None:
        settings["policy_kwargs"] = {**settings["policy_kwargs"], "student_net_arch": args.net_arch}
    expert, data = expert_and_data(args)
    model = FacTDMPC.distill(expert, data, steps, compile=args.compile, **settings)
    model.save(args.agent)
    row = dict(task=args.task, seed=args.seed, decisions=expert.num_timesteps, distill_steps=steps)
    for name, planned in (("rank_correlation", False), ("planned_correlation", True)):
        row[name] = round(rank_correlation(model, planned), 3)
    row |= evaluate(model, args)
    planner = model.policy.student_planner
    planner.num_pi_trajs, proposals = 0, planner.num_pi_trajs
    without = evaluate(model, args, agents=("student",))
    planner.num_pi_trajs = proposals
    row |= {f"{name}_without_proposals": value for name, value in without.items()}
    row |= dict(expert_mflop=multiplications(model, False), student_mflop=multiplications(model, True))
    yield row | dict(settings=" ".join(f"{name}={value}" for name, value in settings.items()))


def distilled(path: Path) -> FacTDMPC:
    """
    :param path: what ``train`` or ``factored_rounds`` has saved
    :return: the agent
    """
    model: Any = load_agent(path, device="cpu") if path.suffix == ".safetensors" else FacTDMPC.load(path, device="cpu")
    return model


def budget(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each size of the planner
    """
    model = distilled(args.agent)
    for iterations in args.iterations:
        for samples in args.samples:
            # An eighth of the samples as elites; as proposals an eighth of the expert's and half of the student's
            for planner, part in ((model.policy.planner, 8), (model.policy.student_planner, 2)):
                planner.num_samples, planner.iterations = samples, iterations
                planner.num_elites, planner.num_pi_trajs = max(samples // 8, 2), max(samples // part, 2)
            yield dict(task=args.task, samples=samples, iterations=iterations, **evaluate(model, args))


def robustness(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each perturbation
    """
    model = distilled(args.agent)
    for dimension in range(model.action_space.shape[0]):  # type: ignore[index]
        for change in PERTURBATIONS:
            yield dict(task=args.task, dimension=dimension, change=change, **evaluate(model, args, (dimension, change)))


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
    samples, iterations = (sorted({int(row[name]) for row in rows}) for name in ("samples", "iterations"))
    for count, style in zip(reversed(iterations), ("-", ":", "--", "-."), strict=False):
        own = [row for row in rows if int(row["iterations"]) == count]
        for agent, color in (("expert", "tab:orange"), ("student", "tab:blue")):
            x, y = ([float(row[key]) for row in own] for key in ("samples", agent))
            left.plot(x, y, "o" + style, color=color, label=f"{agent}, {count} iterations")
    left.set(xlabel="samples", xscale="log", ylabel="return", ylim=(0, None), title="planner budget")
    left.set_xticks(samples, map(str, samples))
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
    rows = read(folder / "factored-times.csv")
    for network, marker in (("dynamics", "o"), ("reward", "s"), ("values", "^")):
        own = [row for row in rows if row["network"] == network]
        one = [row for row in own if row["threads"] == "1"]
        expert = {float(row["actions"]): float(row["expert_ms"]) for row in one}
        batch = {float(row["actions"]): float(row["student_ms"]) for row in one}
        separate = {float(r["actions"]): float(r["separate_ms"]) for r in own if r["threads"] == r["actions"]}
        paper = dict(zip(PAPER_MS["actions"], PAPER_MS[network], strict=True))
        paper_expert = dict(zip(PAPER_MS["actions"], PAPER_MS[f"expert {network}"], strict=True))
        for label, times_of, base, color in (
            ("one batch, one thread", batch, expert, "tab:blue"),
            ("a thread per dimension, two cores", separate, expert, "tab:green"),
            ("the same in the paper", paper, paper_expert, "tab:gray"),
        ):
            x = [count for count in times_of if count in base]
            y = [times_of[count] / base[count] for count in x]
            right.plot(x, y, marker + "-", color=color, label=f"{label}: {network}")
    title = "time of 512 samples at the paper's sizes"
    right.set(xlabel="action dimensions", ylabel="share of the expert's, one thread", ylim=(0, None), title=title)
    middle.set_ylim(0, None)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2 if axes is left else 1)
    figure.savefig(folder / "factored.png", dpi=120)


STUDIES = {"train": train, "budget": budget, "robustness": robustness, "times": times}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "plot"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--decisions", type=int, default=15_000, help="transitions to distil from, with the zoo's agent"
    )
    parser.add_argument("--updates", type=int, help="updates of the student; the preset's by default")
    parser.add_argument("--latent-dim", type=int, help="latent features of all groups of the student together")
    parser.add_argument("--net-arch", type=int, nargs="+", help="units of each group's hidden layers")
    for name in SETTINGS:
        kind = int if name == "distill_batch_size" else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="argument of the class")
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES, help="of budget; the paper: 512 256 128 64")
    parser.add_argument("--iterations", type=int, nargs="+", default=ITERATIONS, help="of budget; the paper: 6 4 2 1")
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
    path = args.folder / f"factored-{args.study}.csv"
    columns = next(csv.reader(path.open()), None) if args.study == "train" and path.exists() else None
    with path.open("w" if columns is None else "a", newline="") as file:
        writer = None if columns is None else csv.DictWriter(file, columns)
        for row in STUDIES[args.study](args):
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
