"""
Agents of the zoo without planning: their own policy network, and one that has imitated the planner.

    python -m sb3_mpc.zoo.studies.imitation dmc/cup-catch-v0 dmc/walker-run-v0

Each task appends a row to ``results/imitation.csv``, or to what ``--table`` names: returns of 10 episodes by the
``planner``, by the agent's own ``network``, and by the ``imitating`` one, with their standard deviations; milliseconds
for one action by planner and network; and ``minutes`` of processor time that the imitation took.
"""

import argparse
import functools
import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import zoo
from sb3_mpc.common.imitation import imitate_planner
from sb3_mpc.zoo.studies.comparison import RESULTS
from sb3_mpc.zoo.studies.factored_times import milliseconds
from sb3_mpc.zoo.studies.pretraining import append

ENVIRONMENTS, SEED = 10, 1_000


def study(task: str, algo: str, decisions: int, updates: int, episodes: int) -> dict[str, Any]:
    """
    :param task: environment of an agent of the zoo
    :param algo: its method
    :param decisions: decisions of the imitation
    :param updates: updates of each of its rounds
    :param episodes: episodes of an evaluation
    :return: a row of the table
    """
    env = make_vec_env(task, n_envs=ENVIRONMENTS, seed=0)
    model = zoo.load(algo, task, env=env, device="cpu")
    eval_env = make_vec_env(task, n_envs=ENVIRONMENTS)

    def measured(name: str, policy: Any) -> dict[str, float]:
        eval_env.seed(SEED)
        mean, std = map(float, evaluate_policy(policy, eval_env, episodes, warn=False))  # type: ignore[arg-type]
        print(f"{task} {name}: {mean:.1f} +- {std:.1f}", flush=True)
        return {name: round(mean, 1), f"{name}_std": round(std, 1)}

    row: dict[str, Any] = dict(task=task, algo=algo, decisions=decisions, updates=updates)
    row |= measured("planner", model) | measured("network", model.actor)
    begin = time.process_time()
    policy = imitate_planner(model, decisions, gradient_steps=updates)
    row["minutes"] = round((time.process_time() - begin) / 60, 1)
    row |= measured("imitating", policy)
    observation: Any = eval_env.reset()
    for name, actor in (("planner", model), ("network", policy)):
        row[f"{name}_ms"] = milliseconds(functools.partial(actor.predict, observation[0]), 50)
    return row


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="ID", help="environments of agents of the zoo")
    parser.add_argument("--algo", default="tdmpc2")
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=4_000, help="in each of the four rounds")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--table", default="imitation.csv", help="file in `results` that gets the rows")
    args = parser.parse_args()
    th.set_num_threads(1)
    np.random.seed(0)
    th.manual_seed(0)
    for task in args.tasks:
        append([study(task, args.algo, args.decisions, args.updates, args.episodes)], RESULTS / args.table)


if __name__ == "__main__":
    main()
