"""How long a run will take, by its own first plans and updates."""

import time

from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

# Runs that take less are not announced
SECONDS_WORTH_SAYING = 180.0
# Compiling pays from here on, if "auto" has not done so already
SECONDS_WORTH_COMPILING = 600.0
# Updates that are timed before the others on the seeding data: one that does not count, and these
TIMED = 2


def number_of_updates(decisions: int, n_envs: int, train_freq: TrainFreq, gradient_steps: int) -> int:
    """
    :param decisions: number of decisions, all environments together
    :param n_envs: number of environments
    :param train_freq: how often there are updates
    :param gradient_steps: how many each time; -1 for one per decision
    :return: number of updates, 0 if it depends on how long episodes are
    """
    if gradient_steps < 0:
        return decisions
    if train_freq.unit is not TrainFrequencyUnit.STEP:
        return 0
    return gradient_steps * (decisions // n_envs) // train_freq.frequency


def duration(seconds: float) -> str:
    """
    :param seconds: length of time
    :return: in words, roughly
    """
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    return f"{seconds:.0f} seconds"


class RunEstimate:
    """
    Extrapolates the time of one call of ``learn``. It is told what plans and updates have taken, and draws no random
    numbers. What callbacks do is in it as far as they do it while seeding.

    :param steps: steps of the environments, side by side, that are left
    :param plans: those of them that will be planned
    :param updates: updates that are left
    :param compiles: whether the first plan is compiled, so that its time says nothing
    """

    def __init__(self, steps: int, plans: int, updates: int, compiles: bool) -> None:
        self.steps, self.plans, self.updates, self.compiles = steps, plans, updates, compiles
        self.started = time.perf_counter()
        self.warm = False  # whether an update has been made
        self.step_seconds = 0.0  # of an environment's step and what comes with it
        self.plan_seconds: float | None = None
        self.update_seconds: float | None = None

    def planned(self, seconds: float) -> None:
        """
        :param seconds: what a plan has taken
        """
        seeding = self.steps - self.plans
        if seeding > 0:
            self.step_seconds = max(0.0, time.perf_counter() - self.started - seconds) / seeding
            self.steps = self.plans
        if not self.compiles:
            self.plan_seconds = min(seconds, self.plan_seconds or seconds)
        self.compiles = False
        self.plans, self.steps = self.plans - 1, self.steps - 1

    def updated(self, count: int, seconds: float) -> None:
        """
        :param count: number of updates
        :param seconds: what they have taken together
        """
        if self.warm and count:
            self.update_seconds = seconds / count
        self.warm = True
        self.updates -= count

    def parts(self, count: int) -> list[int]:
        """
        :param count: number of updates on the seeding data
        :return: numbers of updates to make and time one after the other
        """
        return [1, TIMED, count - 1 - TIMED] if not self.warm and count > 1 + TIMED else [count]

    def remaining(self) -> float | None:
        """:return: seconds until the end of the run, None as long as too little is known"""
        if self.plan_seconds is None or (self.update_seconds is None and self.updates > 0):
            return None
        updates = max(0, self.updates) * (self.update_seconds or 0.0)
        return self.plans * self.plan_seconds + updates + self.steps * self.step_seconds

    def sentence(self, advice: list[str]) -> str:
        """
        :param advice: what would make the run shorter
        :return: the estimate in words
        """
        parts = [f"{self.plans:,} plans of {1e3 * (self.plan_seconds or 0.0):.0f} ms"]
        if self.update_seconds is not None and self.updates > 0:
            parts.append(f"{self.updates:,} updates of {1e3 * self.update_seconds:.0f} ms")
        return (
            f"The run will take about {duration(self.remaining() or 0.0)} more at this rate: {', '.join(parts)}."
            + (f" Shorter: {', '.join(advice)}." if advice else "")
            + " `python -m sb3_mpc.zoo doctor` compares settings on this machine."
        )
