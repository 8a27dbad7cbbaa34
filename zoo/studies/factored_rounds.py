"""
Fac-TDMPC with rounds of aggregation: a student is distilled from the data of its expert's training; then it collects
itself and is distilled from both, so that it learns what the expert would do in the states that it gets into.

    python -m sb3_mpc.zoo benchmark --tasks dmc/walker-walk-v0 --algo tdmpc2 --preset best --save-data --folder experts
    python -m sb3_mpc.zoo.studies.factored_rounds experts/runs/tdmpc2-best-dmc-walker-walk-v0-0 dmc/walker-walk-v0

appends a row for the first student and for that of each round to ``results/factored-rounds.csv``; the last student is
kept in the folder of the run.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import FacTDMPC
from sb3_mpc.agents import load_agent, save_agent
from sb3_mpc.agents.training_files import read_buffer
from sb3_mpc.offline import Dataset
from sb3_mpc.zoo.doctor import processor
from sb3_mpc.zoo.studies.comparison import EPISODES, RESULTS
from sb3_mpc.zoo.studies.factored import multiplications
from sb3_mpc.zoo.studies.pretraining import append

FILE = "factored-rounds.csv"
SETTINGS: dict[str, Any] = dict(distill_batch_size=64, distill_learning_rate=1e-3)  # those of the preset "small"


def returns(model: Any, task: str) -> list[float]:
    """
    :param model: agent
    :param task: environment
    :return: mean return of ten episodes, always the same ones, and standard deviation
    """
    found, _ = evaluate_policy(model, make_vec_env(task, EPISODES, seed=1_000), EPISODES, return_episode_rewards=True)
    return [round(float(np.mean(found)), 1), round(float(np.std(found)), 1)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of benchmark --save-data: the expert and its data")
    parser.add_argument("task", help="its environment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=4_000, help="of the first student")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--decisions", type=int, default=5_000, help="collected in a round, by ten environments")
    parser.add_argument("--more", type=int, default=1_500, help="updates in a round")
    parser.add_argument("--features", type=int, default=32, help="latent features of each group of the student")
    parser.add_argument("--units", type=int, default=64, help="units of its two hidden layers")
    parser.add_argument("--samples", type=int, help="of its plans; the expert's number by default")
    parser.add_argument("--iterations", type=int, help="of its plans; the expert's number by default")
    parser.add_argument("--max-std", type=float, default=0.3, help="initial standard deviation of the student's plans")
    parser.add_argument("--policy-start", type=float, default=0.5, help="share of the expert's policy in their start")
    parser.add_argument("--candidate-std", type=float, nargs="+", default=[0.5], help="of the perturbations")
    parser.add_argument("--compile", action="store_true", help="compile updates and plans of the student")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the CSV file goes")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    env = make_vec_env(args.task, EPISODES, seed=args.seed)
    expert: Any = load_agent(args.run / "agent.safetensors", env, device="cpu")
    data = Dataset.from_replay_buffer(read_buffer(args.run / "replay_buffer.npz"), env=env)
    groups = env.action_space.shape[0]  # type: ignore[index]
    sizes: dict[str, Any] = dict(student_latent_dim=args.features * groups, student_net_arch=[args.units] * 2)
    row: dict[str, Any] = dict(task=args.task, seed=args.seed, features=args.features, units=args.units)
    row["candidate_std"] = " ".join(f"{std:g}" for std in args.candidate_std)
    row |= dict(zip(("expert", "expert_std"), returns(expert, args.task), strict=True))
    plans = dict(num_samples=args.samples, iterations=args.iterations)
    sizes["student_planner_kwargs"] = dict(max_std=args.max_std, policy_start=args.policy_start)
    settings = dict(SETTINGS, **plans, candidate_std=args.candidate_std, distill_steps=args.more)
    settings |= dict(policy_kwargs=sizes, seed=args.seed, compile=args.compile)
    started, evaluating = time.process_time(), 0.0
    model = FacTDMPC.distill(expert, data, args.updates, **settings)
    for number in range(args.rounds + 1):
        if number > 0:
            model.learn(args.decisions, offline_data=data, reset_num_timesteps=False)
        before = time.process_time()
        student = dict(zip(("student", "student_std"), returns(model, args.task), strict=True))
        network = dict(zip(("network", "network_std"), returns(model.actor, args.task), strict=True))
        evaluating += time.process_time() - before
        row |= dict(samples=model.num_samples, iterations=model.iterations, max_std=args.max_std)
        row["policy_start"] = args.policy_start
        row |= dict(round=number, decisions=number * args.decisions, updates=args.updates + number * args.more)
        row |= dict(student, **network, cpu_minutes=round((time.process_time() - started - evaluating) / 60, 1))
        row |= dict(expert_mflop=multiplications(model, False), student_mflop=multiplications(model, True))
        append([dict(row, cpu=processor()["name"])], args.folder / FILE)
        save_agent(model, args.run / "student.safetensors", dtype="float16")
        print(row, flush=True)


if __name__ == "__main__":
    main()
