"""What all measurements share: when they are made, and where the results go."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_mpc.common.algorithm import WorldModelAlgorithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measurement(BaseCallback):
    """
    Base class of callbacks that measure a trained or learning agent. A measurement draws from no random numbers of the
    training, which goes on as it would without it.

    Results are logged under the name of the measurement, kept in ``results``, and, if there is a folder, written to
    ``<name>.csv`` and drawn in ``<name>.png`` (needs matplotlib). To measure a trained agent::

        callback.init_callback(model)
        callback.record()

    :param eval_freq: measure every ``eval_freq`` steps of the (vectorised) training environment
    :param folder: folder for table and picture, none if None
    :param verbose: whether to print the results
    """

    model: WorldModelAlgorithm
    name: ClassVar[str]

    def __init__(self, eval_freq: int = 10_000, folder: str | Path | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        if eval_freq < 1:
            raise ValueError(f"{eval_freq=} must be at least 1.")
        self.eval_freq, self.folder = eval_freq, None if folder is None else Path(folder)
        self.results: list[dict[str, float]] = []

    def measure(self) -> dict[str, float]:
        """:return: the results by name; nothing is logged or kept"""
        raise NotImplementedError

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            self.record()
            for name, value in self.results[-1].items():
                if name != "timesteps":
                    self.logger.record(f"{self.name}/{name}", value)
        return True

    def record(self) -> dict[str, float]:
        """
        Measure, and keep the results.

        :return: the results by name
        """
        self.model.policy.set_training_mode(False)
        found = self.measure()
        self.results.append(dict(timesteps=self.model.num_timesteps, **found))
        if self.verbose > 0:
            listed = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
            print(f"Step {self.model.num_timesteps}: {self.name}: {listed}")
        if self.folder is not None:
            self.write(self.folder)
        return found

    def write(self, folder: Path) -> None:
        """
        :param folder: where the table of all results and the picture are written
        """
        from matplotlib.figure import Figure

        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self.results[-1])
            writer.writeheader()
            writer.writerows(self.results)
        figure = Figure(figsize=(5.5, 4), layout="constrained")
        self.draw(figure)
        figure.savefig(folder / f"{self.name}.png", dpi=120)

    def draw(self, figure: "Figure") -> None:
        """
        :param figure: empty figure to draw in; here, one panel for each result over the steps
        """
        steps = [row["timesteps"] for row in self.results]
        groups = self.panels()
        figure.set_size_inches(4.2 * len(groups), 3.6)
        for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items(), strict=True):
            for name in names:
                axes.plot(steps, [row[name] for row in self.results], "o-", ms=4, label=name.replace("_", " "))
            axes.set(xlabel="environment steps", title=title)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)

    def panels(self) -> dict[str, list[str]]:
        """:return: results that are drawn together, by the title of their panel"""
        return {self.name.replace("_", " "): [name for name in self.results[-1] if name != "timesteps"]}


class EpisodeMeasurement(Measurement):
    """
    Base class of measurements that need an environment.

    :param eval_env: separate environment to measure in, wrapped as the training environment is (with
        ``VecNormalize(..., training=False)`` if training normalises, rewards included)
    :param eval_freq: see :class:`Measurement`
    :param n_eval_episodes: number of episodes
    :param verbose: see :class:`Measurement`
    :param folder: see :class:`Measurement`
    """

    eval_env: VecEnv

    def __init__(
        self,
        eval_env: GymEnv,
        eval_freq: int = 10_000,
        n_eval_episodes: int = 10,
        verbose: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(eval_freq, folder, verbose)
        if n_eval_episodes < 1:
            raise ValueError(f"{n_eval_episodes=} must be at least 1.")
        self.eval_env = BaseAlgorithm._wrap_env(eval_env, monitor_wrapper=False)
        self.n_eval_episodes = n_eval_episodes

    def record(self) -> dict[str, float]:
        """See :meth:`Measurement.record`; the statistics of ``VecNormalize`` are those of the training."""
        if self.model.get_vec_normalize_env() is not None and self.model.get_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        return super().record()
