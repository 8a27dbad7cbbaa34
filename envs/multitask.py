"""
Environments of several tasks for one agent: observations say which task it is, shorter ones are padded with zeros, and
actions are as long as those of the task that has the most. :func:`make_multitask` puts the tasks side by side::

    env = make_multitask("mt30")  # or a list of ids
    model = TDMPC2("MultitaskPolicy", env)

:data:`TASK_SETS` has the sets of TD-MPC2, in the official order, which is that of the task indices in its checkpoints.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

_MT30 = """
    walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup
    cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin
    finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop
    walker-walk-backwards walker-run-backwards cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump
    hopper-hop-backwards reacher-three-easy reacher-three-hard cup-spin pendulum-spin
"""
_MT50 = """
    assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button
    coffee-pull coffee-push dial-turn disassemble door-open door-close drawer-close drawer-open faucet-open
    faucet-close hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull peg-insert-side
    peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side plate-slide-back
    plate-slide-back-side push-back push push-wall reach reach-wall shelf-place soccer stick-push stick-pull
    sweep-into sweep window-open window-close bin-picking box-close door-lock door-unlock hand-insert
"""

#: Few-shot tasks of TD-MPC2 (figure 5) -> the task whose embedding a new one begins with
FEW_SHOT: dict[str, str] = {
    "dmc/walker-run-v0": "dmc/walker-walk-v0",
    "dmc/cheetah-run-v0": "dmc/cheetah-run-backwards-v0",
    "dmc/hopper-hop-v0": "dmc/hopper-stand-v0",
    "dmc/pendulum-swingup-v0": "dmc/pendulum-spin-v0",
    "dmc/reacher-hard-v0": "dmc/reacher-easy-v0",
    "metaworld/bin-picking-v3": "metaworld/pick-place-v3",
    "metaworld/box-close-v3": "metaworld/assembly-v3",
    "metaworld/door-lock-v3": "metaworld/door-open-v3",
    "metaworld/door-unlock-v3": "metaworld/door-open-v3",
    "metaworld/hand-insert-v3": "metaworld/sweep-into-v3",
}

_DMC = tuple(f"dmc/{name}-v0" for name in _MT30.split())
_ALL = _DMC + tuple(f"metaworld/{name}-v3" for name in _MT50.split())

#: Name -> ids: 30 tasks of DMControl; these and the 50 of Meta-World; these without the ten that are held out
TASK_SETS: dict[str, tuple[str, ...]] = {
    "mt30": _DMC,
    "mt80": _ALL,
    "mt70": tuple(task for task in _ALL if task not in FEW_SHOT),
}


class Sizes(NamedTuple):
    """
    What an agent has to know of several tasks; each entry has one number for each task.

    :param task_names: ids of the tasks
    :param observation_dims: numbers in an observation
    :param action_dims: numbers in an action
    :param task_lengths: decisions in an episode, None if there is no limit
    """

    task_names: tuple[str, ...]
    observation_dims: tuple[int, ...]
    action_dims: tuple[int, ...]
    task_lengths: tuple[int | None, ...]

    @property
    def observation_space(self) -> spaces.Dict:
        """:return: ``obs``, as long as the longest observation, and ``task``, the index of the task"""
        return spaces.Dict(
            obs=spaces.Box(-np.inf, np.inf, (max(self.observation_dims),), np.float32),
            task=spaces.Discrete(len(self.task_names)),
        )

    @property
    def action_space(self) -> spaces.Box:
        """:return: actions in [-1, 1], as long as those of the task that has the most"""
        return spaces.Box(-1.0, 1.0, (max(self.action_dims),), np.float32)


class TaskEnv(gym.Wrapper):
    """
    One task of several: observations get the index of the task and are padded with zeros at the end, actions are cut at
    the end to those that the task has. An agent of several tasks acts and learns in one of them by::

        env = TaskEnv(gym.make("dmc/walker-run-v0"), task, model.observation_space, model.action_space)

    :param env: environment of the task: flat observations [D], bounded actions [A]
    :param task: index of the task
    :param observation_space: space of all tasks, ``Dict(obs=Box, task=Discrete)``
    :param action_space: space of all tasks, bounded by -1 and 1
    :param sizes: of all tasks, for agents that are made for this environment
    :raises ValueError: if the task does not fit into these spaces
    """

    def __init__(
        self,
        env: gym.Env,
        task: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        sizes: Sizes | None = None,
    ) -> None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        own, parts = sizes_of(env, name), {}
        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces
        padded, tasks = parts.get("obs"), parts.get("task")
        if not isinstance(padded, spaces.Box) or not isinstance(tasks, spaces.Discrete) or len(parts) != 2:
            raise ValueError(
                f"{name} needs a space Dict(obs=Box, task=Discrete) of several tasks, got {observation_space}."
            )
        room = (*padded.shape, *(action_space.shape or ()))
        if len(room) != 2 or own.observation_dims[0] > room[0] or own.action_dims[0] > room[1]:
            raise ValueError(
                f"{name} has {own.observation_dims[0]} observations and {own.action_dims[0]} actions, and the "
                f"spaces of the agent have room for {room}: give add_task its observation_dim and action_dim."
            )
        if not 0 <= task < int(tasks.n):
            raise ValueError(f"{name} cannot be task {task} of {tasks.n}: the first one is 0.")
        actions = env.action_space
        assert isinstance(actions, spaces.Box)
        if (actions.low != -1).any() or (actions.high != 1).any():
            env = RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        super().__init__(env)
        self.observation_space, self.action_space = observation_space, action_space
        self.task, self.task_place = task, (task, name)
        self._padded = np.zeros(room[0], np.float32)
        self._action_dim = own.action_dims[0]
        if sizes is not None:
            self.task_names, self.action_dims, self.task_lengths = (
                sizes.task_names,
                sizes.action_dims,
                sizes.task_lengths,
            )

    @property
    def spec(self) -> None:  # type: ignore[override]
        """:return: None: no id makes this environment"""
        return None

    def _observe(self, observation: Any) -> dict[str, Any]:
        padded = self._padded.copy()
        padded[: len(observation)] = observation
        return dict(obs=padded, task=np.int64(self.task))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Start an episode.

        :param seed: passed on to the environment
        :param options: passed on to the environment
        :return: the first observation, padded, with the index of the task; and the info of the environment
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation), info

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        Carry out one decision.

        :param action: the action of all tasks, of which this task gets the first numbers
        :return: the observation, padded, with the index of the task; and the rest as the environment returns it
        """
        own = np.asarray(action, np.float32)[: self._action_dim]
        observation, reward, terminated, truncated, info = self.env.step(own)
        return self._observe(observation), float(reward), terminated, truncated, info


def find_tasks(tasks: str | Sequence[Any]) -> tuple[Any, ...]:
    """
    :param tasks: name of a set, such as ``"mt30"``, an id, or a list of both, and of functions that make environments
    :return: the ids and functions
    :raises ValueError: if there are none, or one is there twice
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    found = tuple(task for name in names for task in TASK_SETS.get(name, (name,)))
    twice = [task for index, task in enumerate(found) if task in found[:index]]
    if twice:
        raise ValueError(f"{twice[0]} is there twice: name each task once.")
    if not found:
        raise ValueError(f"There is no task: give ids, or one of the sets {', '.join(TASK_SETS)}.")
    return found


def sizes_of(env: gym.Env, name: str) -> Sizes:
    """
    :param env: environment of a task
    :param name: its name
    :return: its sizes
    :raises ValueError: if observations or actions are no flat boxes
    """
    for kind, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"The {kind} of {name} are {space}: several tasks need flat boxes, with one dimension.")
    limit = env.get_wrapper_attr("_max_episode_steps") if env.has_wrapper_attr("_max_episode_steps") else None
    observed, acted = env.observation_space.shape or (0,), env.action_space.shape or (0,)
    return Sizes((name,), (observed[0],), (acted[0],), (limit,))


def make_multitask(
    tasks: str | Sequence[str | Callable[[], gym.Env]],
    copies: int = 1,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv,
    seed: int | None = None,
    **kwargs: Any,
) -> VecEnv:
    """
    Environments of several tasks side by side, for an agent with ``"MultitaskPolicy"``, which reads names, numbers of
    actions and discount factors of the tasks off them.

    :param tasks: name of a set of :data:`TASK_SETS`, ids, or functions that make an environment
    :param copies: number of environments of each task; those of a task are next to each other
    :param vec_env_cls: class of the vectorised environment; in worker processes with ``SubprocVecEnv``, for which each
        task is made once here, too, to know its sizes
    :param seed: seed of the first episodes
    :param kwargs: further arguments of ``gym.make``, for all tasks
    :return: the environments, in the order of the tasks, whose index is in the observation
    :raises ValueError: if a task cannot be padded, because it has images, for example
    """
    if copies < 1:
        raise ValueError(f"copies={copies} is out of range: use a number of at least 1.")
    made = find_tasks(tasks)

    def make(task: str | Callable[[], gym.Env]) -> gym.Env:
        return gym.make(task, **kwargs) if isinstance(task, str) else task()

    parts = []
    for index, task in enumerate(made):
        env = make(task)
        parts.append(sizes_of(env, task if isinstance(task, str) else f"{type(env.unwrapped).__name__}-{index}"))
        env.close()
    sizes = Sizes(*(tuple(entry for (entry,) in column) for column in zip(*parts, strict=True)))

    def maker(index: int) -> Callable[[], gym.Env]:
        task = made[index]
        return lambda: Monitor(TaskEnv(make(task), index, sizes.observation_space, sizes.action_space, sizes))

    venv = vec_env_cls([maker(index) for index in range(len(made)) for _ in range(copies)])
    if seed is not None:
        venv.seed(seed)
    return venv
