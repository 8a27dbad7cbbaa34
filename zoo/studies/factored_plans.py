"""
Fac-TDMPC: what a student's plans begin with. Returns of one student, as ``factored_rounds`` leaves it in the folder of
its expert, by the standard deviation of the first sequences and the share of the expert's policy in their mean.

    python -m sb3_mpc.zoo.studies.factored_plans experts/runs/tdmpc2-best-dmc-walker-walk-v0-0 dmc/walker-walk-v0

appends a row for each setting to ``results/factored-plans.csv``, and one for the expert's policy network.
"""

import argparse
from pathlib import Path
from typing import Any

from stable_baselines3.common.env_util import make_vec_env

import sb3_mpc.envs  # noqa: F401
from sb3_mpc.agents import load_agent
from sb3_mpc.zoo.doctor import processor
from sb3_mpc.zoo.studies.comparison import EPISODES, RESULTS
from sb3_mpc.zoo.studies.factored_rounds import returns
from sb3_mpc.zoo.studies.pretraining import append

SETTINGS = ((2.0, 0.0), (0.3, 0.0), (0.3, 0.5), (0.3, 1.0))  # max_std and policy_start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run with agent.safetensors and student.safetensors")
    parser.add_argument("task", help="its environment")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the CSV file goes")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    env = make_vec_env(args.task, EPISODES)
    expert: Any = load_agent(args.run / "agent.safetensors", env, device="cpu")
    model: Any = load_agent(args.run / "student.safetensors", env, device="cpu")
    planner = model.policy.student_planner
    rows: list[tuple[Any, ...]] = []
    for planner.max_std, planner.policy_start in SETTINGS:
        found = returns(model, args.task)
        rows.append(("student", planner.max_std, planner.policy_start, *found))
    rows.append(("expert's network", None, None, *returns(expert.actor, args.task)))
    names = ("agent", "max_std", "policy_start", "return", "return_std")
    about = dict(proposals=planner.num_pi_trajs, samples=planner.num_samples, cpu=processor()["name"])
    for values in rows:
        row = dict(task=args.task, **dict(zip(names, values, strict=True)), **about)
        append([row], args.folder / "factored-plans.csv")
        print(row, flush=True)


if __name__ == "__main__":
    main()
