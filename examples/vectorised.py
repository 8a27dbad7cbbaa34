"""Four environments at once, normalised observations, and an evaluation on the way that keeps the best model."""

import argparse

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=50_000, help="agent decisions, all environments together")
args = parser.parse_args()

# Rewards stay as they are: their scale does not matter to TDMPC2
env = VecNormalize(make_vec_env("dmc/walker-walk-v0", n_envs=4, seed=0), norm_reward=False)
eval_env = VecNormalize(make_vec_env("dmc/walker-walk-v0", n_envs=5, seed=1), norm_reward=False, training=False)

# EvalCallback copies the statistics of `env` to `eval_env` before it evaluates. It counts calls, one for 4 decisions.
every = max(args.steps // 40, 1)
callback = EvalCallback(eval_env, n_eval_episodes=5, eval_freq=every, best_model_save_path="logs/walker")

# gradient_steps=-1 makes one update for every decision, 4 after each step of the four environments. The model is the
# smallest: on a GPU leave policy_kwargs out; on a CPU this still takes hours.
model = TDMPC2("MlpPolicy", env, gradient_steps=-1, policy_kwargs=dict(model_size=1), verbose=1)
model.learn(args.steps, callback=callback, progress_bar=True)
model.save("logs/walker/final_model")
env.save("logs/walker/vecnormalize.pkl")  # belongs to the model: VecNormalize.load() restores it
print(f"Best mean return: {callback.best_mean_reward:.0f}; models and statistics are in logs/walker")
