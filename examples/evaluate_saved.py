"""Load a saved model and evaluate it; without a model, train a small one first."""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", help="file written by model.save()")
parser.add_argument("--env", default="Pendulum-v1", help="environment that it was trained in")
parser.add_argument("--steps", type=int, default=2_500, help="agent decisions of the training, if there is no model")
args = parser.parse_args()

if args.model is None:
    small = dict(num_samples=128, num_elites=16, iterations=3, policy_kwargs=dict(model_size=1))  # bearable on a CPU
    TDMPC2("MlpPolicy", args.env, **small).learn(args.steps, progress_bar=True).save("logs/small")
    args.model = "logs/small.zip"

model = TDMPC2.load(args.model)
# Ten environments make their plans in one batch, which is much faster than ten episodes one after the other
env = make_vec_env(args.env, n_envs=10, seed=1)
mean, std = evaluate_policy(model, env, n_eval_episodes=10, deterministic=True)
print(f"Planning: return over 10 episodes {mean:.0f} +- {std:.0f}")

# The policy prior acts without planning: weaker, but hundreds of times faster
mean, std = evaluate_policy(model.policy.actor, env, n_eval_episodes=10, deterministic=True)
print(f"Policy prior alone: return over 10 episodes {mean:.0f} +- {std:.0f}")
