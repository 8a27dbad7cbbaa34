"""
Several tasks in one agent (TD-MPC2, section 3.3): shared networks, conditioned on a learned task embedding.

Observations are dicts with the index of the task under ``task``. Observations and actions have the size of the largest
task: the environment pads shorter observations with zeros, and the model masks the missing action dimensions.
"""

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_mpc.common.checks.arguments import UnsupportedObservationError
from sb3_mpc.common.discount import DEFAULT_GAMMA, discount_from_episode_length, env_attribute
from sb3_mpc.common.networks.sizes import multitask_sizes
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.policies.world_model_policy import MultiInputPolicy

TASK = "task"  # key of the task index in the observation
OBSERVATION = "obs"  # and of the numbers that are padded
EMBEDDING_INIT = 0.02  # bound of the uniform initialisation of embeddings (official code)
# Longest embedding. The tolerance keeps the bits of one that was shortened already, so that resumed runs stay exact
MAX_NORM, NORM_TOLERANCE = 1.0, 1e-5


class MultitaskWorldModel(WorldModel):
    """
    World model whose latent states ``[..., D + 1]`` consist of D latent features and the index of their task.

    The index selects the embedding e ``[..., E]``, which is an input of all networks, the action mask and the discount
    factor of the task.

    :param task_dim: size E of the embedding
    :param action_dims: number of action dimensions of each of the T tasks, the first ones of A
    :param gammas: discount factor of each task
    :param kwargs: arguments of :class:`WorldModel`; the encoder's input has e in place of the task index
    """

    action_masks: th.Tensor
    gammas: th.Tensor

    def __init__(self, task_dim: int, action_dims: Sequence[int], gammas: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs, context_dim=task_dim)
        # Without max_norm, which changes the weights in every look-up: `constrain` does that where they change
        self.task_embedding = nn.Embedding(len(action_dims), task_dim)
        nn.init.uniform_(self.task_embedding.weight, -EMBEDDING_INIT, EMBEDDING_INIT)
        self.register_load_state_dict_post_hook(_constrain_loaded)  # type: ignore[no-untyped-call]
        masks = th.arange(self.action_dim) < th.tensor(action_dims).unsqueeze(1)
        self.register_buffer("action_masks", masks.float(), persistent=False)  # [T, A]
        self.register_buffer("gammas", th.tensor(gammas, dtype=th.float32).unsqueeze(1), persistent=False)  # [T, 1]

    @th.no_grad()
    def constrain(self) -> None:
        """Shorten embeddings to a norm of 1."""
        weight = self.task_embedding.weight
        norm = weight.norm(dim=1, keepdim=True)
        weight.mul_(th.where(norm > MAX_NORM + NORM_TOLERANCE, MAX_NORM / norm, 1.0))

    def task(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D + 1]``
        :return: indices of their tasks ``[...]``
        """
        return z[..., -1].long()

    def encode(self, observations: th.Tensor | dict[str, th.Tensor], shift: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: dict of ``[..., *shape]`` and the task indices ``[...]``
        :param shift: random shifts of image observations ``[..., 2]``, none if None
        :return: latent states ``[..., D + 1]``
        """
        assert isinstance(observations, dict)
        task = observations[TASK].long()
        z = super().encode({**observations, TASK: self.task_embedding(task)}, shift)
        return th.cat([z, task.unsqueeze(-1).to(z.dtype)], dim=-1)

    def inputs(self, z: th.Tensor, action: th.Tensor | None = None) -> th.Tensor:
        """:return: latent features, embedding and masked action, in this order ``[..., D + E (+ A)]``"""
        features = th.cat([z[..., :-1], self.task_embedding(self.task(z))], dim=-1)
        return super().inputs(features, None if action is None else self.mask_actions(z, action))

    def next(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """:return: predicted next latent states of the same tasks ``[..., D + 1]``"""
        return th.cat([super().next(z, action), z[..., -1:]], dim=-1)

    def prior(self, z: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: mean before tanh and log standard deviation, both ``[..., A]``, 0 in masked dimensions"""
        mean, log_std = super().prior(z)
        return self.mask_actions(z, mean), self.mask_actions(z, log_std)

    def act(self, z: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """:return: actions of the policy prior ``[..., A]``, zero in masked dimensions"""
        return super().act(z, None if noise is None else self.mask_actions(z, noise))

    def mask_actions(self, z: th.Tensor, x: th.Tensor) -> th.Tensor:
        """:return: x ``[..., A]``, zero in dimensions that the task does not have"""
        return x * self.action_masks[self.task(z)]

    def mask_gaussian(self, z: th.Tensor, mean: th.Tensor, std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: mean and standard deviation ``[..., A]``, 0 and 1 in dimensions that the task does not have"""
        exists = self.action_masks[self.task(z)] > 0
        return th.where(exists, mean, 0.0), th.where(exists, std, 1.0)

    def num_actions(self, z: th.Tensor) -> th.Tensor:
        """:return: number of action dimensions of the tasks ``[..., 1]``"""
        return self.action_masks[self.task(z)].sum(-1, keepdim=True)

    def discount(self, z: th.Tensor, gamma: float) -> th.Tensor:
        """:return: discount factors of the tasks ``[..., 1]``; ``gamma`` is ignored"""
        return self.gammas[self.task(z)]


def _constrain_loaded(model: nn.Module, _: Any) -> None:
    assert isinstance(model, MultitaskWorldModel)
    model.constrain()


@cache
def multitask(world_model_class: type[WorldModel]) -> type[MultitaskWorldModel]:
    """
    :param world_model_class: world model of a single task
    :return: that of several ones
    """
    if world_model_class is WorldModel:
        return MultitaskWorldModel
    name = f"Multitask{world_model_class.__name__}"
    return type(name, (MultitaskWorldModel, world_model_class), {"__doc__": f"{name}: {world_model_class.__doc__}"})


def short_name(task: str) -> str:
    """
    :param task: name or id of a task
    :return: its name without suite and version, ``"walker-walk"`` of ``"dmc/walker-walk-v0"``
    """
    name, _, version = task.rpartition("/")[2].rpartition("-v")
    return name if version.isdigit() else task.rpartition("/")[2]


def widened(x: th.Tensor, axes: dict[int, tuple[list[int], list[int]]]) -> th.Tensor:
    """
    :param x: any shape
    :param axes: by axis, the sizes of the parts that it consists of, and those that they are to have
    :return: x with parts of these sizes, each filled up with zeros
    """
    for axis, (before, after) in axes.items():
        starts = np.cumsum([0, *after[:-1]])
        places = [np.arange(size) + start for size, start in zip(before, starts, strict=True)]
        shape = [*x.shape[:axis], sum(after), *x.shape[axis + 1 :]]
        x = x.new_zeros(shape).index_copy(axis, th.as_tensor(np.concatenate(places), device=x.device), x)
    return x


class MultitaskWorldModelPolicy(MultiInputPolicy):
    """
    World-model policy for environments with a ``spaces.Discrete`` observation ``task``, as in
    ``spaces.Dict(obs=spaces.Box(...), task=spaces.Discrete(2))``.

    :param observation_space: space of the observations, a dict
    :param action_space: space of the actions, as large as that of the largest task
    :param lr_schedule: learning rate schedule
    :param action_dims: number of action dimensions of each task; an environment ignores the others
    :param gammas: discount factor of each task, see :func:`sb3_mpc.common.discount.discount_from_episode_length`
    :param task_names: name of each task, such as its id; None if they have none
    :param task_dim: size of the task embedding; None for the papers', 96, but 64 with 30 tasks (mt30) in models of 5,
        19 and 48 million parameters
    :param model_size: see :class:`sb3_mpc.common.policies.world_model_policy.WorldModelPolicy`
    :param latent_dim: likewise; with 30 tasks 512 by default in the model of 19 million parameters, as for mt30
    :param kwargs: its other arguments
    :raises UnsupportedObservationError: if the observation space has no such key, or the tasks are not all described
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        action_dims: Sequence[int],
        gammas: Sequence[float],
        task_names: Sequence[str] | None = None,
        task_dim: int | None = None,
        model_size: int = 5,
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        task = observation_space.spaces.get(TASK) if isinstance(observation_space, spaces.Dict) else None
        if not isinstance(task, spaces.Discrete) or task.start != 0 or not len(action_dims) == len(gammas) == task.n:
            raise UnsupportedObservationError(
                "A multitask policy needs a dict observation whose key 'task' is a Discrete space that starts at zero, "
                f"with one entry of action_dims and gammas for each task, got {observation_space}, {action_dims=}, "
                f"{gammas=}."
            )
        if task_names is not None and len(set(task_names)) != task.n:
            raise ValueError(f"task_names={list(task_names)} must be {task.n} different names, one for each task.")
        self.task_names = None if task_names is None else list(task_names)
        papers_latent_dim, papers_task_dim = multitask_sizes(model_size, len(action_dims))
        latent_dim, task_dim = latent_dim or papers_latent_dim, task_dim or papers_task_dim
        self.tasks: dict[str, Any] = dict(task_dim=task_dim, action_dims=list(action_dims), gammas=list(gammas))
        # The encoder's input has the embedding in place of the task index
        embedded = {**observation_space.spaces, TASK: spaces.Box(-np.inf, np.inf, (task_dim,), np.float32)}
        sizes: dict[str, Any] = dict(model_size=model_size, latent_dim=latent_dim)
        kwargs["normalize_observations"] = False  # what a number of a padded observation means depends on the task
        super().__init__(spaces.Dict(embedded), action_space, lr_schedule, **sizes, **kwargs)
        self.observation_space = observation_space
        self._init_kwargs |= self.tasks | dict(task_names=self.task_names)

    def make_world_model(self, **kwargs: Any) -> WorldModel:
        """:return: the world model of all tasks"""
        return multitask(self._init_kwargs["world_model_class"])(**self.tasks, **kwargs)

    @classmethod
    def arguments_of_env(cls, env: VecEnv | None) -> dict[str, Any]:
        """
        :param env: environment
        :return: names, numbers of actions and discount factors of its tasks, if it knows them, as those of
            ``sb3_mpc.envs.make_multitask`` do
        """
        names, action_dims, lengths = (
            env_attribute(env, name) for name in ("task_names", "action_dims", "task_lengths")
        )
        if action_dims is None or lengths is None:
            return {}
        gammas = [DEFAULT_GAMMA if length is None else discount_from_episode_length(length) for length in lengths]
        return dict(task_names=None if names is None else list(names), action_dims=list(action_dims), gammas=gammas)

    def parts(self) -> dict[tuple[str, int], list[int]]:
        """
        :return: where the number of tasks, observations or actions determines the size of a parameter: by its name and
            axis, the sizes of the parts that it consists of there
        """
        model = self.world_model
        extractors: Any = getattr(model.encoder.features_extractor, "extractors", [])
        inputs, last, takes_action = [model.input_dim, model.action_dim], len(model.prior_net) - 1, model.values_actions
        found = {
            ("task_embedding.weight", 0): [len(self.tasks["action_dims"])],
            ("encoder.head.0.weight", 1): [extractor.features_dim for extractor in extractors],
            **{(f"{head}.0.weight", 1): inputs for head in ("dynamics", "reward_head")},
            **{(f"{q}.layers.0.weight", 2): inputs for q in ("q_ensemble", "q_target") if takes_action},
            **{(f"prior_net.{last}.{kind}", 0): [model.action_dim] * 2 for kind in ("weight", "bias")},
        }
        named = {(f"world_model.{name}", axis): sizes for (name, axis), sizes in found.items()}
        return named | {(f"planner.{name}", axis): sizes for (name, axis), sizes in self.planner.action_parts().items()}

    def take_over(self, other: "MultitaskWorldModelPolicy", like: int) -> None:
        """
        Take over parameters, state of the optimisers and random numbers of a policy with one task less. Where there are
        more observations or actions, new entries are zero.

        :param other: the policy
        :param like: task whose embedding the new one, the last, begins with
        """
        axes: dict[str, dict[int, tuple[list[int], list[int]]]] = {}
        after = self.parts()
        for (name, axis), sizes in other.parts().items():
            axes.setdefault(name, {})[axis] = (sizes, after[name, axis])

        def moved(name: str, x: th.Tensor) -> th.Tensor:
            return widened(x, axes[name]) if name in axes else x

        state = {name: moved(name, value) for name, value in other.state_dict().items()}
        embeddings = state["world_model.task_embedding.weight"]
        embeddings[-1] = embeddings[like]
        self.load_state_dict(state)
        own = dict(self.named_parameters())
        for name, parameter in other.named_parameters():
            own[name].requires_grad_(parameter.requires_grad)
            for mine, theirs in (
                (self.model_optimizer, other.model_optimizer),
                (self.pi_optimizer, other.pi_optimizer),
            ):
                for key, value in theirs.state.get(parameter, {}).items():
                    same = isinstance(value, th.Tensor) and value.shape == parameter.shape
                    mine.state[own[name]][key] = moved(name, value) if same else value
        self._seed = other._seed
        self.set_rng_state(other.get_rng_state())

    def check_env(self, env: VecEnv) -> None:
        """
        :param env: environment that the agent is to act or learn in
        :raises ValueError: if it has tasks of the agent at other indices, in so far as it knows their names
        """
        names = self.task_names or []
        places = env.get_attr("task_place") if env_attribute(env, "task_place") is not None else []
        for task, name in places:
            if name in names and names.index(name) != task:
                raise ValueError(
                    f"The environment has {name} as task {task}, which is task {names.index(name)} of the agent: give "
                    "the tasks in the agent's order, which is in model.policy.task_names."
                )

    def task_index(self, task: str | int) -> int:
        """
        :param task: index of a task, its name, or its name without suite and version, such as ``"walker-walk"``
        :return: its index
        :raises ValueError: if there is none, or there are several of that name
        """
        names = self.task_names or []
        if isinstance(task, str):
            found = [i for i, name in enumerate(names) if name == task]
            found = found or [i for i, name in enumerate(names) if short_name(name) == short_name(task)]
            if len(found) == 1:
                return found[0]
        elif 0 <= task < len(self.tasks["action_dims"]):
            return int(task)
        close = difflib.get_close_matches(str(task), [*names, *map(short_name, names)], n=3)
        known = ", ".join(close or names[:8]) or "no names, use an index"
        count = len(self.tasks["action_dims"])
        raise ValueError(f"The agent has no task {task!r}, or several: of its {count} tasks, known are {known}.")
