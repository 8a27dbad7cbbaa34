"""An environment of your own, whose episodes can end early: nothing has to be set for that."""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import TDMPC2


class Hover(gym.Env):
    """A rocket that is rewarded for hovering at height 1, and whose flight ends when it leaves heights 0 to 2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)  # height and speed
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Start near height 1."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform((0.5, -0.5), (1.5, 0.5)).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action):
        """Thrust against gravity for a moment."""
        height, speed = self.state
        speed += 0.05 * (3.0 * float(action[0]) - 1.0)
        self.state = np.array([height + 0.05 * speed, speed], dtype=np.float32)
        return self.state.copy(), float(np.exp(-5 * (height - 1) ** 2)), not 0 < height < 2, False, {}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=3_000, help="agent decisions")
steps = parser.parse_args().steps
gym.register("Hover-v0", Hover, max_episode_steps=100)  # TDMPC2 derives its discount factor from the episode length
small = dict(num_samples=128, num_elites=16, iterations=3, policy_kwargs=dict(model_size=1))  # bearable on a CPU
model = TDMPC2("MlpPolicy", gym.make("Hover-v0"), verbose=1, **small).learn(steps, progress_bar=True)
mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
print(f"Predicts terminations: {model.policy.episodic}; return, at most 100: {mean:.0f} +- {std:.0f}")
