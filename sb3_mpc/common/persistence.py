"""Saving and loading in SB3's formats: atomic, and with the random number state that a resumed run needs."""

import contextlib
import io
import json
import pathlib
import random
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.files import DAMAGE, atomic_target, complete_name, explain_damage
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.common.presets import merged

SelfPersistence = TypeVar("SelfPersistence", bound="Persistence")


def method_name(algorithm: type) -> str:
    """:return: name of the class of this package that the algorithm is or is derived from; its own if there is none"""
    return next(
        (cls.__name__ for cls in algorithm.__mro__ if cls.__module__.startswith("sb3_mpc.")), algorithm.__name__
    )


def _read_method(path: str | pathlib.Path | io.BufferedIOBase) -> str | None:
    """:return: name of the class that saved a model, None if the file does not contain it"""
    try:
        with zipfile.ZipFile(complete_name(path, "zip") if isinstance(path, (str, pathlib.Path)) else path) as archive:
            name = json.loads(archive.read("data")).get("_saved_by")
    except (OSError, ValueError, AttributeError, *DAMAGE):  # load() gives the better message
        return None
    return name if isinstance(name, str) else None


@contextlib.contextmanager
def global_randomness_kept(wanted: bool = True) -> Iterator[None]:
    """
    :param wanted: if False, the context has no effect
    :return: context after which the global generators of Python, NumPy and PyTorch are as before
    """
    if not wanted:
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(th.cuda.device_count()) if th.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with th.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class Persistence(OffPolicyAlgorithm):
    """
    Mixin of the algorithm that saves and loads in SB3's formats. Files are written atomically and contain the random
    number state, so that a resumed run continues as if it had not been interrupted.
    """

    # Provided by the algorithm
    buffer_class: ClassVar[type[SequenceReplayBuffer]]
    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer
    episodic: bool | str
    horizon: int

    def forget_compiled(self) -> None:
        """Discard compiled functions; called whenever networks are replaced or added."""
        raise NotImplementedError

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of Python, NumPy, PyTorch, the environment and the agent's own generators; nothing if None
        """
        seed = processes.own_seed(seed, self.n_envs)
        super().set_random_seed(seed)
        self._seed_generators(seed)

    def _seed_generators(self, seed: int | None) -> None:
        if seed is not None and getattr(self, "policy", None) is not None:
            self.policy.seed(seed)
            self.replay_buffer.seed(seed)
            self.action_space.seed(seed)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compiled", "_last_plan", "_estimate", "_together"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.model_optimizer", "policy.pi_optimizer"], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model as SB3 does, with its random number state. An existing file is replaced only when the new one is
        complete.

        :param path: file to write, ``.zip`` is appended if it has no suffix
        :param exclude: names of attributes to leave out, besides the usual ones
        :param include: names of attributes to save that are usually left out
        """
        self._saved_by = method_name(type(self))
        self._rng_state = self.rng_state()
        with atomic_target(path, "zip") as target:
            super().save(target, exclude, include)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters of networks and optimisers, see SB3. They may have been saved before the first termination.

        :param load_path_or_dict: file, or parameters returned by ``get_parameters``
        :param exact_match: whether all parameters must be there
        :param device: device to load a file on
        """
        if isinstance(load_path_or_dict, dict):  # the policy first: it determines the parameters of its optimisers
            load_path_or_dict = dict(sorted(load_path_or_dict.items(), key=lambda item: item[0] != "policy"))
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self.episodic is True:
            self.policy.enable_termination()
        elif self.episodic is False:
            self.policy.disable_termination()
        self.forget_compiled()

    @classmethod
    def load(
        cls: type[SelfPersistence],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPersistence:
        """
        Load a model, see SB3. Its random number state is restored, and the global generators of the process are left
        as they are, unless a ``seed`` is given.

        :param path: file to read
        :param env: environment to continue with
        :param device: device of the model
        :param custom_objects: replacements for saved objects
        :param print_system_info: whether to print information on the saving and the present system
        :param force_reset: whether training starts with a reset
        :param kwargs: arguments to change; of ``policy_kwargs`` those that are given replace those of the file,
            and so in its dicts for planners
        :return: the model
        :raises ValueError: if the file is damaged or an agent file, the spaces of the environment differ, or there is a
            preset
        """
        changes = [*kwargs]
        if "preset" in kwargs:
            raise ValueError("A preset is for new agents, load() keeps the saved settings: leave preset out.")
        if str(path).endswith(".safetensors"):
            raise ValueError(
                f"{path} is an agent file, from which a run cannot go on: use sb3_mpc.agents.load_agent(path, env)."
            )
        saved_by = _read_method(path)
        if saved_by not in (None, method_name(cls)):
            raise ValueError(f"{path} was saved by {saved_by}, not by {method_name(cls)}: use {saved_by}.load().")
        with global_randomness_kept("seed" not in kwargs), explain_damage(path, f"{cls.__name__} model"):
            if kwargs.get("policy_kwargs"):  # in addition to those of the file, which decide on the networks
                saved = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)[0]
                if hasattr(path, "seek"):
                    path.seek(0)
                changed = merged((saved or {}).get("policy_kwargs", {}), kwargs.pop("policy_kwargs"))
                custom_objects = {**(custom_objects or {}), "policy_kwargs": changed}
            try:
                model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
            except RuntimeError as error:
                if not changes or "Error(s) in loading state_dict" not in str(error):
                    raise
                raise ValueError(
                    f"{path} has other networks than {', '.join(changes)} as given to load() would make: leave out "
                    "what determines networks and their sizes."
                ) from error
            except ValueError as error:
                if "spaces do not match" not in str(error):
                    raise
                raise ValueError(
                    f"{path} was trained in another environment than the one given to load(): {error}."
                ) from error
        model.restore_rng_state(seeded="seed" in kwargs)
        return model

    def rng_state(self) -> dict[str, Any]:
        """:return: state of the agent's own random numbers"""
        return dict(policy=self.policy.get_rng_state(), action_space=self.action_space.np_random)

    def restore_rng_state(self, seeded: bool = False) -> None:
        """
        Restore what a file has kept of :meth:`rng_state`.

        :param seeded: whether the user has given a seed, which wins
        """
        state = getattr(self, "_rng_state", None)
        if state is not None and not seeded:
            self.policy.set_rng_state(state["policy"])
            self.action_space._np_random = state["action_space"]
        if processes.rank() > 0 and not seeded:  # that state is the first process's
            self._seed_generators(processes.seed_after(self._n_updates))

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        :param path: file to write, ``.pkl`` is appended if it has no suffix
        """
        with atomic_target(path, "pkl") as target:
            super().save_replay_buffer(target)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        :param path: file written by :meth:`save_replay_buffer`
        :param truncate_last_traj: with ``HerReplayBuffer``, whether to treat the last episode as finished; no effect
            otherwise: the buffer detects by itself whether an episode continues
        :raises ValueError: if the file is damaged or does not match the model; the present buffer is kept
        """
        current: Any = self.__dict__.get("replay_buffer")  # scripts may delete it first to save memory
        try:
            with explain_damage(path, "replay buffer"):
                super().load_replay_buffer(path, truncate_last_traj)
            loaded = self.replay_buffer
            if not isinstance(loaded, self.buffer_class):
                raise ValueError(
                    f"{path} holds a {type(loaded).__name__}, not a {self.buffer_class.__name__} of this package as "
                    f"{type(self).__name__} needs it."
                )
            for name, saved, wanted in (
                ("observation space", loaded.observation_space, self.observation_space),
                ("action space", loaded.action_space, self.action_space),
                ("number of environments", loaded.n_envs, self.n_envs),
            ):
                if saved != wanted:
                    raise ValueError(f"{path} does not fit this model: its {name} is {saved}, the model's is {wanted}.")
            loaded.horizon = self.horizon
            loaded.sampling = self.replay_buffer_kwargs.get("sampling", loaded.sampling)
            loaded.storage = self.replay_buffer_kwargs.get("storage", loaded.storage)
        except Exception:
            self.replay_buffer = current
            raise
