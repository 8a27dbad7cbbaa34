"""
Effect of bfloat16 on plans: ``python -m sb3_mpc.zoo.studies.precision``.

At states that a trained agent visits, the deterministic plan in bfloat16 is compared with the one in float32 from the
same random numbers, and plans in float32 with those from other random numbers, which is the planner's own spread. This
is measured for deterministic plans (mean of the elites) and for those of training (one elite, drawn), both without
exploration noise. ``--episodes`` evaluates the agent in both precisions instead, and appends to
``results/precision-returns.csv``.
"""

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env

import sb3_mpc.envs  # noqa: F401
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.execution.acceleration import Acceleration
from sb3_mpc.zoo import load
from sb3_mpc.zoo.evaluate import measure

KINDS = ("bfloat16", "other samples")


def distances(model: WorldModelAlgorithm, env: gym.Env, states: int, every: int, seeds: int) -> dict[str, list[float]]:
    """
    :param model: trained agent
    :param env: environment to visit
    :param states: number of states
    :param every: decisions between two of them
    :param seeds: number of plans at each state, each with other random numbers
    :return: largest differences of an action's entries, ``states * seeds`` of each kind
    """
    policy, planner = model.policy, model.policy.active()[1]
    policy.set_training_mode(False)
    result: dict[str, list[float]] = {f"{what}{when}": [] for when in ("", ", training") for what in KINDS}
    observation, _ = env.reset(seed=0)
    state = None
    for step in range(states * every):
        if step % every == 0:
            tensor, _ = policy.obs_to_tensor(observation)
            mean = th.zeros(1, planner.horizon, planner.action_dim) if state is None else th.as_tensor(state[0])
            draws = [planner.draw(1, th.Generator().manual_seed(seed), explore=True) for seed in range(seeds)]
            for when in ("", ", training"):
                plans: list[list[th.Tensor]] = []
                for bfloat16 in (False, True):
                    policy.acceleration = Acceleration(compiles=False, bfloat16=bfloat16)
                    noises = draws if when else [noise._replace(selection=None) for noise in draws]
                    plans.append([policy.plan(tensor, mean, None, noise).elite_action for noise in noises])
                full, reduced = plans
                for what, others in zip(KINDS, (reduced, full[1:] + full[:1]), strict=True):
                    result[what + when] += largest(full, others)
            policy.acceleration = Acceleration(compiles=False, bfloat16=False)
        action, state = model.predict(observation, state, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            (observation, _), state = env.reset(), None
    return result


def returns(model: WorldModelAlgorithm, env_id: str, episodes: int) -> dict[str, float]:
    """
    :param model: trained agent
    :param env_id: environment
    :param episodes: number of episodes, the same ones in both precisions
    :return: mean and standard deviation of the return in float32 and in bfloat16
    """
    env = make_vec_env(env_id, min(episodes, 10))
    result: dict[str, float] = {}
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        model.policy.acceleration = Acceleration(compiles=False, bfloat16=bfloat16)
        env.seed(0)
        found = measure(model, env, episodes)
        result |= {name: round(found["mean"], 2), f"{name}_std": round(found["std"], 2)}
    return result


def largest(actions: list[th.Tensor], others: list[th.Tensor]) -> list[float]:
    """
    :param actions: actions ``[1, A]``
    :param others: as many actions to compare them with
    :return: largest difference of their entries, for each pair
    """
    return [(a - b).abs().max().item() for a, b in zip(actions, others, strict=True)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="tdmpc2")
    parser.add_argument("--env", default="dmc/cartpole-swingup-v0")
    parser.add_argument("--states", type=int, default=20)
    parser.add_argument("--every", type=int, default=12, help="decisions between two states")
    parser.add_argument("--seeds", type=int, default=8, help="plans at each state")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision")
    parser.add_argument("--episodes", type=int, help="compare returns over so many episodes instead")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.episodes:
        found = returns(load(args.algo, args.env, device="cpu"), args.env, args.episodes)
        row, path = (
            dict(algo=args.algo, task=args.env, episodes=args.episodes) | found,
            Path(f"{args.output}-returns.csv"),
        )
        new = not path.exists()
        with path.open("a", newline="") as file:
            csv.writer(file).writerows([*([row] if new else []), row.values()])
        print(row)
        return
    env = gym.make(args.env)
    result = distances(load(args.algo, args.env, env, device="cpu"), env, args.states, args.every, args.seeds)
    with args.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(result)
        writer.writerows(zip(*([round(x, 5) for x in values] for values in result.values()), strict=True))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in result.items():
        label = f"{name}: mean {np.mean(values):.3f}, median {np.median(values):.3f}"
        axes.plot(np.sort(values), np.linspace(0, 1, len(values)), label=label)
        print(label)
    axes.set(
        xlabel="largest difference of an action's entries (range 2)", ylabel="fraction of plans below", title=args.env
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
