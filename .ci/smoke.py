"""Try an installed wheel, in CI on each system: its files are complete, a published agent plans, a new one trains."""

from importlib.resources import files

import gymnasium as gym

import sb3_mpc.envs
from sb3_mpc import TDMPC2, zoo

assert "site-packages" in sb3_mpc.__file__, f"{sb3_mpc.__file__} is not an installed wheel."
assert "dmc/walker-walk-v0" in gym.registry
assert (files("sb3_mpc.zoo") / "presets" / "tdmpc2.yml").is_file()

model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0")
action, _ = model.predict(model.observation_space.sample(), deterministic=True)
assert model.action_space.contains(action)

tiny = dict(latent_dim=16, enc_dim=16, net_arch=[16], num_q=2)
settings = dict(learning_starts=40, batch_size=16, iterations=1, num_samples=32, num_elites=8, policy_kwargs=tiny)
TDMPC2("MlpPolicy", "Pendulum-v1", **settings).learn(50)
print(f"sb3-mpc {sb3_mpc.__version__} works.")
