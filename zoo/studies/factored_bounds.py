"""
What a factored model could reach at best, without training one: bounds for students of Fac-TDMPC.

    python -m sb3_mpc.zoo.studies.factored_bounds --task dmc/walker-walk-v0

Writes ``results/factored-bounds.csv``. Its rows:

- ``additive``: rank correlation between the returns that the expert predicts for action sequences, and those of a sum
  of functions of single action dimensions that is fitted to them in each state anew. A student is such a sum, but the
  same for all states. Sequences are uniform, around random ones (as the candidates of the distillation), or from the
  expert's plan in its last iteration.
- ``planned apart``: return of a planner in which each action dimension plans for itself in the expert's own model,
  while the others follow the expert's policy. A student whose groups predict exactly that would act like this.
"""

import argparse
import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import FacTDMPC, zoo
from sb3_mpc.common.networks.losses import time_slice
from sb3_mpc.fac_tdmpc.distillation import expert_scores
from sb3_mpc.zoo.studies.comparison import RESULTS

SEQUENCES, FITTED, RIDGE = 1024, 768, 0.1
SPREAD = 0.5  # of sequences around a random one
ITERATIONS, SAMPLES, ELITES = 3, 64, 8  # of the planner in which dimensions plan apart


def features(actions: np.ndarray) -> np.ndarray:
    """
    :param actions: sequences ``[N, H + 1, A]``
    :return: powers of single actions, and products of those of the same dimension ``[N, F]``
    """
    columns = [np.ones((len(actions), 1))]
    for own in np.moveaxis(actions, -1, 0):
        columns += [own, own**2, own**3]
        columns += [own[:, [i]] * own[:, [j]] for i in range(own.shape[1]) for j in range(i)]
    return np.concatenate(columns, axis=1)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """:return: Spearman's rank correlation"""
    return float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])


def additive(task: str, states: int, seed: int) -> Iterator[tuple[str, float, float]]:
    """
    :param task: task of an agent of TDMPC2 in the zoo
    :param states: number of states, from transitions that it collects, a fifth of them random
    :param seed: seed
    :return: kind of sequences, and mean and standard deviation of the rank correlation over the states
    """
    expert: Any = zoo.load("tdmpc2", task, device="cpu")
    env = make_vec_env(task, 10, seed=seed)
    collector = FacTDMPC("MlpPolicy", env, expert=expert, learning_starts=400, distill_steps=0, seed=seed)
    buffer: Any = collector.learn(2_000).replay_buffer
    model, planner, horizon = expert.policy.world_model, expert.policy.planner, expert.horizon
    generator = th.Generator().manual_seed(seed)
    z = model.encode(time_slice(buffer.sample(states).observations, 0))
    shape = (horizon + 1, states, SEQUENCES, model.action_dim)
    normal = th.randn(shape, generator=generator)
    plan = planner.plan(z, th.zeros(states, horizon, shape[-1]), planner.draw(states, generator, explore=True))
    mean, std = (part.transpose(0, 1).unsqueeze(2) for part in (plan.mean, plan.std))
    planned = (mean + std * normal[:-1]).clamp(-1, 1)
    last = z.unsqueeze(1).expand(-1, SEQUENCES, -1)
    for action in planned:
        last = model.next(last, action)
    middle = th.rand(horizon + 1, states, 1, shape[-1], generator=generator) * 2 - 1
    kinds = {
        "uniform": th.rand(shape, generator=generator) * 2 - 1,
        "around random ones": (middle + SPREAD * normal).clamp(-1, 1),
        "planned": th.cat([planned, model.act(last, normal[-1]).unsqueeze(0)]),
    }
    discounts = expert.gamma ** th.arange(horizon).view(-1, 1, 1)
    for kind, actions in kinds.items():
        scores, *_ = expert_scores(model, z, actions, th.zeros_like(actions), expert.gamma)
        values = scores.values.mean(0)[-1]
        returns = ((discounts * scores.rewards[:-1]).sum(0) + expert.gamma**horizon * values).double().numpy()
        found = []
        for own, target in zip(actions.permute(1, 2, 0, 3).double().numpy(), returns, strict=True):
            x = features(own)
            fitted = x[:FITTED].T @ x[:FITTED] + RIDGE * np.eye(x.shape[1])
            predicted = x @ np.linalg.solve(fitted, x[:FITTED].T @ target[:FITTED])
            found.append(correlation(predicted[FITTED:], target[FITTED:]))
        yield kind, float(np.mean(found)), float(np.std(found))


def planned_apart(task: str, episodes: int) -> tuple[float, float]:
    """
    :param task: task of an agent of TDMPC2 in the zoo
    :param episodes: number of episodes
    :return: mean and standard deviation of their returns
    """
    expert: Any = zoo.load("tdmpc2", task, device="cpu")
    model, horizon, gamma = expert.policy.world_model, expert.horizon, expert.gamma
    dims, generator = model.action_dim, th.Generator().manual_seed(0)
    own = th.eye(dims).view(1, dims, 1, dims)  # which action of a row its dimension decides
    env = make_vec_env(task, episodes)
    env.seed(1_000)
    observations, total, done = env.reset(), np.zeros(episodes), np.zeros(episodes, bool)
    mean = th.zeros(horizon, episodes, dims)
    while not done.all():
        z = model.encode(th.as_tensor(observations))
        mean = th.cat([mean[1:], th.zeros_like(mean[:1])])
        std = th.full_like(mean, expert.max_std)
        for _ in range(ITERATIONS):
            noise = th.randn(*mean.shape, SAMPLES, generator=generator)
            samples = (mean.unsqueeze(-1) + std.unsqueeze(-1) * noise).clamp(-1, 1)  # [H, E, A, N]
            state = z.view(episodes, 1, 1, -1).expand(-1, dims, SAMPLES, -1)
            returns = th.zeros(episodes, dims, SAMPLES)
            for t, sample in enumerate(samples):
                action = own * sample.unsqueeze(-1) + (1 - own) * model.act(state, None)
                returns += gamma**t * model.two_hot.decode(model.reward(state, action)).squeeze(-1)
                state = model.next(state, action)
            values = model.two_hot.decode(model.value(state, model.act(state, None))).mean(0)
            best, index = (returns + gamma**horizon * values.squeeze(-1)).topk(ELITES, dim=-1)
            weights = th.softmax(expert.temperature * best, dim=-1)
            elites = samples.take_along_dim(index.unsqueeze(0), dim=-1)
            mean = (weights * elites).sum(-1)
            std = (
                (weights * (elites - mean.unsqueeze(-1)).square()).sum(-1).sqrt().clamp(expert.min_std, expert.max_std)
            )
        observations, rewards, ended, _ = env.step(mean[0].numpy())
        total += rewards * ~done
        done |= ended
    return float(total.mean()), float(total.std())


@th.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="dmc/walker-walk-v0", help="task of an agent of TDMPC2 in the zoo")
    parser.add_argument("--states", type=int, default=24)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [("additive", *found) for found in additive(args.task, args.states, args.seed)]
    rows.append(("planned apart", "", *planned_apart(args.task, args.episodes)))
    with (RESULTS / "factored-bounds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "bound", "sequences", "mean", "std"])
        for bound, kind, mean, std in rows:
            writer.writerow([args.task, bound, kind, round(mean, 3), round(std, 3)])
            print(bound, kind, round(mean, 3), round(std, 3))


if __name__ == "__main__":
    main()
