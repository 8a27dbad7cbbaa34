"""
What it does to an agent whether the first episodes of several environments end one after the other or all together
(``Collection.stagger_episodes``)::

    python -m sb3_mpc.zoo.studies.staggered HalfCheetah-v5 dmc/walker-run-v0 --decisions 25000 --seeds 0 1

trains TDMPC2 with the preset ``best`` both ways, and appends the returns after half of the decisions and after all of
them to ``results/staggered.csv``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import TDMPC2
from sb3_mpc.common.presets import OF_THE_RUN
from sb3_mpc.zoo.doctor import processor
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.studies.comparison import EPISODES, RESULTS
from sb3_mpc.zoo.studies.pretraining import append

FILE = "staggered.csv"


class Halfway(BaseCallback):
    """
    Evaluates once in the middle of the training, and :meth:`measure` at its end.

    :param row: what the run is
    :param path: CSV file
    """

    def __init__(self, row: dict[str, Any], path: Path) -> None:
        super().__init__()
        self.row, self.path, self.measured = row, path, False
        self.started, self.spent = time.process_time(), 0.0

    def _on_step(self) -> bool:
        if not self.measured and self.num_timesteps >= self.row["decisions"] // 2:
            self.measure()
        return True

    def measure(self) -> None:
        """Append a row."""
        self.measured, before = True, time.process_time()
        env = make_vec_env(self.row["task"], EPISODES, seed=1_000)
        found, _ = evaluate_policy(self.model, env, EPISODES, return_episode_rewards=True)
        env.close()
        results = {"at": self.num_timesteps, "return": round(np.mean(found), 1), "return_std": round(np.std(found), 1)}
        minutes = round((before - self.started - self.spent) / 60, 1)
        self.spent += time.process_time() - before
        append([{**self.row, **results, "cpu_minutes": minutes, "cpu": processor()["name"]}], self.path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--decisions", type=int, default=25_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the CSV file goes")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        settings = load_preset("tdmpc2", task, "best")
        policy, n_envs, _ = (settings.pop(name) for name in OF_THE_RUN)
        for seed in args.seeds:
            for staggered in (True, False):
                env = make_vec_env(task, n_envs, seed=seed)
                model: Any = TDMPC2(policy, env, seed=seed, device="cpu", **settings)
                model.staggers_episodes = staggered
                row = dict(task=task, seed=seed, environments=env.num_envs, staggered=staggered)
                halfway = Halfway(row | dict(decisions=args.decisions), args.folder / FILE)
                model.learn(args.decisions, halfway)
                halfway.measure()
                env.close()


if __name__ == "__main__":
    main()
