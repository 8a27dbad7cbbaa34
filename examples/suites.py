"""Any environment by its id, from any suite: python examples/suites.py metaworld/assembly-v3 --steps 100000."""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401  (registers the ids; `python -m sb3_mpc.envs` lists them)
from sb3_mpc import TDMPC2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("env", help="id of an environment")
parser.add_argument("--steps", type=int, default=100_000, help="agent decisions")
parser.add_argument("--episodes", type=int, default=10, help="episodes of the evaluation")
args = parser.parse_args()

# Action repeat, episode length and success are the environment's business, the discount follows from the length. The
# model is the smallest and the planner reduced, for a CPU; on a GPU leave out all but the first two arguments.
model = TDMPC2(
    "MlpPolicy", args.env, policy_kwargs=dict(model_size=1), num_samples=128, num_elites=16, iterations=3, verbose=1
)
model.learn(args.steps, progress_bar=True)  # the table has a success_rate where the suite knows what success is

successes: list[float] = []
mean, std = evaluate_policy(
    model,
    model.get_env(),
    n_eval_episodes=args.episodes,
    callback=lambda values, _: successes.append(values["info"].get("is_success", 0)) if values["done"] else None,
)
print(f"Return over {args.episodes} episodes: {mean:.1f} +- {std:.1f}; successes: {sum(successes):.0f}")
name = args.env.replace("/", "-")
model.save(f"logs/{name}")
print(f"Saved as logs/{name}.zip")
