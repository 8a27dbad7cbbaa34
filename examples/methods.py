"""The same script for every method: train, then compare planning with the policy network alone."""

import argparse

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc
import sb3_mpc.envs

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("method", nargs="?", choices=sb3_mpc.__all__, default="BMPC")
parser.add_argument("--env", default="dmc/walker-walk-v0")
parser.add_argument("--steps", type=int, default=20_000, help="agent decisions")
args = parser.parse_args()

# Reduced for a CPU; leave these settings out for the paper's
settings = dict(num_samples=256, num_elites=32, policy_kwargs=dict(model_size=1))
model = getattr(sb3_mpc, args.method)("MlpPolicy", gym.make(args.env), verbose=1, **settings)
model.learn(args.steps, progress_bar=True)

for name, agent in (("Planner", model), ("Policy network alone", model.actor)):
    mean, std = evaluate_policy(agent, model.get_env(), n_eval_episodes=10)
    print(f"{name}: return over 10 episodes: {mean:.0f} +- {std:.0f}")
model.save(f"logs/{args.method.lower()}")
