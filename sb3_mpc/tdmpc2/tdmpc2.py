"""TD-MPC2: scalable, robust world models for continuous control."""

from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule

from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.buffers.batch import SequenceBatch, observed
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.networks.gaussian import gaussian_log_prob, squash_correction
from sb3_mpc.common.networks.losses import UpdateNoise, n_step_targets, temporal_weights
from sb3_mpc.common.presets import PRESETS

SelfTDMPC2 = TypeVar("SelfTDMPC2", bound="TDMPC2")


class TDMPC2(WorldModelAlgorithm):
    """
    TD-MPC2 (Hansen, Su, Wang 2024, https://arxiv.org/abs/2310.16828): a latent world model trained by consistency,
    reward and temporal-difference losses, and a planner (MPPI) that improves on a learned policy.

    The defaults are the official single set of hyper-parameters with the 5M model. Where paper and official code
    (https://github.com/nicklashansen/tdmpc2) differ, the code is followed.

    :param policy: ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy``, ``MultitaskPolicy`` (of
        ``MultitaskWorldModelPolicy``) or a class derived from ``WorldModelPolicy``
    :param env: environment to learn from, or its id; its actions must be a bounded box
    :param learning_rate: learning rate or schedule, a function of the remaining progress from 1 to 0
    :param buffer_size: number of transitions that are kept
    :param learning_starts: steps with random actions before learning; "auto" for 5 episodes and at least 1000
    :param batch_size: number of windows in a batch
    :param tau: step of the target value networks and of the running scale
    :param gamma: discount factor; "auto" derives it from the episode length T in decisions, (T/5 - 1)/(T/5) within
        [0.95, 0.995], or 0.99 if T is unknown
    :param train_freq: update every ``train_freq`` steps, or a tuple such as ``(5, "step")`` or ``(1, "episode")``
    :param gradient_steps: number of updates each time; -1 for one per collected transition
    :param action_noise: noise added to the planned actions, besides the planner's own
    :param replay_buffer_class: SB3's ``HerReplayBuffer`` for goals, or a class derived from ``SequenceReplayBuffer``
    :param replay_buffer_kwargs: arguments of the replay buffer
    :param optimize_memory_usage: has no effect, observations are never stored twice
    :param n_steps: replayed rewards in a value target, at most ``horizon``; the last steps of a window have fewer. With
        more than one, values are partly those of the actions of older policies
    :param preset: "small" (easy tasks, 0.2M parameters), "best" (the same with improvements of later papers) or "cpu"
        (1M parameters) instead of the paper's settings. Arguments that are given, too, win, ``policy_kwargs`` key by
        key. Updates per decision are those of the preset, however many environments there are
    :param horizon: length H of plans and of training windows
    :param rho: weight of step t in the losses is ``rho ** t``
    :param consistency_coef: weight of the latent consistency loss
    :param reward_coef: weight of the reward loss
    :param value_coef: weight of the value loss
    :param termination_coef: weight of the termination loss
    :param entropy_coef: weight of the entropy of the policy prior
    :param enc_lr_scale: factor on the learning rate of the encoder
    :param max_grad_norm: bound on the norm of the gradients, of the model and of the policy
    :param pretrain_gradient_steps: additional updates when learning starts; "auto" for one per seeding step if
        ``learning_starts`` is "auto", too, otherwise none
    :param episodic: what a termination means. "auto": no value follows it; from the first one on, terminations are
        predicted, and predicted ones end plans. True: the same, with predictions from the start. False: nothing, in no
        loss and in no plan; values are learned as if every episode went on. (With falls that end an episode, the
        official codes of TD-M(PC)² and BMPC do that.)
    :param iterations: refits of the planner; two more are made for 20 or more action dimensions
    :param num_samples: number of action sequences in an iteration
    :param num_elites: number of best sequences that the planner's Gaussian is refitted to
    :param num_pi_trajs: number of sequences proposed by the policy prior
    :param min_std: lower bound of the planner's standard deviation
    :param max_std: initial value and upper bound of the planner's standard deviation
    :param temperature: factor of the return in the weights of the elites, an inverse temperature
    :param compile: False is the reference, eager and in float32. True compiles plan and update, which takes minutes
        once; "auto" does so on CPUs for runs of 30,000 plans and updates or more. True and "auto" choose threads and
        library by processor, size and load, and plan in bfloat16 if the processor supports it in hardware (AMX,
        AVX512-BF16); updates are always in float32, on GPUs with products in TF32
    :param stats_window_size: episodes over which the logged statistics are averaged
    :param tensorboard_log: folder of the TensorBoard log, none if None
    :param policy_kwargs: arguments of the policy, such as ``model_size`` (1, 5, 19, 48, 317); see ``WorldModelPolicy``
    :param verbose: 0 for no output, 1 for information, 2 for debug messages
    :param seed: seed of all random numbers
    :param device: device of the model, such as "cpu", "cuda", "mps" or "auto"
    :param _init_setup_model: whether to build the networks at once
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **PRESETS,
        # "small" with the three improvements whose share was positive in a screening (docs/pages/tdmpc2.md)
        "best": {
            **PRESETS["small"],
            "n_steps": 3,
            "policy_kwargs": {
                **PRESETS["small"]["policy_kwargs"],
                **dict(normalize_observations=True, planner_class="ImprovedPlanner"),
                "planner_kwargs": dict(noise_correlation=0.5),
            },
        },
    }

    def value_target(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """TD target: reward plus discounted minimum of two random target values at an action of the prior (eq. 2)."""
        model = self.policy.world_model
        action = self.target_action(next_z, noise)
        values = model.two_hot.decode(model.value(next_z, action, noise.target_members, target=True))
        factors = model.discount(next_z, self.gamma) * self.continues(batch)
        return n_step_targets(batch.rewards, factors, values.amin(0), batch.mask, self.n_steps)

    def target_action(self, next_z: th.Tensor, noise: UpdateNoise) -> th.Tensor:
        """
        :param next_z: encodings of the observations 1 to H ``[H, B, D]``
        :param noise: random numbers
        :return: actions in the value target, drawn from the prior ``[H, B, A]``
        """
        return self.policy.world_model.act(next_z, noise.target_actions)

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Maximum-entropy objective (eq. 4): values on the running scale, plus the entropy before squashing."""
        scale = self.policy.running_scale
        action, log_prob, q = self.prior_values(zs, noise)
        scale.update(q[0])
        objective = scale(q) + self.policy_bonus(zs, action, log_prob)
        loss = -(temporal_weights(self.rho, zs) * observed(batch.mask) * objective).mean()
        logs = dict(pi_entropy=(squash_correction(action) - log_prob).mean(), pi_scale=scale.value.mean())
        return loss, logs

    def policy_bonus(self, zs: th.Tensor, action: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """
        :param zs: latent states ``[T, B, D]``
        :param action: actions of the prior ``[T, B, A]``
        :param log_prob: their log-densities before squashing ``[T, B, 1]``
        :return: what the policy maximises besides values, its weighted entropy ``[T, B, 1]``
        """
        # The official code scales the entropy by the number of action dimensions, and its tanh correction cancels
        return self.entropy_coef * (-self.policy.world_model.num_actions(zs) * log_prob)

    def prior_values(self, zs: th.Tensor, noise: UpdateNoise) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param zs: latent states ``[T, B, D]`` of the first T steps
        :param noise: random numbers
        :return: actions of the prior ``[T, B, A]``, their log-densities before squashing ``[T, B, 1]`` and the mean of
            two networks' values ``[T, B, 1]``
        """
        model, steps = self.policy.world_model, len(zs)
        mean, log_std = model.prior(zs)
        eps = model.mask_actions(zs, noise.policy_actions[:steps])
        action = th.tanh(mean + eps * log_std.exp())
        dropout = None if noise.policy_dropout is None else noise.policy_dropout[:, :steps]
        logits = model.value(zs, action, noise.policy_members, dropout, detach=True)
        return action, gaussian_log_prob(eps, log_std), model.two_hot.decode(logits).mean(0)

    def learn(
        self: SelfTDMPC2,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "TDMPC2",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfTDMPC2:
        """
        :param total_timesteps: number of environment steps (agent decisions), all environments together
        :param callback: called at every step
        :param log_interval: episodes between logs
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: start counting at zero, with a reset of the environment
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :param offline_data: a :class:`sb3_mpc.offline.Dataset` to learn from, too; with it, each batch has windows of
            both
        :param offline_fraction: part of the data in a batch, a number or a schedule, which is a function of the
            remaining progress from 1 to 0
        :param random_seeding: whether the first ``learning_starts`` decisions are random actions without updates; if
            not, ``learning_starts`` becomes 0. "auto" leaves them out after :meth:`learn_offline`; the updates of an
            agent that has learned from data then begin with the end of the first episode, or after 1,000 decisions
        :return: the trained model
        """
        return super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
            offline_data=offline_data,
            offline_fraction=offline_fraction,
            random_seeding=random_seeding,
        )
