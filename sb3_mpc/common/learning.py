"""The update that all methods share, and what a method fills in."""

from typing import ClassVar

import torch as th

from sb3_mpc.common.acceleration import compile_function, set_learning_rate
from sb3_mpc.common.checks import check_finite_losses
from sb3_mpc.common.collection import CollectingAlgorithm
from sb3_mpc.common.losses import UpdateNoise, at, draw_update_noise, model_losses, unroll
from sb3_mpc.common.sequences import SequenceBatch


class LearningAlgorithm(CollectingAlgorithm):
    """
    Updates model, values and policy on windows of the replay buffer. A method defines :meth:`value_target` and
    :meth:`policy_loss`, and may override :meth:`extra_losses`, :meth:`refresh` and :meth:`draw_noise`.
    """

    trains_policy_in_burst: ClassVar[bool] = True  # whether the policy learns in the updates of the seeding phase
    horizon: int
    rho: float
    max_grad_norm: float
    pretrain_gradient_steps: int | str

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        :param gradient_steps: number of updates; the first call adds those of the seeding phase
        :param batch_size: number of windows in a batch, that of the agent if None
        """
        batch_size = batch_size or self.batch_size
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.policy.model_optimizer, self.policy.pi_optimizer])
        if self.policy.acceleration.compiles and self._compiled_update is None:
            self._compiled_update = compile_function(self.update)
        if self._n_updates == 0 and int(self.pretrain_gradient_steps) > 0:
            if self.verbose > 0:
                print(f"Seeding done: {self.pretrain_gradient_steps} updates on the collected transitions follow")
            self._updates(int(self.pretrain_gradient_steps), batch_size, burst=True)
        self._updates(gradient_steps, batch_size)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.policy.set_training_mode(False)

    def _updates(self, count: int, batch_size: int, burst: bool = False) -> None:
        """
        :param count: number of updates
        :param batch_size: number of windows in a batch
        :param burst: whether these are the updates on the data of the seeding phase
        """
        update = self._compiled_update or self.update
        sums: th.Tensor | None = None
        for _ in range(count):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            batch = batch if burst else self.refresh(batch)
            noise = self.draw_noise(batch_size)
            logs = update(batch._replace(places=None), noise, self.trains_policy_in_burst or not burst)
            values = th.stack([value.float() for value in logs.values()])
            sums = values if sums is None else sums + values
        self._n_updates += count
        if sums is not None:  # the only time that losses travel to the host
            means = dict(zip(logs, (sums / count).tolist(), strict=True))
            check_finite_losses(means, self._n_updates)
            for name, value in means.items():
                self.logger.record(f"train/{name}", value)

    def update(self, batch: SequenceBatch, noise: UpdateNoise, train_policy: bool = True) -> dict[str, th.Tensor]:
        """
        One gradient step on the model and the values, one on the policy, and one of the target networks.

        :param batch: windows
        :param noise: random numbers
        :param train_policy: whether the policy learns, too
        :return: what to log, scalars by name
        """
        policy, model = self.policy, self.policy.world_model
        with th.no_grad():
            next_z = model.encode(
                at(batch.observations, slice(1, None)), None if noise.shift is None else noise.shift[1:]
            )
            targets = self.value_target(next_z, batch, noise)
        zs = unroll(model, batch, noise.shift)
        losses = model_losses(model, batch, zs, next_z, targets, self.rho, noise.value_dropout)
        losses |= self.extra_losses(zs, batch, noise)
        total = th.stack([getattr(self, f"{name}_coef") * loss for name, loss in losses.items()]).sum()
        grad_norm = self._step(policy.model_optimizer, total)
        logs: dict[str, th.Tensor] = {}
        if train_policy:
            pi_loss, logs = self.policy_loss(zs.detach(), batch, noise)
            logs |= dict(pi_loss=pi_loss, pi_grad_norm=self._step(policy.pi_optimizer, pi_loss))
        model.update_target(self.tau)
        logs |= {f"{name}_loss": loss for name, loss in losses.items()}
        logs |= dict(grad_norm=grad_norm)
        return {name: value.detach() for name, value in logs.items()}

    def _step(self, optimizer: th.optim.Optimizer, loss: th.Tensor) -> th.Tensor:
        """
        :param optimizer: optimiser of the parameters that the loss trains
        :param loss: scalar
        :return: norm of the gradient before clipping
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:  # the user has frozen them
            return th.zeros((), device=loss.device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()
        return norm

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """
        :param batch_size: number B of windows
        :return: random numbers of one update
        """
        shift = self.policy.draw_shift(self.horizon + 1, batch_size)
        return draw_update_noise(self.policy.world_model, self.horizon, batch_size, shift, self.policy.generator)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                set_learning_rate(group, rate * group.get("lr_scale", 1.0), self.policy.acceleration.compiles)

    # -- What a method defines -----------------------------------------------------------------------------------------

    def value_target(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """
        :param next_z: encodings of the observations 1 to H ``[H, B, D]``
        :param batch: windows
        :param noise: random numbers
        :return: targets of the values ``[H, B, 1]``
        """
        raise NotImplementedError

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        :param zs: predicted latent states ``[H + 1, B, D]``, without gradient
        :param batch: windows
        :param noise: random numbers
        :return: loss of the policy prior, and what to log
        """
        raise NotImplementedError

    def extra_losses(self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """
        :param zs: predicted latent states ``[H + 1, B, D]``
        :param batch: windows
        :param noise: random numbers
        :return: further losses of the model by name, weighted by the attributes ``<name>_coef``
        """
        return {}

    def refresh(self, batch: SequenceBatch) -> SequenceBatch:
        """
        Called before every update but those of the seeding phase.

        :param batch: windows as sampled
        :return: windows to train on
        """
        return batch
