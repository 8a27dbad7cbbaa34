"""Acting by planning: ``predict`` passes the plan on as its state, as recurrent policies do."""

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.utils._pytree import tree_map_only

from sb3_mpc.common.checks.arguments import check_flag
from sb3_mpc.common.checks.data import check_finite_observation
from sb3_mpc.common.execution.acceleration import Acceleration, compile_function, graphed
from sb3_mpc.common.execution.cuda_graphs import frozen_values
from sb3_mpc.common.execution.transfer import in_float32, to_device
from sb3_mpc.common.networks.encoders import SHIFT_PAD
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.policies.views import PriorPolicy

# Seed of the fixed random numbers that all deterministic plans use
BANK_SEED = 20240131


class PlanningPolicy(BasePolicy):
    """
    Base class of :class:`~sb3_mpc.common.policies.world_model_policy.WorldModelPolicy`, which builds model and planner;
    this part acts.

    The policy has its own random number generator: its draws depend on its seed, not on PyTorch's global generator.
    """

    action_space: spaces.Box
    world_model: WorldModel
    planner: MPPIPlanner
    augment_at_inference: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, squash_output=True, **kwargs)
        self.acceleration = Acceleration(compiles=False, bfloat16=False)
        self._compiled_plan: Callable[..., Plan] | None = None
        self._bank: PlanNoise | None = None
        self._views: dict[str, Any] = {}
        self.generator = th.Generator()

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
        :param state: as returned by :meth:`get_rng_state`; ignored if it comes from another kind of device
        """
        if len(state) == len(self.get_rng_state()):
            self.generator.set_state(th.from_numpy(state.copy()))

    def _apply(self, *args: Any, **kwargs: Any) -> "PlanningPolicy":
        """
        Called by whatever moves the policy, such as ``to`` and ``cuda``: another device gets a new generator of the
        same seed.
        """
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.generator.device != th.zeros((), device=self.device).device:  # with its index
            self.generator = th.Generator(self.device)
            self.seed(self._seed)
        self._bank, self._compiled_plan = None, None
        return self

    def active(self) -> tuple[WorldModel, MPPIPlanner]:
        """:return: the model and the planner that are used for acting"""
        return self.world_model, self.planner

    def draw_shift(self, *shape: int, generator: th.Generator | None = None) -> th.Tensor | None:
        """
        :param shape: batch dimensions
        :param generator: source of randomness, the policy's own if None
        :return: random image shifts ``[*shape, 2]``, None if there are no images to shift
        """
        if not self.world_model.encoder.augments:
            return None
        generator = generator or self.generator
        return th.randint(2 * SHIFT_PAD + 1, (*shape, 2), generator=generator, device=generator.device)

    def plan(
        self,
        observation: PyTorchObs,
        prev_mean: th.Tensor,
        shift: th.Tensor | None,
        noise: PlanNoise,
        planner: MPPIPlanner | None = None,
    ) -> Plan:
        """
        :param observation: observations ``[E, *shape]``, or a dict of them
        :param prev_mean: mean of the previous plans ``[E, H, A]``
        :param shift: image shifts ``[E, 2]``, if any
        :param noise: random numbers of the plan
        :param planner: planner to use, the one for acting if None
        :return: the plan
        """
        model, own = self.active()
        planner = planner or own
        with th.no_grad():
            z = model.encode(observation, shift)
            if not self.acceleration.bfloat16:
                return planner.plan(z, prev_mean, noise)
            # Only matrix products of hidden layers run in bfloat16, everything else in float32
            with th.autocast(self.device.type, th.bfloat16):
                return planner.plan(z, prev_mean, noise)

    def compile_plan(self, planner: MPPIPlanner) -> Callable[..., Plan]:
        """
        :param planner: planner that will be used
        :return: compiled :meth:`plan`: on GPUs as a whole, in one graph; on a CPU only the evaluation of sequences,
            once instead of per iteration, which takes a fifth of the time to compile and makes plans hardly slower
        """
        if self.device.type == "cuda":
            return self.record_plan(planner)
        planner.compile_iteration()
        return self.plan

    def record_plan(self, planner: MPPIPlanner) -> Callable[..., Plan]:
        """
        :param planner: planner that will be used
        :return: compiled :meth:`plan` that is recorded as a CUDA graph, for as many environments as fit into the memory
        """
        recorded = graphed(compile_function(self.plan), partial(frozen_values, self, planner))
        return partial(self.plan_in_parts, recorded)

    def plan_in_parts(
        self,
        make: Callable[..., Plan],
        observation: PyTorchObs,
        prev_mean: th.Tensor,
        shift: th.Tensor | None,
        noise: PlanNoise,
        planner: MPPIPlanner | None = None,
    ) -> Plan:
        """
        Plan for as many environments at once as fit into the memory. All parts have one shape, so that one plan is
        compiled and recorded: the last environment is planned several times where they do not divide evenly.

        :param make: :meth:`plan`, or what it was compiled to; the other arguments are those of it
        :return: the plan
        """
        n_envs, own = len(prev_mean), planner or self.active()[1]
        parts = math.ceil(n_envs / own.environments_at_once(prev_mean.device))
        if parts == 1:
            return make(observation, prev_mean, shift, noise, planner)
        size, plans = math.ceil(n_envs / parts), []
        for first in range(0, n_envs, size):
            chosen = th.arange(first, first + size, device=prev_mean.device).clamp(max=n_envs - 1)
            some, some_shift = tree_map_only(th.Tensor, itemgetter(chosen), (observation, shift))
            plans.append(make(some, prev_mean[chosen], some_shift, own.noise_of(noise, n_envs, chosen), planner))
        return Plan(*(th.cat(part)[:n_envs] for part in zip(*plans, strict=True)))

    def plan_batch(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        context: str = "in predict()",
    ) -> tuple[Plan, bool]:
        """
        Plan for a batch of observations or a single one; the arguments are those of :meth:`predict`.

        :param context: when that is, for the message
        :return: the plan and whether the observation was a batch
        :raises ValueError: see :meth:`predict`
        """
        self.set_training_mode(False)
        check_flag("deterministic", deterministic)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "You have passed a tuple to the predict() function instead of a Numpy array or a Dict. "
                "You are probably mixing Gym API with SB3 VecEnv API: `obs, info = env.reset()` (Gym) "
                "vs `obs = vec_env.reset()` (SB3 VecEnv)."
            )
        check_finite_observation(observation)
        obs_tensor, vectorized = self.obs_to_tensor(in_float32(observation, self.device))
        n_envs = len(next(iter(obs_tensor.values())) if isinstance(obs_tensor, dict) else obs_tensor)
        _, planner = self.active()
        mean = np.zeros((n_envs, planner.horizon, planner.action_dim), dtype=np.float32)
        if state is not None:
            if np.shape(state[0]) != mean.shape or not np.isfinite(state[0]).all():
                raise ValueError(
                    f"The state given to predict() has shape {np.shape(state[0])}, this policy and {n_envs} "
                    f"observation(s) need {mean.shape}, all finite: pass the state that the previous predict() "
                    "returned, or None."
                )
            mean[:] = state[0]
        if episode_start is not None:
            starts = np.asarray(episode_start, dtype=bool).reshape(-1)
            if len(starts) not in (1, n_envs):
                raise ValueError(
                    f"episode_start has {len(starts)} entries for {n_envs} observation(s): give one for each."
                )
            mean[np.broadcast_to(starts, n_envs)] = 0
        if n_envs == 0:  # here, so that no planner, compiled or recorded, has to know of it
            none = to_device(mean, self.device)
            return Plan(none[:, 0], none, none, none[:, 0], none[:, 0, 0]), vectorized
        if deterministic:
            if self._bank is None:
                self._bank = planner.draw(1, th.Generator().manual_seed(BANK_SEED), explore=False).to(self.device)
            noise, shift = self._bank, None
        else:
            noise = planner.draw(n_envs, self.generator, explore=True)
            shift = self.draw_shift(n_envs) if self.augment_at_inference else None
        if self.acceleration.compiles and self._compiled_plan is None:
            self._compiled_plan = self.compile_plan(planner)
        make: Callable[..., Plan] = self._compiled_plan or self.plan
        if self._compiled_plan is None and self.device.type != "cpu":  # which evaluates in parts of its own
            make = partial(self.plan_in_parts, make)
        with self.acceleration.applied():
            plan = make(obs_tensor, to_device(mean, self.device), shift, noise)
        if not th.cat([part.flatten() for part in plan]).isfinite().all():
            raise ValueError(self._explain_nan(obs_tensor, plan, context))
        return plan, vectorized

    @th.no_grad()
    def _explain_nan(self, observation: PyTorchObs, plan: Plan, context: str) -> str:
        """
        :param observation: observations ``[E, *shape]``, or a dict of them
        :param plan: plan of which a part is NaN or infinite
        :param context: when that is
        :return: the message: what is NaN, and because of which parameters
        """
        model, planner = self.active()
        z = model.encode(observation)
        parts = {"latent state": z, "policy prior": model.act(z, None), "estimated return": plan.elite_value}
        wrong = [name for name, part in parts.items() if not part.isfinite().all()] or ["planned action"]
        networks = {
            name.partition(".")[0]: None
            for module in (*planner.models, planner)
            for name, parameter in (*module.named_parameters(), *module.named_buffers())
            if not parameter.isfinite().all()
        }
        cause = f"parameters of {', '.join(networks)} are NaN or infinite" if networks else "its parameters are finite"
        return (
            f"The model gives no finite {' and no finite '.join(wrong)} {context} ({cause}), so no action was taken: "
            "load an earlier checkpoint, with a lower learning_rate or smaller rewards."
        )

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
        :param state: state returned by the previous call, None to plan without warm start
        :param episode_start: which environments begin an episode ``[n_envs]``; their part of the state is cleared
        :param deterministic: whether to plan deterministically
        :return: actions in the action space and the state for the next call, ``(mean [n_envs, H, A],)``
        :raises ValueError: if an observation is not finite, if the state or ``episode_start`` has a wrong shape, or if
            a part of the plan is NaN or infinite: such an action is never returned
        """
        plan, vectorized = self.plan_batch(observation, state, episode_start, deterministic)
        actions = self.to_env_actions(plan.action.cpu().numpy())
        return actions if vectorized else actions[0], (plan.mean.cpu().numpy().copy(),)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``[E, A]`` in [-1, 1]
        :return: actions ``[E, *shape]`` of the action space, within its bounds and of its type
        """
        space = self.action_space
        unscaled = self.unscale_action(actions.reshape(-1, *space.shape))
        return np.clip(unscaled, space.low, space.high).astype(space.dtype)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``[E, *shape]``
        :param deterministic: see :meth:`predict`
        :return: actions planned without warm start ``[E, A]`` in [-1, 1]; in training mode, where gradients are
            recorded, those of the policy prior, because a plan has no gradient: a loss of them trains the prior (by
            SB3's recipe for imitation, for example)
        """
        if self.training and th.is_grad_enabled():
            actor: PriorPolicy = self.actor  # type: ignore[assignment]  # of the derived class
            actions: th.Tensor = actor(observation, deterministic)
            return actions
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        arrays: Any = (
            {key: value.cpu().numpy() for key, value in observation.items()}
            if isinstance(observation, dict)
            else observation.cpu().numpy()
        )
        return self.plan_batch(arrays, deterministic=deterministic)[0].action

    def __getstate__(self) -> dict[str, Any]:
        # The compiled plan and the views are bound to this object: a copy makes its own
        return {**self.__dict__, "_compiled_plan": None, "_views": {}}
