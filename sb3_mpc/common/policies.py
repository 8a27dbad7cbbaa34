"""The policy: a world model and a planner that acts through it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_mpc.common.acceleration import compile_function
from sb3_mpc.common.checks import check_finite_observation
from sb3_mpc.common.encoders import SHIFT_PAD, DictExtractor, Encoder, PixelExtractor
from sb3_mpc.common.planning import MPPIPlanner, Plan, PlanNoise
from sb3_mpc.common.prior_policy import PriorPolicy
from sb3_mpc.common.running_scale import RunningScale
from sb3_mpc.common.world_model import MODEL_SIZES, WorldModel

# Seed of the random numbers that deterministic plans share
BANK_SEED = 20240131
PI_OPTIMIZER_EPS = 1e-5


class WorldModelPolicy(BasePolicy):
    """
    Policy that plans in the latent space of a world model.

    ``predict`` is stateful in the manner of recurrent policies: the mean of the last plan travels in ``state``, a tuple
    of one array ``[n_envs, horizon, A]``, and ``episode_start`` clears its rows. Without a state each plan starts cold,
    which works but is slightly worse.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param lr_schedule: learning rate schedule
    :param model_size: millions of parameters, one of 1, 5, 19, 48, 317; sets the five sizes below
    :param latent_dim: size of the latent state
    :param enc_dim: size of the encoder's hidden layers
    :param mlp_dim: size of the two hidden layers of all other networks
    :param num_enc_layers: number of layers of the encoder
    :param num_q: number of value networks
    :param n_critics: SB3's name for ``num_q``
    :param net_arch: sizes of the hidden layers of all networks but the encoder; or a dict with those of the policy
        prior (``pi``) and of the others (``qf``)
    :param num_bins: bins of the two-hot coding of rewards and values
    :param vmin: symlog value of the first bin
    :param vmax: symlog value of the last bin
    :param simnorm_dim: features per simplex of the latent state
    :param dropout: dropout rate of the value networks' first layer
    :param log_std_min: smallest log standard deviation of the prior
    :param log_std_max: largest log standard deviation of the prior
    :param enc_lr_scale: factor on the learning rate of the encoder
    :param episodic: whether the termination head exists from the start
    :param running_scale_tau: step of the running scale of the values
    :param planner_class: planner
    :param planner_kwargs: its arguments
    :param image_augmentation: shift images at random while training
    :param augment_at_inference: shift them when acting stochastically, too, as the official code does
    :param features_extractor_class: features extractor; by default convolutions for images, otherwise flattening
    :param features_extractor_kwargs: its arguments
    :param normalize_images: whether images are divided by 255
    :param optimizer_class: class of both optimisers
    :param optimizer_kwargs: arguments of both optimisers, the learning rate excluded
    """

    default_features_extractor: type[BaseFeaturesExtractor] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        model_size: int = 5,
        latent_dim: int | None = None,
        enc_dim: int | None = None,
        mlp_dim: int | None = None,
        num_enc_layers: int | None = None,
        num_q: int | None = None,
        n_critics: int | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        num_bins: int = 101,
        vmin: float = -10.0,
        vmax: float = 10.0,
        simnorm_dim: int = 8,
        dropout: float = 0.01,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
        enc_lr_scale: float = 0.3,
        episodic: bool = False,
        running_scale_tau: float = 0.01,
        planner_class: type[MPPIPlanner] = MPPIPlanner,
        planner_kwargs: dict[str, Any] | None = None,
        image_augmentation: bool = True,
        augment_at_inference: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        init_kwargs = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "__class__", "observation_space", "action_space", "lr_schedule")
        }
        extractor_class = features_extractor_class or self.default_features_extractor
        features_extractor_kwargs = dict(features_extractor_kwargs or {})
        if not normalize_images and issubclass(extractor_class, (PixelExtractor, DictExtractor)):
            features_extractor_kwargs["normalized_image"] = True
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self._init_kwargs = init_kwargs  # what re-creates this policy in `load`
        if model_size not in MODEL_SIZES:
            raise ValueError(f"model_size={model_size} is unknown: use one of {sorted(MODEL_SIZES)}.")
        sizes = MODEL_SIZES[model_size]
        latent_dim = latent_dim or sizes["latent_dim"]
        if latent_dim % simnorm_dim:
            raise ValueError(f"latent_dim={latent_dim} must be a multiple of simnorm_dim={simnorm_dim}.")
        hidden = [mlp_dim or sizes["mlp_dim"]] * 2
        arch = net_arch if isinstance(net_arch, dict) else dict(qf=net_arch, pi=net_arch)
        qf, pi = (hidden if arch.get(key) is None else list(arch[key]) for key in ("qf", "pi"))  # type: ignore[arg-type]
        encoder = Encoder(
            observation_space,
            self.make_features_extractor(),
            latent_dim,
            enc_dim or sizes["enc_dim"],
            num_enc_layers or sizes["num_enc_layers"],
            simnorm_dim,
            normalize_images,
            image_augmentation,
        )
        self.world_model = WorldModel(
            encoder,
            get_action_dim(action_space),
            latent_dim=latent_dim,
            hidden=qf,
            prior_hidden=pi,
            num_q=num_q or n_critics or sizes["num_q"],
            num_bins=num_bins,
            vmin=vmin,
            vmax=vmax,
            simnorm_dim=simnorm_dim,
            dropout=dropout,
            log_std_min=log_std_min,
            log_std_max=log_std_max,
        )
        self.running_scale = RunningScale(running_scale_tau)
        self.planner = planner_class(self.world_model, **(planner_kwargs or {}))
        self.augment_at_inference = augment_at_inference
        self.compiles = False
        self._compiled_plan: Callable[..., Plan] | None = None
        self._bank: PlanNoise | None = None
        self.generator = th.Generator()
        self.seed(int(th.randint(2**31, ()).item()))
        self._build_optimizers(lr_schedule, enc_lr_scale)
        if episodic:
            self.enable_termination()

    def _build_optimizers(self, lr_schedule: Schedule, enc_lr_scale: float) -> None:
        """
        :param lr_schedule: learning rate schedule
        :param enc_lr_scale: factor on the learning rate of the encoder
        """
        model, lr = self.world_model, lr_schedule(1)
        kwargs = self.optimizer_kwargs or {}
        heads = (model.dynamics, model.reward_head, model.q_ensemble)
        groups = [
            dict(params=list(model.encoder.parameters()), lr=lr * enc_lr_scale, lr_scale=enc_lr_scale),
            dict(params=[p for head in heads for p in head.parameters()], lr_scale=1.0),
        ]
        groups = [group for group in groups if group["params"]]  # an encoder without parameters is possible
        self.model_optimizer = self.optimizer_class(groups, lr=lr, **kwargs)  # type: ignore[call-arg]
        if issubclass(self.optimizer_class, (th.optim.Adam, th.optim.AdamW)):
            kwargs = {"eps": PI_OPTIMIZER_EPS, **kwargs}
        self.pi_optimizer = self.optimizer_class(model.prior_net.parameters(), lr=lr, **kwargs)  # type: ignore[call-arg]

    @property
    def actor(self) -> PriorPolicy:
        """:return: the policy prior with its encoder, which acts without planning"""
        assert isinstance(self.action_space, spaces.Box)
        return PriorPolicy(self.observation_space, self.action_space, self.world_model)

    @property
    def episodic(self) -> bool:
        """:return: whether terminations are predicted, and plans end with them"""
        return self.world_model.termination_head is not None

    def enable_termination(self) -> None:
        """Create the termination head and give it to the model's optimiser. Does nothing if it is there already."""
        if self.world_model.termination_head is None:
            self.world_model.add_termination_head()
            assert self.world_model.termination_head is not None
            heads = self.model_optimizer.param_groups[-1]
            group = dict(params=list(self.world_model.termination_head.parameters()), lr=heads["lr"], lr_scale=1.0)
            self.model_optimizer.add_param_group(group)
            self._init_kwargs["episodic"] = True
            self._compiled_plan = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters, see ``torch.nn.Module``; the termination head is created if they contain one."""
        if any(name.startswith("world_model.termination_head.") for name in state_dict):
            self.enable_termination()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            **self._init_kwargs,
        )

    def seed(self, seed: int) -> None:
        """
        :param seed: seed of the policy's own random numbers
        """
        self.generator.manual_seed(seed)
        self._seed = seed

    def get_rng_state(self) -> np.ndarray:
        """:return: state of the policy's generator, for :meth:`set_rng_state`"""
        return self.generator.get_state().numpy().copy()

    def set_rng_state(self, state: np.ndarray) -> None:
        """
        :param state: as returned by :meth:`get_rng_state`; left aside if it comes from another kind of device
        """
        if len(state) == len(self.get_rng_state()):
            self.generator.set_state(th.from_numpy(state.copy()))

    def to(self, *args: Any, **kwargs: Any) -> "WorldModelPolicy":
        """Move the policy; its generator follows, with the same seed. See ``torch.nn.Module.to``."""
        super().to(*args, **kwargs)
        if self.generator.device.type != self.device.type:
            self.generator = th.Generator(self.device)
            self.seed(self._seed)
        self._bank = None
        return self

    def draw_shift(self, *shape: int) -> th.Tensor | None:
        """
        :param shape: batch dimensions
        :return: random image shifts ``[*shape, 2]``, None if there are no images to shift
        """
        if not self.world_model.encoder.augments:
            return None
        return th.randint(2 * SHIFT_PAD + 1, (*shape, 2), generator=self.generator, device=self.generator.device)

    def plan(self, observation: PyTorchObs, prev_mean: th.Tensor, shift: th.Tensor | None, noise: PlanNoise) -> Plan:
        """
        :param observation: observations ``[E, *shape]``, or a dict of them
        :param prev_mean: mean of the previous plans ``[E, H, A]``
        :param shift: image shifts ``[E, 2]``, if any
        :param noise: random numbers of the plan
        :return: the plan
        """
        with th.no_grad():
            return self.planner.plan(self.world_model.encode(observation, shift), prev_mean, noise)

    def decide(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Plan, bool]:
        """
        Plan for a batch of observations or a single one; the arguments are those of :meth:`predict`.

        :return: the plan and whether the observation was a batch
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "You have passed a tuple to the predict() function instead of a Numpy array or a Dict. "
                "You are probably mixing Gym API with SB3 VecEnv API: `obs, info = env.reset()` (Gym) "
                "vs `obs = vec_env.reset()` (SB3 VecEnv)."
            )
        check_finite_observation(observation)
        obs_tensor, vectorized = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs_tensor.values())) if isinstance(obs_tensor, dict) else obs_tensor)
        mean = np.zeros((n_envs, self.planner.horizon, self.planner.action_dim), dtype=np.float32)
        if state is not None:
            if np.shape(state[0]) != mean.shape:
                raise ValueError(
                    f"The state given to predict() has shape {np.shape(state[0])}, this policy and {n_envs} "
                    f"observation(s) need {mean.shape}: pass the state that the previous predict() returned, or None."
                )
            mean[:] = state[0]
            if episode_start is not None:
                mean[np.asarray(episode_start, dtype=bool).reshape(-1)] = 0
        if deterministic:
            if self._bank is None:
                self._bank = self.planner.draw(1, th.Generator().manual_seed(BANK_SEED), explore=False).to(self.device)
            noise, shift = self._bank, None
        else:
            noise = self.planner.draw(n_envs, self.generator, explore=True)
            shift = self.draw_shift(n_envs) if self.augment_at_inference else None
        if self.compiles and self._compiled_plan is None:
            self._compiled_plan = compile_function(self.plan)
        plan = self._compiled_plan or self.plan
        return plan(obs_tensor, th.as_tensor(mean, device=self.device), shift, noise), vectorized

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan an action. A deterministic plan depends on the observation and the state alone and draws no random number:
        it uses a fixed set of samples and returns the mean of the elites. A stochastic one explores as in training.

        :param observation: one observation or a batch of them
        :param state: what the previous call returned, None for a cold start
        :param episode_start: which environments begin an episode ``[n_envs]``; their part of the state is cleared
        :param deterministic: whether to plan deterministically
        :return: actions in the action space and the state for the next call, ``(mean [n_envs, H, A],)``
        """
        plan, vectorized = self.decide(observation, state, episode_start, deterministic)
        actions = self.to_env_actions(plan.action.cpu().numpy())
        return actions if vectorized else actions[0], (plan.mean.cpu().numpy().copy(),)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``[E, A]`` in [-1, 1]
        :return: actions ``[E, *shape]`` of the action space, within its bounds and of its type
        """
        space = self.action_space
        assert isinstance(space, spaces.Box)
        unscaled = self.unscale_action(actions.reshape(-1, *space.shape))
        return np.clip(unscaled, space.low, space.high).astype(space.dtype)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``[E, *shape]``
        :param deterministic: see :meth:`predict`
        :return: actions of cold plans ``[E, A]`` in [-1, 1]
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        arrays: Any = (
            {key: value.cpu().numpy() for key, value in observation.items()}
            if isinstance(observation, dict)
            else observation.cpu().numpy()
        )
        return self.decide(arrays, deterministic=deterministic)[0].action

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles its own plan: the compiled function is bound to this object
        return {**self.__dict__, "_compiled_plan": None}


class CnnPolicy(WorldModelPolicy):
    """World-model policy on images; see :class:`WorldModelPolicy` for the arguments."""

    default_features_extractor = PixelExtractor


class MultiInputPolicy(WorldModelPolicy):
    """World-model policy on dict observations; see :class:`WorldModelPolicy` for the arguments."""

    default_features_extractor = DictExtractor
