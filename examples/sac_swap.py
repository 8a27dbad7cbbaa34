"""The swap: a script written for SAC, in which only the import and the class have changed."""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import TDMPC2  # was: from stable_baselines3 import SAC

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=2_500, help="agent decisions")
args = parser.parse_args()

# The settings are the paper's: a model of 5 million parameters and a plan of 6 x 512 candidates at every decision. They
# are made for a GPU. On a CPU they are slow: say policy_kwargs=dict(model_size=1),
# num_samples=128, num_elites=16, iterations=3 for a smaller and faster agent.
model = TDMPC2("MlpPolicy", "Pendulum-v1", verbose=1)  # was: model = SAC("MlpPolicy", "Pendulum-v1", verbose=1)
model.learn(total_timesteps=args.steps, progress_bar=True)

mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
print(f"Return over 10 episodes: {mean:.0f} +- {std:.0f}")
model.save("logs/pendulum")
print("Saved as logs/pendulum.zip")
