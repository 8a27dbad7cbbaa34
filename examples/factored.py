"""Planning for each action dimension by itself: train an expert, distil it, compare what a decision costs."""

import argparse
import time

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2, FacTDMPC

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20_000, help="decisions of the expert, updates of the student")
args = parser.parse_args()

env = gym.make("dmc/walker-walk-v0")
expert = TDMPC2("MlpPolicy", env, policy_kwargs=dict(model_size=1), verbose=1).learn(args.steps)
# FacTDMPC("MlpPolicy", env).learn(steps) does both, with an expert of its own
student = FacTDMPC.distill(expert, steps=args.steps)

for agent in (expert, student):
    mean, std = evaluate_policy(agent, expert.get_env(), n_eval_episodes=10)
    observation, _ = env.reset()
    agent.predict(observation, deterministic=True)
    started = time.perf_counter()
    agent.predict(observation, deterministic=True)
    milliseconds = 1e3 * (time.perf_counter() - started)
    print(f"{type(agent).__name__}: return {mean:.0f} +- {std:.0f}, {milliseconds:.0f} ms a plan")
student.save("logs/walker-factored")
