"""Value targets of several rewards."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.common.networks.losses import n_step_targets
from tests.support.agents import make_agent, two_envs

H, B = 5, 200


def slow_target(t: int, rewards: Any, factors: Any, values: Any, mask: Any, n_steps: int) -> float:
    """:return: target of step t of one window, by the definition"""
    total, product = 0.0, 1.0
    for step in range(t, min(t + n_steps, H)):
        total += product * rewards[step]
        product *= factors[step]
        if step + 1 == H or not mask[step + 1]:
            break
    return float(total + product * values[step])


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_against_a_slow_loop(n_steps: int) -> None:
    random = np.random.default_rng(n_steps)
    rewards, values = random.normal(size=(2, H, B))
    factors = 0.9 * (random.random((H, B)) < 0.8)  # some transitions terminate
    mask = np.arange(H)[:, None] < random.integers(1, H + 1, B)
    tensors = [th.as_tensor(part, dtype=th.float64).unsqueeze(-1) for part in (rewards, factors, values, mask)]
    found = n_step_targets(*tensors, n_steps).squeeze(-1).numpy()
    for window in range(B):
        for t in range(int(mask[:, window].sum())):
            parts = (part[:, window] for part in (rewards, factors, values, mask))
            assert np.isclose(found[t, window], slow_target(t, *parts, n_steps))


class Late(gym.Env):
    """Two steps; the second one is rewarded, whatever is done."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.full(1, self.count / 2, np.float32), float(self.count == 2), self.count == 2, False, {}


def test_target_holds_the_reward_to_come_before_any_value_is_learned() -> None:
    """Values begin at 0, so that with one step the first state's target is 0, too."""
    for n_steps, expected in ((1, 0.0), (2, 0.9), (3, 0.9)):
        model = make_agent(TDMPC2, Late(), horizon=3, n_steps=n_steps, gamma=0.9, learning_starts=100)
        model.learn(60)
        with model.policy.acceleration.applied(), th.no_grad():
            batch = model.windows.sample(32)
            next_z = model.policy.world_model.encode(batch.observations[1:])
            targets = model.value_target(next_z, batch, model.draw_noise(32))
        first = batch.observations[0, :, 0] == 0
        assert 0 < first.sum() < 32
        assert th.allclose(targets[0][first], th.tensor(expected), atol=1e-5)
        assert th.allclose(targets[0][~first], th.tensor(1.0), atol=1e-5)  # the second state, of which nothing follows


def test_methods_take_it(algorithm: Any) -> None:
    """BMPC with values of actions, as those of states are learned from the model alone."""
    arguments = dict(values_of="actions") if algorithm is BMPC else {}
    model = make_agent(algorithm, two_envs(), horizon=3, n_steps=3, learning_starts=40, **arguments)
    model.learn(60)
    assert model._n_updates > 0 and model.replay_buffer_class is model.buffer_class
