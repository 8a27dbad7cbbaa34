"""MBDPO: a diffusion policy over action sequences, whose score is estimated in a world model."""

from typing import Any, ClassVar, TypeVar

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_mpc.common import processes
from sb3_mpc.common.algorithm import inherited
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.networks.layers import draw_members
from sb3_mpc.common.networks.losses import UpdateNoise
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.common.presets import PRESETS, takes_preset
from sb3_mpc.mbdpo.planner import DiffusionPlanner
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

SelfMBDPO = TypeVar("SelfMBDPO", bound="MBDPO")

# Arguments of the planner besides those of its base class
PLANNER_ARGUMENTS = (
    *("beta_start", "beta_end", "exploration_std", "contrastive_eta", "contrastive_clip", "contrastive_momentum"),
    *("use_score_network", "score_only_inference", "init_noise", "time_embed_dim"),
)
# The paper's names of the model sizes, which count the energy, too, and TD-MPC2's names of the same networks
SIZES = {2: 1, 6: 5, 21: 19, 54: 48, 340: 317}


class MBDPO(TDMPC2):
    """
    Model-based diffusion policy optimisation (code: https://github.com/Edmond1Cheng/MBDPO).

    The policy over action sequences is the Gibbs distribution proportional to
    ``beta(a|z)^(eta / lambda) exp(G(z, a) / lambda)``, with the return G of the model and the density beta of the data.
    It is sampled by reverse diffusion, see :class:`sb3_mpc.mbdpo.planner.DiffusionPlanner`. The density is represented
    by an energy F, a classifier between an action a of the data and a negative a', the hardest of three (an action of
    the prior, the same with noise, a uniform one):

    ``L_F = -E[log sigmoid F(z, a)] / 2 - E[log(1 - sigmoid F(z, a'))] / 2``

    The normalised energy times eta is added to the rewards of a plan. World model, values and the Gaussian prior are
    those of TD-MPC2, whose arguments are accepted, too; ``min_std`` and ``max_std`` have no effect. ``model_size`` is
    2, 6, 21, 54 or 340 million parameters in the paper, which counts the energy, too; TD-MPC2's names of the same
    networks (1, 5, 19, 48, 317) are understood as well.

    The official code is followed except for one fault: its energy pairs states with actions of other states.

    :param iterations: denoising steps of a plan, one less than the official ``diffusion_steps``
    :param beta_start: first beta of the diffusion schedule
    :param beta_end: last beta of the diffusion schedule
    :param exploration_std: standard deviation of the exploration noise on executed actions
    :param contrastive_eta: weight eta of the normalised energy in the rewards of a plan
    :param contrastive_coef: weight of the loss of the energy
    :param contrastive_clip: bound on the absolute normalised energy
    :param contrastive_momentum: momentum of the running mean and standard deviation of the energy
    :param contrastive_neg_noise: standard deviation of the noise in the noisy negative
    :param use_score_network: train a network that predicts the sampled score
    :param score_only_inference: plan with the score network alone, without sampling sequences; "auto" if there is one
        (official code); False samples sequences although there is a network
    :param init_noise: standard deviation of the noise that is added to the shifted previous plan, where the diffusion
        starts: 0 in the official code, 1 in the paper
    :param score_coef: weight of the loss of the score network
    :param score_states: number of states of a batch in the loss of the score network
    :param score_samples: number of sequences that estimate the score in each of these states
    :param time_embed_dim: size of the embedding of the diffusion step
    :param target_policy: policy whose actions are in the value targets: "prior" (official code) or "diffusion", a plan
        for each next state, which is too slow without a score network
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The 19 denoising steps stay: fewer would change the noise they begin with
        "cpu": dict(policy_kwargs=dict(model_size=1), num_samples=128, num_elites=16),
        "small": {**PRESETS["small"], "iterations": 8},  # more than MPPI: the diffusion needs small steps
        "offline": PRESETS["offline"],
    }
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {
        **TDMPC2.ranges,
        **dict(contrastive_momentum=(0, 1), beta_start=(0, 1), beta_end=(0, 1)),
        **dict(score_states=(1,), score_samples=(1,), time_embed_dim=(2, 2**20)),
    }
    relations: ClassVar[tuple[tuple[str, str], ...]] = (*TDMPC2.relations, ("beta_start", "beta_end"))
    choices: ClassVar[dict[str, tuple[str, ...]]] = dict(target_policy=("prior", "diffusion"))
    policy_defaults: ClassVar[dict[str, Any]] = dict(planner_class=DiffusionPlanner)

    @takes_preset
    def __init__(
        self,
        policy: str | type[WorldModelPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | str = "auto",
        batch_size: int = 256,
        tau: float = 0.01,
        gamma: float | str = "auto",
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        *,
        preset: str | None = None,
        horizon: int = 3,
        rho: float = 0.5,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        enc_lr_scale: float = 0.3,
        max_grad_norm: float = 20.0,
        pretrain_gradient_steps: int | str = "auto",
        episodic: bool | str = "auto",
        iterations: int = 19,
        num_samples: int = 512,
        num_elites: int = 64,
        num_pi_trajs: int = 24,
        min_std: float = 0.05,
        max_std: float = 2.0,
        temperature: float = 0.5,
        compile: bool | str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        beta_start: float = 1e-4,
        beta_end: float = 1e-2,
        exploration_std: float = 0.05,
        contrastive_eta: float = 0.01,
        contrastive_coef: float = 1.0,
        contrastive_clip: float = 5.0,
        contrastive_momentum: float = 0.99,
        contrastive_neg_noise: float = 0.5,
        use_score_network: bool = False,
        score_only_inference: bool | str = "auto",
        init_noise: float = 0.0,
        score_coef: float = 1.0,
        score_states: int = 64,
        score_samples: int = 64,
        time_embed_dim: int = 64,
        target_policy: str = "prior",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = inherited(locals())
        self.beta_start, self.beta_end, self.exploration_std = beta_start, beta_end, exploration_std
        self.contrastive_eta, self.contrastive_coef = contrastive_eta, contrastive_coef
        self.contrastive_clip, self.contrastive_momentum = contrastive_clip, contrastive_momentum
        self.contrastive_neg_noise, self.time_embed_dim = contrastive_neg_noise, time_embed_dim
        self.use_score_network, self.score_only_inference = use_score_network, score_only_inference
        self.init_noise = init_noise
        self.score_coef, self.score_states, self.score_samples = score_coef, score_states, score_samples
        self.target_policy = target_policy
        super().__init__(**arguments)

    def planner_arguments(self) -> dict[str, Any]:
        """:return: arguments of the planner"""
        return {**super().planner_arguments(), **{name: getattr(self, name) for name in PLANNER_ARGUMENTS}}

    def policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy; a model size of the paper is one of TD-MPC2's"""
        arguments = super().policy_arguments()
        size = arguments.get("model_size", 5)
        if size not in SIZES and size not in SIZES.values():
            raise ValueError(f"model_size={size!r} is unknown: use one of {[*SIZES]}.")
        return {**arguments, "model_size": SIZES[size]} if size in SIZES else arguments

    @property
    def planner(self) -> DiffusionPlanner:
        """:return: planner of the policy, with its energy and its score network"""
        planner = self.policy.planner
        assert isinstance(planner, DiffusionPlanner), "MBDPO plans with a DiffusionPlanner"
        return planner

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """:return: random numbers of one update, with those of the negatives, the score and the diffusion targets"""
        noise, planner, generator = super().draw_noise(batch_size), self.planner, self.policy.generator
        device, shape = generator.device, noise.target_actions.shape

        def normal(*size: int) -> th.Tensor:
            return th.randn(*size, generator=generator, device=device)

        extra: dict[str, Any] = dict(
            prior=normal(*shape), noisy=normal(*shape), uniform=th.rand(shape, generator=generator, device=device)
        )
        if self.use_score_network:
            horizon, action_dim = planner.horizon, planner.action_dim
            states, samples = min(processes.part(self.score_states), batch_size), self.score_samples
            extra["tau"] = th.randint(1, planner.iterations + 1, (states,), generator=generator, device=device)
            extra["x"] = normal(horizon, states, action_dim)
            extra["samples"] = normal(horizon, states, samples, action_dim)
            extra["terminal"] = normal(states, samples, action_dim)
            extra["members"] = draw_members(1, self.policy.world_model.num_q, generator)[0]
        if self.target_policy == "diffusion":
            extra["target_plan"] = planner.draw(1, generator, explore=False)  # shared by all states
        first_two = th.arange(2, device=device).clamp(max=self.policy.world_model.num_q - 1)  # official code
        return noise._replace(target_members=first_two, extra=extra)

    def target_action(self, next_z: th.Tensor, noise: UpdateNoise) -> th.Tensor:
        """:return: actions of the prior, or first actions of plans ``[H, B, A]``"""
        if self.target_policy == "prior":
            return super().target_action(next_z, noise)
        z = next_z.flatten(0, 1)
        cold = z.new_zeros(z.shape[0], self.planner.horizon, self.planner.action_dim)
        return self.planner.plan(z, cold, noise.extra["target_plan"]).action.view(*next_z.shape[:-1], -1)

    def extra_losses(self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """Losses of the energy (noise-contrastive estimation) and, if there is one, of the score network."""
        losses = dict(contrastive=self.contrastive_loss(zs[:-1].detach(), batch, noise.extra))
        if self.use_score_network:
            losses["score"] = self.score_loss(zs[0, : len(noise.extra["tau"])].detach(), noise.extra)
        return losses

    def contrastive_loss(self, z: th.Tensor, batch: SequenceBatch, noise: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param z: predicted latent states ``[H, B, D]``
        :param batch: windows, whose actions are the positives
        :param noise: draws of the ``prior``, of the ``noisy`` and of the ``uniform`` negatives ``[H, B, A]``
        :return: loss of the energy
        """
        model, planner = self.policy.world_model, self.planner
        with th.no_grad():
            action = model.act(z, noise["prior"])
            noisy = (action + self.contrastive_neg_noise * noise["noisy"]).clamp(-1, 1)
            candidates = model.mask_actions(z, th.stack([action, noisy, 2 * noise["uniform"] - 1]))
            hardest = planner.energy(z.expand(3, -1, -1, -1), candidates).argmax(0, keepdim=True)
            negative = candidates.gather(0, hardest.expand(-1, -1, -1, candidates.shape[-1]))[0]
        positives, negatives = planner.energy(z, batch.actions), planner.energy(z, negative)
        planner.update_statistics(th.stack([positives, negatives]), batch.mask)
        return 0.5 * (batch.mask * (F.softplus(-positives) + F.softplus(negatives))).mean()

    def score_loss(self, z: th.Tensor, noise: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param noise: steps ``tau`` ``[E]``, noisy sequences ``x`` ``[H, E, A]``, and the draws of the sampled score
        :return: squared error of the score network
        """
        x, tau, planner = noise["x"], noise["tau"], self.planner
        draws = (noise["samples"], noise["terminal"], noise["members"])
        with th.no_grad():
            target, _ = planner.model_score(z, x, tau, draws, elites=noise["samples"].shape[2])
        return F.mse_loss(planner.predict_score(z, x, tau), target)

    def learn(
        self: SelfMBDPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MBDPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfMBDPO:
        """See :meth:`sb3_mpc.TDMPC2.learn`."""
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
