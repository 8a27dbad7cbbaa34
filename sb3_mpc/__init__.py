"""Model-based reinforcement learning as Stable-Baselines3 algorithms."""

__version__ = "0.1.0"
