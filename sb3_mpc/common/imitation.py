"""After the training: a policy network that acts as the planner does, for acting without planning."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F

from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.execution.gradients import gradient_step
from sb3_mpc.common.networks.layers import forget
from sb3_mpc.common.policies.views import PriorPolicy

LARGEST = 0.98  # action that stands for 1, which no tanh gives


@contextlib.contextmanager
def borrowed(model: WorldModelAlgorithm) -> Iterator[None]:
    """
    :param model: agent
    :return: context in which its environment may be used: the statistics of a ``VecNormalize`` rest, and further
        training begins with a reset
    """
    normalizer = model.get_vec_normalize_env()
    training = normalizer is not None and normalizer.training
    model._last_obs = None
    if normalizer is not None:
        normalizer.training = False
    try:
        yield
    finally:
        if normalizer is not None:
            normalizer.training = training


def imitate_planner(
    model: WorldModelAlgorithm,
    total_timesteps: int = 20_000,
    rounds: int = 4,
    gradient_steps: int = 4_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 10.0,
) -> PriorPolicy:
    """
    Train a policy network to act as the planner of a trained agent does, without the cost of a plan. The agent does not
    change: the network is a new one, on a copy of its encoder. In the first round the planner acts in the agent's
    environment, in all others the network, and the planner says what it would have done there: the network learns in
    the states that it gets into itself (DAgger, https://arxiv.org/abs/1011.0686).

    It has the architecture of the agent's own policy network, ``model.actor``, and can take its place, also as what
    proposes sequences to the planner: ``model.actor.load_state_dict(policy.state_dict())``.

    :param model: trained agent with an environment
    :param total_timesteps: decisions in the environment, shared by the rounds
    :param rounds: number of rounds, each of which has the decisions of all before to learn from
    :param gradient_steps: updates in each round, with a learning rate that falls to a twentieth
    :param batch_size: states in an update
    :param learning_rate: learning rate of the network
    :param max_grad_norm: bound on the norm of its gradients
    :return: the network, a policy for SB3's ``evaluate_policy`` and for ``predict``; its standard deviations are not
        trained, so act with ``deterministic=True``
    :raises ValueError: if the agent has no environment, or an argument is out of range
    """
    env = model.get_env()
    if env is None:
        raise ValueError("Imitation needs an environment to act in, and the agent has none: use model.set_env(env).")
    check_range("rounds", rounds, 1)
    check_range("gradient_steps", gradient_steps, 0)
    check_range("batch_size", batch_size, 1)
    steps = int(total_timesteps) // (rounds * env.num_envs)
    if steps < 1:
        raise ValueError(
            f"{total_timesteps=} is less than a decision in each of {env.num_envs} environments in each of {rounds} "
            "rounds: use more, or fewer rounds."
        )
    world_model = copy.deepcopy(model.actor.world_model)
    policy = PriorPolicy(model.observation_space, model.policy.action_space, world_model)
    policy.set_training_mode(False)
    forget(policy.prior_net)  # the agent's own one, which is saturated, learned walker-run's plans half as well
    optimizer = th.optim.Adam(policy.prior_net.parameters(), learning_rate)
    latents: list[th.Tensor] = []
    labels: list[th.Tensor] = []
    rng = np.random.default_rng(model.seed)
    with borrowed(model):
        observations: Any = env.reset()
        state, starts = None, np.ones(env.num_envs, bool)
        for turn in range(rounds):
            for _ in range(steps):
                planned, state = model.predict(observations, state, starts, deterministic=True)
                with th.no_grad():
                    latents.append(world_model.encode(policy.obs_to_tensor(observations)[0]))
                labels.append(th.as_tensor(model.policy.scale_action(planned), device=policy.device).float())
                actions = planned if turn == 0 else policy.predict(observations, deterministic=True)[0]
                observations, _, starts, _ = env.step(actions)
            # Before tanh: where it is saturated, the difference of the actions would have no gradient
            z, targets = th.cat(latents), th.atanh(LARGEST * th.cat(labels))
            for step in range(gradient_steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * (1 - 0.95 * step / gradient_steps)
                drawn = th.as_tensor(rng.integers(len(z), size=batch_size), device=z.device)
                loss = F.smooth_l1_loss(world_model.mode_before_tanh(z[drawn]), targets[drawn])
                gradient_step(optimizer, loss, max_grad_norm)
    return policy
