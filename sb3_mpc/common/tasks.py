"""A trained agent of several tasks gains another one."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.policies.multitask import OBSERVATION, TASK, MultitaskWorldModelPolicy
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy


class SeveralTasks(OffPolicyAlgorithm):
    """Mixin of the algorithm for agents with a :class:`MultitaskWorldModelPolicy`."""

    # Provided by the algorithm
    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer
    pretrain_gradient_steps: int | str

    def _make_policy(self) -> None:
        raise NotImplementedError

    def _setup_buffer(self) -> None:
        raise NotImplementedError

    def forget_compiled(self) -> None:
        """Discard compiled functions; called whenever networks are replaced or added."""
        raise NotImplementedError

    def add_task(
        self,
        like: str | int,
        action_dim: int | None = None,
        gamma: float | None = None,
        name: str | None = None,
        observation_dim: int | None = None,
        n_envs: int = 1,
    ) -> int:
        """
        Add a task, to be learned with what the agent knows (TD-MPC2, section 4.3: few-shot learning)::

            task = model.add_task(like="walker-walk", name="dmc/walker-run-v0")
            env = gym.make("dmc/walker-run-v0")
            model.set_env(TaskEnv(env, task, model.observation_space, model.action_space))  # of sb3_mpc.envs.multitask
            model.learn(10_000)

        The embedding of the new task is a copy of another one's. All weights and the state of the optimisers stay.
        Where observations or actions are larger than those of all tasks so far, the new columns of weights are zero, so
        that the tasks so far are unchanged. The replay buffer is empty afterwards, the agent has no environment, and
        ``learn`` begins without random actions, as ``learning_starts`` and ``pretrain_gradient_steps`` become 0.

        :param like: task whose embedding is copied: its index, its id, or its name without suite and version
        :param action_dim: number of action dimensions of the new task, those of the other one if None
        :param gamma: discount factor of the new task, that of the other one if None; see
            :func:`sb3_mpc.common.discount.discount_from_episode_length`
        :param name: name of the new task, such as its id
        :param observation_dim: numbers in an observation of the new task (key ``obs``); there is room for as many as
            the largest task so far has if None
        :param n_envs: number of environments that the agent will be trained in
        :return: index of the new task
        :raises ValueError: if the agent has one task, knows no task ``like``, or has one called ``name`` already
        """
        old = self.policy
        if not isinstance(old, MultitaskWorldModelPolicy):
            raise ValueError(
                f'This {type(self).__name__} learns one task: train it with "MultitaskPolicy" to add others.'
            )
        index = old.task_index(like)
        dims, gammas, names = old.tasks["action_dims"], old.tasks["gammas"], old.task_names
        action_dim = dims[index] if action_dim is None else action_dim
        gamma = gammas[index] if gamma is None else gamma
        check_range("action_dim", action_dim, 1)
        check_range("gamma", gamma, 0, 1)
        check_range("n_envs", n_envs, 1)
        if name is not None and name in (names or []):
            raise ValueError(f"The agent has a task called {name!r} already: train on it, or choose another name.")
        if names is not None or name is not None:
            names = [*(names or (f"task {i}" for i in range(len(dims)))), name or f"task {len(dims)}"]
        kept = {
            key: vars(self)[key] for key in ("observation_space", "action_space", "policy_kwargs", "policy", "n_envs")
        }
        kept["replay_buffer"] = self.replay_buffer
        try:
            self._widen_spaces(len(dims) + 1, action_dim, observation_dim)
            sizes = dict(task_dim=old.tasks["task_dim"], latent_dim=old.world_model.latent_dim)
            tasks = dict(action_dims=[*dims, action_dim], gammas=[*gammas, gamma], task_names=names)
            self.policy_kwargs = {**self.policy_kwargs, **sizes, **tasks}
            with th.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                self._make_policy()
            assert isinstance(self.policy, MultitaskWorldModelPolicy)
            self.policy.take_over(old, index)
            self.n_envs = n_envs
            self.replay_buffer = None  # type: ignore[assignment]
            self._setup_buffer()
            self.replay_buffer._rng = kept["replay_buffer"]._rng
        except BaseException:
            vars(self).update(kept)
            raise
        self.forget_compiled()
        self.env = self._vec_normalize_env = self._last_obs = None
        self.learning_starts = self.pretrain_gradient_steps = 0
        return len(dims)

    def _widen_spaces(self, tasks: int, action_dim: int, observation_dim: int | None) -> None:
        """
        Set the spaces of the agent, and say so if there are more observations or actions than before.

        :param tasks: number of tasks
        :param action_dim: number of action dimensions of the new task
        :param observation_dim: numbers in an observation of it
        """
        observations, actions = self.observation_space, self.action_space
        assert isinstance(observations, spaces.Dict) and isinstance(actions, spaces.Box)
        parts = {**observations.spaces, TASK: spaces.Discrete(tasks)}
        wider = []
        if observation_dim is not None:
            box = parts.get(OBSERVATION)
            check_range("observation_dim", observation_dim, 1)
            if not isinstance(box, spaces.Box) or len(box.shape) != 1:
                raise ValueError(
                    f"observation_dim is for observations with a flat box {OBSERVATION!r}, these are {observations}."
                )
            if observation_dim > box.shape[0]:
                wider.append(f"observations of {observation_dim} numbers in place of {box.shape[0]}")
                parts[OBSERVATION] = _wider(box, observation_dim)
        if action_dim > actions.shape[0]:
            wider.append(f"actions of {action_dim} in place of {actions.shape[0]}")
            self.action_space = _wider(actions, action_dim)
        self.observation_space = spaces.Dict([*parts.items()])
        if wider and self.verbose > 0:
            print(f"The new task has {' and '.join(wider)}: the new columns of weights begin at zero")


def _wider(box: spaces.Box, size: int) -> spaces.Box:
    """
    :param box: flat box
    :param size: number of entries, at least as many as it has
    :return: the box, with further entries that are bounded as its last one is
    """
    low, high = (np.pad(bound, (0, size - len(bound)), mode="edge") for bound in (box.low, box.high))
    return spaces.Box(low, high, dtype=box.dtype.type)  # type: ignore[arg-type, union-attr]
