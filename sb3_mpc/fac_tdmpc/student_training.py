"""Distillation of the student of Fac-TDMPC, update by update."""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.sources import DataWindows, MixedWindows
from sb3_mpc.common.checks.arguments import check_arguments, check_range
from sb3_mpc.common.checks.data import check_finite_losses
from sb3_mpc.common.execution.acceleration import compile_function, graphed, set_learning_rate
from sb3_mpc.common.execution.gradients import gradient_step
from sb3_mpc.common.networks.losses import temporal_weights, time_slice
from sb3_mpc.common.offline_training import LOG_EVERY as LOG_EVERY
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.fac_tdmpc.distillation import expert_scores, imitation_loss, ranking_loss, student_scores
from sb3_mpc.fac_tdmpc.policies import FactoredPolicy
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

MAX_DISTILL_STEPS = 100_000  # the paper's number
# Plans of the student stay near its expert's policy and the plan before: wider ones find what it overestimates
STUDENT_MAX_STD, STUDENT_POLICY_START = 0.3, 0.5


def evaluations(callback: MaybeCallback) -> list[EvalCallback]:
    """
    :param callback: callback, or list of them
    :return: those that evaluate the agent
    """
    if isinstance(callback, EvalCallback):
        return [callback]
    parts = callback.callbacks if isinstance(callback, CallbackList) else callback
    return [found for part in parts for found in evaluations(part)] if isinstance(parts, list) else []


@contextmanager
def lines_apart(logger: Logger) -> Iterator[None]:
    """
    :param logger: log with values that wait for its next line
    :return: context whose lines do not have these values; they wait on after it
    """
    names = ("name_to_value", "name_to_count", "name_to_excluded")
    waiting = {name: dict(getattr(logger, name)) for name in names}
    for name in names:
        getattr(logger, name).clear()
    try:
        yield
    finally:
        for name in names:
            getattr(logger, name).update(waiting[name])


class DistillNoise(NamedTuple):
    """
    Random numbers of one update of the student. B segments, K candidates.

    :param candidates: perturbations, added to the actions ``[H + 1, B, K, A]``
    :param policy_actions: normal draws of the expert policy's actions ``[H + 1, B, K, A]``
    :param shift: image shifts ``[B, 2]``, None without images
    """

    candidates: th.Tensor
    policy_actions: th.Tensor
    shift: th.Tensor | None


class StudentTraining(TDMPC2):
    """
    The part of :class:`sb3_mpc.FacTDMPC` that makes and updates the student; its arguments are documented there.
    """

    # Provided by FacTDMPC
    policy: FactoredPolicy
    distill_steps: int | str
    distill_batch_size: int | str
    distill_learning_rate: float
    distill_reward_coef: float
    distill_value_coef: float
    distill_max_grad_norm: float
    num_candidates: int
    candidate_std: float | Sequence[float]
    distill_temperature: float
    kl_direction: str
    _distilled: bool
    _expert_given: bool
    _distill_seed: int | None
    _student_updates: int
    _student_decisions: int
    _counted_updates: int
    _unfinished_updates: int

    def _student_plans(self, given: dict[str, Any]) -> dict[str, Any]:
        """
        :param given: the user's arguments of the student's planner
        :return: all of them
        :raises ValueError: if one is unknown, of another type or out of range
        """
        if not isinstance(given, dict):
            raise ValueError(f"student_planner_kwargs={given!r:.80} is not understood: use a dict.")
        known = inspect.signature(ImprovedPlanner).parameters.keys() | self.planner_arguments().keys()
        for name in given.keys() - known | given.keys() & {"world_model", "kwargs"}:
            raise ValueError(f"student_planner_kwargs has an unknown {name!r}: leave it out, or see ImprovedPlanner.")
        plans = {**self.planner_arguments(), **given}
        for name, number in given.items():
            if number is None:
                raise ValueError(f"student_planner_kwargs has {name}=None: leave it out, or use a number.")
        for cls in (type(self), ImprovedPlanner):
            check_arguments(cls, plans, self.ranges)
        if "max_std" not in given:
            plans["max_std"] = max(STUDENT_MAX_STD, plans["min_std"])
        if "num_pi_trajs" not in given:
            plans["num_pi_trajs"] = plans["num_samples"] // 2
        plans.setdefault("policy_start", STUDENT_POLICY_START if plans["num_pi_trajs"] > 1 else 0.0)
        check_arguments(type(self), plans, self.ranges, self.relations)
        return plans

    def _use_student(self, distilled: bool) -> None:
        self._distilled = distilled
        self.policy.use_student(distilled)

    def _distill(
        self,
        steps: int,
        callback: BaseCallback,
        log_interval: int | None,
        progress_bar: bool,
        windows: DataWindows | MixedWindows | None = None,
        batch_size: int | None = None,
        counted: bool = False,
    ) -> None:
        """
        Update the student, a newly initialised one if there is none yet. Every update has random numbers of its own,
        so that the result depends on expert, data and seed alone: a resumed agent gets the same student as one that was
        not interrupted.

        :param steps: updates of the student, besides those of a distillation that is resumed
        :param callback: called after every update
        :param log_interval: updates between two lines of the log, none if None
        :param progress_bar: show a progress bar
        :param windows: what the segments are drawn from, the replay buffer if None
        :param batch_size: number of segments in a batch, ``distill_batch_size`` if None
        :param counted: whether the updates remain counted as steps when they are done
        """
        check_range("steps", steps, 0)
        steps = int(steps)
        if steps == 0:  # the expert continues to act if there is no student, or one of an expert that has learned on
            current = self._expert_given or self.num_timesteps == self._student_decisions
            self._use_student(self._student_updates > 0 and current)
            return
        assert self._distill_seed is not None
        seed = self._distill_seed + self._student_updates
        steps_left: Iterable[int] = range(1, steps + 1)
        if progress_bar:
            from tqdm import tqdm  # type: ignore[import-untyped]

            steps_left = tqdm(steps_left, desc="Distilling")
        if self._student_updates == 0:
            with th.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                th.manual_seed(seed)
                self.policy.reset_student()
        self.policy.student.encoder.follow(self.policy.world_model.encoder)
        processes.join(self.device)
        processes.broadcast(self.policy.state_dict().values())
        generator = th.Generator(self.device)
        buffer: Any = self.replay_buffer if windows is None else windows
        batch_size = processes.share(batch_size or int(self.distill_batch_size))
        sources = getattr(buffer, "parts", [buffer])
        kept = [{name: getattr(source, name) for name in ("_rng", "horizon", "device")} for source in sources]
        compiles = self.policy.acceleration.compiles and not processes.joined()
        update = self.distill_update
        if compiles:
            update = graphed(compile_function(update), self.recorded_constants)
        begun = self._unfinished_updates  # of a distillation that is resumed
        self.policy.set_training_mode(False)
        self._use_student(True)
        try:
            for source in sources:
                source.horizon, source.device = self.horizon + 1, self.device
            callback.on_training_start(locals(), globals())
            for step in steps_left:
                entropy = [self._distill_seed, self._student_updates, processes.rank()]
                left = 1 - (begun + step - 1) / (begun + steps)
                rate = float(np.float32(self.distill_learning_rate * left))  # as the tensor of compiled updates has it
                for optimizer in (self.policy.student_optimizer, self.policy.student_pi_optimizer):
                    set_learning_rate(optimizer, rate, compiles)  # compiled, too, a number would be a constant
                drawn = [int(seed) for seed in np.random.SeedSequence(entropy).generate_state(1 + len(sources))]
                for source, drawn_seed in zip(sources, (drawn[0], *drawn[2:]), strict=True):
                    source.seed(drawn_seed)
                generator.manual_seed(drawn[1])
                batch = buffer.sample(batch_size, env=self._vec_normalize_env)
                noise = self.draw_distill_noise(batch_size, generator)
                with self.policy.acceleration.applied():
                    logs = update(batch._replace(plans=None, planned=None, buffer_index=None), noise)
                self._student_updates += 1
                self._counted_updates += not counted
                self.num_timesteps += 1
                self._unfinished_updates += 1
                if step == steps:  # callbacks may save an agent with nothing left to do
                    self._unfinished_updates = 0
                    self._student_decisions = self.num_timesteps - self._counted_updates
                if step == steps or step % (log_interval or LOG_EVERY) == 0:
                    values = {name: value.item() for name, value in logs.items()}
                    check_finite_losses(values, step)
                    if log_interval is not None:
                        for name, value in values.items():
                            self.logger.record(f"distill/{name}", value)
                        self.logger.record("distill/n_updates", self._student_updates, exclude="tensorboard")
                        self.logger.dump(self.num_timesteps)
                callback.update_locals(locals())
                if not callback.on_step():
                    break
            callback.on_training_end()
        except BaseException:  # an unfinished student does not act
            self._use_student(False)
            raise
        finally:
            for source, state in zip(sources, kept, strict=True):
                vars(source).update(state)
            self.num_timesteps -= self._counted_updates
            self._counted_updates = 0

    def _distil_what_was_learned(
        self,
        callback: MaybeCallback,
        log_interval: int | None,
        progress_bar: bool,
        windows: DataWindows | MixedWindows | None = None,
    ) -> None:
        """
        :param callback: callback(s) of the expert's training, of which the evaluations go on
        :param log_interval: that of the training; without one the distillation is not logged either
        :param progress_bar: show a progress bar
        :param windows: what the segments are drawn from, the replay buffer if None
        """
        steps = self.distill_steps
        if isinstance(steps, str):  # "auto"
            steps = min(self.num_timesteps - self._student_decisions, MAX_DISTILL_STEPS)
        steps = max(int(steps) - self._unfinished_updates, 0)
        if steps > 0 and windows is None and not self._can_distil():
            return
        found = evaluations(callback)
        calls = [evaluation.n_calls for evaluation in found]
        for evaluation in found:  # the expert's returns are not the student's; the last update is evaluated, too
            evaluation.best_mean_reward, evaluation.n_calls = -np.inf, -int(steps) % evaluation.eval_freq
        with lines_apart(self.logger):
            log_every = LOG_EVERY if log_interval else None
            self._distill(steps, self._init_callback([*found]), log_every, progress_bar, windows)
        for evaluation, count in zip(found, calls, strict=True):
            evaluation.n_calls = count
        if steps > 0:  # also if a callback has ended it
            self._unfinished_updates, self._student_decisions = 0, self.num_timesteps

    def _can_distil(self) -> bool:
        """:return: whether the buffer can be sampled; a warning says why not"""
        buffer = self.replay_buffer
        rng = buffer._rng
        try:
            buffer.seed(0)
            buffer.horizon = self.horizon + 1  # as when the student is updated
            why = "" if buffer.size() > 0 and buffer.sample(1) else "the replay buffer is empty."
        except RuntimeError as error:  # hindsight, before the end of the first episode
            why = str(error)
        finally:
            buffer._rng, buffer.horizon = rng, self.horizon
        if why:
            warnings.warn(f"Nothing is distilled yet, the expert continues to act: {why}", stacklevel=3)
        return not why

    def draw_distill_noise(self, batch_size: int, generator: th.Generator) -> DistillNoise:
        """
        :param batch_size: number B of segments
        :param generator: source of randomness; the noise is on its device
        :return: random numbers of one update of the student
        """
        shape = (self.horizon + 1, batch_size, self.num_candidates, get_action_dim(self.action_space))
        candidates, actions = (th.randn(shape, generator=generator, device=generator.device) for _ in range(2))
        deviations = np.resize(np.asarray(self.candidate_std, dtype=np.float32), (self.num_candidates, 1))  # in turn
        candidates *= th.as_tensor(deviations, device=generator.device)
        return DistillNoise(candidates, actions, self.policy.draw_shift(batch_size, generator=generator))

    def distill_update(self, batch: SequenceBatch, noise: DistillNoise) -> dict[str, th.Tensor]:
        """
        One gradient step of the student. Only the first observation and the actions are used, so that a segment may
        extend past the end of an episode; there, perturbations are added to zero actions.

        :param batch: windows of H + 1 transitions
        :param noise: random numbers
        :return: values to log, scalars by name
        """
        student, teacher = self.policy.student, self.policy.world_model
        first = time_slice(batch.observations, 0)
        actions = ((batch.mask * batch.actions).unsqueeze(2) + noise.candidates).clamp(-1, 1)
        with th.no_grad():
            z = teacher.encode(first, noise.shift)
            expert, policy_actions, alive = expert_scores(teacher, z, actions, noise.policy_actions, self.gamma)
            self.policy.spread.update(expert)
        scores, states = student_scores(student, student.encode(first, noise.shift), actions)
        reverse, spread = self.kl_direction == "reverse", self.policy.spread.value
        weights = temporal_weights(self.rho, scores.rewards).squeeze(-1)
        losses = [
            (weights * ranking_loss(predicted, label, scale, self.distill_temperature, reverse)).sum(-2).mean()
            for predicted, label, scale in zip(scores, expert, spread, strict=True)
        ]
        imitation = imitation_loss(student, states, policy_actions, alive)
        loss = self.distill_reward_coef * losses[0] + self.distill_value_coef * losses[1]
        logs = dict(reward_kl=losses[0], value_kl=losses[1], loss=loss, imitation_loss=imitation)
        optimizers = dict(grad_norm=self.policy.student_optimizer, pi_grad_norm=self.policy.student_pi_optimizer)
        for (name, optimizer), objective in zip(optimizers.items(), (loss, imitation), strict=True):
            logs[name] = gradient_step(optimizer, objective, self.distill_max_grad_norm)
        return {name: value.detach() for name, value in logs.items()}
