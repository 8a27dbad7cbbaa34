"""The policy: a world model and a planner that acts through it."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_mpc.common.checks.arguments import check_arguments, check_keywords
from sb3_mpc.common.networks.encoders import DictExtractor, Encoder, NormalizingExtractor, PixelExtractor
from sb3_mpc.common.networks.running_scale import RunningScale
from sb3_mpc.common.networks.sizes import MAX_LAYERS, MAX_SIZE, resolve_sizes
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.planning.prior import PriorPlanner
from sb3_mpc.common.policies.planning_policy import PlanningPolicy
from sb3_mpc.common.policies.views import PriorPolicy, ValueFunctions

PI_OPTIMIZER_EPS = 1e-5
PLANNERS: dict[str, type[MPPIPlanner]] = {cls.__name__: cls for cls in (MPPIPlanner, ImprovedPlanner, PriorPlanner)}
View = TypeVar("View", PriorPolicy, ValueFunctions)


def find_planner(planner: type[MPPIPlanner] | str) -> type[MPPIPlanner]:
    """
    :param planner: class of a planner, or its name
    :return: the class
    :raises ValueError: if no planner of this package has that name
    """
    if not isinstance(planner, str):
        return planner
    if planner not in PLANNERS:
        raise ValueError(f'There is no planner "{planner}": use {", ".join(PLANNERS)}, or give a class.')
    return PLANNERS[planner]


class WorldModelPolicy(PlanningPolicy):
    """
    Policy that plans in the latent space of a world model.

    ``predict`` is stateful in the manner of recurrent policies: the mean of the last plan is passed on in ``state``, a
    tuple of one array ``[n_envs, horizon, A]``, to warm-start the next plan, and ``episode_start`` clears its rows.
    Without a state each plan starts from zero, which works but is slightly worse.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param lr_schedule: learning rate schedule
    :param model_size: millions of parameters, one of 1, 5, 19, 48, 317; default of the five sizes below
    :param latent_dim: size of the latent state
    :param enc_dim: size of the encoder's hidden layers
    :param mlp_dim: size of the two hidden layers of all other networks
    :param num_enc_layers: number of layers of the encoder
    :param num_q: number of value networks
    :param n_critics: SB3's name for ``num_q``
    :param net_arch: sizes of the hidden layers of all networks but the encoder; or a dict with those of the policy
        prior (``pi``) and of the others (``qf``)
    :param num_bins: bins of the two-hot coding of rewards and values; instead of it, 1 for a regression of their symlog
        and 0 for one of the plain numbers
    :param vmin: symlog value of the first bin
    :param vmax: symlog value of the last bin
    :param simnorm_dim: features per simplex of the latent state, None for latent states without SimNorm
    :param layer_norm: whether all layers but the outputs are normed by LayerNorm
    :param dropout: dropout rate of the value networks' first layer
    :param log_std_min: smallest log standard deviation of the prior
    :param log_std_max: largest log standard deviation of the prior
    :param enc_lr_scale: factor on the learning rate of the encoder
    :param episodic: whether the termination head exists from the start
    :param running_scale_tau: step of the running scale of the values
    :param world_model_class: class of the world model
    :param planner_class: class of the planner, or for presets and command lines the name of one of :data:`PLANNERS`
    :param planner_kwargs: arguments of the planner
    :param image_augmentation: shift images at random while training
    :param augment_at_inference: shift them when acting stochastically, too, as the official code does
    :param normalize_observations: divide observations by their spread in what was replayed so far, as ``VecNormalize``
        does, but by 0.01 at least; neither images, nor what an own features extractor gets, nor the observations of
        several tasks
    :param features_extractor_class: features extractor; by default convolutions for images, otherwise flattening
    :param features_extractor_kwargs: its arguments
    :param normalize_images: whether images are divided by 255
    :param optimizer_class: class of both optimisers
    :param optimizer_kwargs: arguments of both optimisers, the learning rate excluded
    :raises ValueError: if a size is out of range
    """

    default_features_extractor: type[BaseFeaturesExtractor] = FlattenExtractor
    # Of the arguments, as in WorldModelAlgorithm
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {
        **dict.fromkeys(("latent_dim", "enc_dim", "mlp_dim", "num_q", "n_critics", "simnorm_dim"), (1, MAX_SIZE)),
        **dict.fromkeys(("student_latent_dim", "student_mlp_dim", "task_dim"), (1, MAX_SIZE)),
        **dict.fromkeys(("vmin", "vmax"), (-80, 80)),  # exp(80) is the largest number in single precision
        **dict.fromkeys(("log_std_min", "log_std_max"), (-20, 10)),
        "num_enc_layers": (1, MAX_LAYERS),
        "num_bins": (0, MAX_SIZE),
        "model_size": (1,),
        "dropout": (0, 0.99),
        "running_scale_tau": (0, 1),
    }
    relations: ClassVar[tuple[tuple[str, str], ...]] = (("log_std_min", "log_std_max"), ("vmin", "vmax"))

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
        simnorm_dim: int | None = 8,
        dropout: float = 0.01,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
        enc_lr_scale: float = 0.3,
        episodic: bool = False,
        running_scale_tau: float = 0.01,
        world_model_class: type[WorldModel] = WorldModel,
        planner_class: type[MPPIPlanner] | str = MPPIPlanner,
        planner_kwargs: dict[str, Any] | None = None,
        image_augmentation: bool = True,
        augment_at_inference: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        layer_norm: bool = True,
        normalize_observations: bool = False,
    ) -> None:
        planner_class = find_planner(planner_class)
        init_kwargs = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "__class__", "observation_space", "action_space", "lr_schedule")
        }
        extractor_class = features_extractor_class or self.default_features_extractor
        features_extractor_kwargs = dict(features_extractor_kwargs or {})
        if normalize_observations and features_extractor_class is None:
            if extractor_class is FlattenExtractor and not is_image_space(observation_space):
                extractor_class = NormalizingExtractor
            elif extractor_class is DictExtractor:
                features_extractor_kwargs["normalize_observations"] = True
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
        )
        self._init_kwargs = init_kwargs  # arguments to rebuild this policy in `load`
        check_arguments(WorldModelPolicy, init_kwargs, self.ranges, self.relations)
        count = n_critics if num_q is None else num_q
        sizes = resolve_sizes(model_size, latent_dim, enc_dim, mlp_dim, num_enc_layers, count, net_arch, simnorm_dim)
        self.net_arch = sizes.hidden if net_arch is None else net_arch  # under SB3's name
        encoder = Encoder(
            observation_space,
            self.make_features_extractor(),
            sizes.latent_dim,
            sizes.enc_dim,
            sizes.num_enc_layers,
            simnorm_dim,
            normalize_images,
            image_augmentation,
            layer_norm,
        )
        self.world_model = self.make_world_model(
            encoder=encoder,
            action_dim=get_action_dim(action_space),
            latent_dim=sizes.latent_dim,
            hidden=sizes.hidden,
            prior_hidden=sizes.prior_hidden,
            num_q=sizes.num_q,
            num_bins=num_bins,
            vmin=vmin,
            vmax=vmax,
            simnorm_dim=simnorm_dim,
            dropout=dropout,
            log_std_min=log_std_min,
            log_std_max=log_std_max,
            layer_norm=layer_norm,
        )
        self.running_scale = RunningScale(running_scale_tau)
        check_keywords("planner_kwargs", planner_class, planner_kwargs or {}, ("world_model",))
        self.planner = planner_class(self.world_model, **(planner_kwargs or {}))
        self.augment_at_inference = augment_at_inference
        self.seed(int(th.randint(2**31, ()).item()))
        self._build_optimizers(lr_schedule, enc_lr_scale)
        if episodic:
            self.enable_termination()
        self.set_training_mode(False)

    def make_world_model(self, **kwargs: Any) -> WorldModel:
        """
        :param kwargs: arguments of :class:`WorldModel`
        :return: the world model; derived policies may have another one
        """
        return self._init_kwargs["world_model_class"](**kwargs)

    @classmethod
    def arguments_of_env(cls, env: VecEnv | None) -> dict[str, Any]:
        """
        :param env: environment of the agent
        :return: arguments that the policy reads off it, unless they are given; none here
        """
        return {}

    def check_env(self, env: VecEnv) -> None:
        """
        :param env: environment that the agent is to act or learn in, of its spaces
        :raises ValueError: if it is another one nevertheless; never here
        """

    def _build_optimizers(self, lr_schedule: Schedule, enc_lr_scale: float) -> None:
        """
        :param lr_schedule: learning rate schedule
        :param enc_lr_scale: factor on the learning rate of the encoder
        :raises TypeError: if the optimiser has no such argument, or one is the learning rate
        """
        model, lr = self.world_model, lr_schedule(1)
        kwargs = dict(self.optimizer_kwargs or {})
        check_keywords("optimizer_kwargs", self.optimizer_class, kwargs, ("params", "lr"))
        adam = issubclass(self.optimizer_class, (th.optim.Adam, th.optim.AdamW))
        if adam and not {"fused", "foreach", "capturable", "differentiable"} & kwargs.keys():
            kwargs["fused"] = True  # one kernel for all parameters, on every device
        heads = (
            model.dynamics,
            model.reward_head,
            model.q_ensemble,
            self.planner,
        )  # some planners have parameters, too
        parts = (model.encoder, *heads, model.prior_net, model.q_target)
        known = {id(parameter) for part in parts for parameter in part.parameters()}
        groups = [
            dict(params=list(model.encoder.parameters()), lr=lr * enc_lr_scale, lr_scale=enc_lr_scale),
            dict(params=[p for head in heads for p in head.parameters()], lr_scale=1.0),
            dict(params=[p for p in model.parameters() if id(p) not in known], lr_scale=1.0),  # of derived models
        ]
        groups = [group for group in groups if group["params"]]  # an encoder without parameters is possible
        self.model_optimizer = self.optimizer_class(groups, lr=lr, **kwargs)  # type: ignore[call-arg]
        if adam:
            kwargs = {"eps": PI_OPTIMIZER_EPS, **kwargs}
        self.pi_optimizer = self.optimizer_class(model.prior_net.parameters(), lr=lr, **kwargs)  # type: ignore[call-arg]

    @property
    def actor(self) -> PriorPolicy:
        """:return: the policy prior with its encoder, which acts without planning"""
        return self._view(PriorPolicy, "actor", self.active()[0])

    @property
    def critic(self) -> ValueFunctions:
        """:return: the value ensemble with its encoder"""
        return self._view(ValueFunctions, "critic", self.world_model)

    @property
    def critic_target(self) -> ValueFunctions:
        """:return: the target value ensemble with the encoder"""
        return self._view(ValueFunctions, "critic_target", self.world_model, target=True)

    def _view(self, kind: type[View], name: str, model: WorldModel, **kwargs: Any) -> View:
        """:return: the view of this name, cached so that hooks on it stay; a new one if another model acts"""
        if name not in self._views or self._views[name].world_model is not model:
            self._views[name] = kind(self.observation_space, self.action_space, model, **kwargs)
        found: View = self._views[name]
        return found

    @property
    def episodic(self) -> bool:
        """:return: whether terminations are predicted, and plans end with them"""
        return self.world_model.termination_head is not None

    def enable_termination(self) -> None:
        """Create the termination head and add it to the model's optimiser. Does nothing if it exists already."""
        if self.world_model.termination_head is None:
            # Initialised by the policy's own random numbers, so that a resumed run gets the same head
            seed = th.randint(2**31, (), generator=self.generator, device=self.generator.device)
            with th.random.fork_rng(devices=[]):
                th.default_generator.manual_seed(int(seed.item()))
                self.world_model.add_termination_head()
            assert self.world_model.termination_head is not None
            heads = self.model_optimizer.param_groups[-1]
            group = dict(params=list(self.world_model.termination_head.parameters()), lr=heads["lr"], lr_scale=1.0)
            self.model_optimizer.add_param_group(group)
            self._init_kwargs["episodic"] = True
            self._compiled_plan = None

    def disable_termination(self) -> None:
        """Remove the termination head, also from the model's optimiser. Does nothing if it does not exist."""
        if self.world_model.termination_head is not None:
            for parameter in self.model_optimizer.param_groups.pop()["params"]:
                self.model_optimizer.state.pop(parameter, None)
            self.world_model.termination_head = None
            self._init_kwargs["episodic"] = False
            self._compiled_plan = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters, see ``torch.nn.Module``; a termination head is created if they contain one."""
        if any(name.startswith("world_model.termination_head.") for name in state_dict):
            self.enable_termination()
        elif strict:
            self.disable_termination()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            **self._init_kwargs,
        )


class CnnPolicy(WorldModelPolicy):
    """World-model policy on images; see :class:`WorldModelPolicy` for the arguments."""

    default_features_extractor = PixelExtractor


class MultiInputPolicy(WorldModelPolicy):
    """World-model policy on dict observations; see :class:`WorldModelPolicy` for the arguments."""

    default_features_extractor = DictExtractor
