"""Callbacks of a training that evaluate and save; a full disk does not end it."""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback


class SafeEvaluation(EvalCallback):
    """
    SB3's evaluation during training, which a full disk does not end: what cannot be written is not written, and there
    is a warning. The best agent is kept as an agent file, with the statistics of its observations.

    :param folder: folder of the run
    :param save: function that saves the agent of a path
    """

    def __init__(self, *args: Any, folder: Path, save: Callable[[Any, Path], Any], **kwargs: Any) -> None:
        # Written under another name first: to be killed meanwhile leaves the old results
        kwargs |= dict(log_path=str(folder / ".unfinished"), callback_on_new_best=SaveBest(folder, save))
        super().__init__(*args, **kwargs)
        self.folder = folder

    def _on_step(self) -> bool:
        try:
            going_on = super()._on_step()
            written = self.folder / ".unfinished" / "evaluations.npz"
            if self.n_calls % self.eval_freq == 0 and written.exists():
                os.replace(written, self.folder / "evaluations.npz")
        except OSError as error:
            warnings.warn(f"The evaluation could not be written ({error}): training is not affected.", stacklevel=2)
            return True
        return going_on

    def _on_training_end(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / ".unfinished").rmdir()


class SaveBest(BaseCallback):
    """
    Saves the agent whenever it is called.

    :param folder: folder to save to
    :param save: function that saves the agent of a path
    """

    def __init__(self, folder: Path, save: Callable[[Any, Path], Any]) -> None:
        super().__init__()
        self.folder, self.save = folder, save

    def _on_step(self) -> bool:
        self.save(self.model, self.folder / "best_model")
        return True


class SaveOften(BaseCallback):
    """
    Saves the agent every so many calls, for ``--save-freq``.

    :param every: number of calls
    :param folder: folder to save to
    :param save: function that saves the agent of a path
    """

    def __init__(self, every: int, folder: Path, save: Callable[[Any, Path], Any]) -> None:
        super().__init__()
        self.every, self.folder, self.save = every, folder, save

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            try:
                self.save(self.model, self.folder / f"rl_model_{self.num_timesteps}_steps")
            except OSError as error:
                warnings.warn(f"The agent could not be saved ({error}): training is not affected.", stacklevel=2)
        return True
