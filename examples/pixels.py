"""Learn from images: the last three frames of 64 x 64 pixels instead of the state."""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=50_000, help="agent decisions")
args = parser.parse_args()

# Drawing needs OpenGL (EGL or OSMesa on a machine without a display); without it, this line says what to install.
env = make_vec_env("dmc/cup-catch-pixels-v0", seed=0)

# A transition takes 37 kB, so the default buffer of a million would need 37 GB; buffer_size=50_000 needs 1.8 GB.
# Without a GPU this takes days: convolutions are slow on a CPU.
model = TDMPC2("CnnPolicy", env, buffer_size=min(args.steps, 50_000), verbose=1)
model.learn(args.steps, progress_bar=True)
model.save("logs/cup_catch_pixels")

mean, std = evaluate_policy(model, env, n_eval_episodes=5)
print(f"Return over 5 episodes: {mean:.0f} +- {std:.0f}; saved as logs/cup_catch_pixels.zip")
