"""After the training: the policy network learns to act as the planner does, for acting without planning."""

import numpy as np
import torch as th
import torch.nn.functional as F

from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.execution.gradients import gradient_step

LARGEST = 0.98  # action that stands for 1, which no tanh gives


def imitate_planner(
    model: WorldModelAlgorithm,
    total_timesteps: int = 20_000,
    rounds: int = 4,
    gradient_steps: int = 4_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 10.0,
    teacher: WorldModelAlgorithm | None = None,
) -> list[float]:
    """
    Train the policy network of a trained agent to act as its planner does, so that ``model.predict(obs,
    use_planner=False)`` and ``model.actor`` act as well, without the cost of a plan. In the first round the planner
    acts in the agent's environment, in all others the network, and the planner says what it would have done: the
    network learns in the states that it gets into itself (DAgger, https://arxiv.org/abs/1011.0686).

    Encoder, world model and values stay as they are. The planner's proposals come from the network, too. Training the
    agent further trains its network by the method's own loss again.

    :param model: trained agent with an environment; :class:`sb3_mpc.FacTDMPC` after its distillation: the student's
    :param total_timesteps: decisions in the environment, shared by the rounds
    :param rounds: number of rounds, each of which has the decisions of all before to learn from
    :param gradient_steps: updates in each round, with a learning rate that falls to a twentieth
    :param batch_size: states in an update
    :param learning_rate: learning rate of the network
    :param max_grad_norm: bound on the norm of its gradients
    :param teacher: agent whose planner is imitated, the agent itself if None; for example a larger one, or the expert
        of a student of :class:`sb3_mpc.FacTDMPC`
    :return: for each round, the root mean square difference between the actions, in [-1, 1], of network and planner in
        the states that are new in that round, before the network learns from them
    :raises ValueError: if the agent has no environment, the teacher has other spaces, or an argument is out of range
    """
    teacher = model if teacher is None else teacher
    for kind in ("observation_space", "action_space"):
        if getattr(teacher, kind) != getattr(model, kind):
            raise ValueError(
                f"The teacher's {kind}, {getattr(teacher, kind)}, is not that of the agent, {getattr(model, kind)}: "
                "use a teacher that was trained in the same environment."
            )
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
    policy, actor = model.policy, model.policy.actor
    world_model = actor.world_model
    parameters = list(actor.prior_net.parameters())
    optimizer = th.optim.Adam(parameters, learning_rate)
    policy.set_training_mode(False)
    latents: list[th.Tensor] = []
    labels: list[th.Tensor] = []
    differences = []
    rng = np.random.default_rng(model.seed)
    observations, state, starts = env.reset(), None, np.ones(env.num_envs, bool)
    for turn in range(rounds):
        errors = []
        for _ in range(steps):
            planned, state = teacher.predict(observations, state, starts, deterministic=True)
            with th.no_grad():
                latents.append(world_model.encode(actor.obs_to_tensor(observations)[0]))
                own = world_model.act(latents[-1], None)
            labels.append(th.as_tensor(policy.scale_action(planned), dtype=own.dtype, device=own.device))
            errors.append(F.mse_loss(own, labels[-1]))
            actions = planned if turn == 0 else policy.unscale_action(own.cpu().numpy())
            observations, _, starts, _ = env.step(actions)
        differences.append(float(th.stack(errors).mean().sqrt()))
        # Before tanh: where it is saturated, the difference of the actions would have no gradient
        z, targets = th.cat(latents), th.atanh(LARGEST * th.cat(labels))
        for step in range(gradient_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - 0.95 * step / gradient_steps)
            drawn = th.as_tensor(rng.integers(len(z), size=batch_size), device=z.device)
            loss = F.smooth_l1_loss(world_model.mode_before_tanh(z[drawn]), targets[drawn])
            gradient_step(optimizer, loss, max_grad_norm)
    return differences
