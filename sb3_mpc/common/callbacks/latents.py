"""What the latent space looks like: task embeddings, and the states of an episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mpc.common.callbacks.measurement import EpisodeMeasurement, Measurement
from sb3_mpc.common.policies.multitask import MultitaskWorldModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERPLEXITY = 5.0  # of t-SNE, whose number of points is small here


def principal_axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param points: ``[N, D]``
    :return: mean ``[D]`` and the two axes of largest variance ``[D, 2]``
    """
    mean = points.mean(0)
    axes = np.linalg.svd(points - mean, full_matrices=False)[2][:2].T
    return mean, np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))


def to_plane(points: np.ndarray, method: str = "auto") -> tuple[np.ndarray, str]:
    """
    :param points: ``[N, D]``
    :param method: "tsne" (needs scikit-learn and four points), "pca", or "auto" for t-SNE where that is possible
    :return: points in the plane ``[N, 2]``, and the method that was used
    """
    if method not in ("tsne", "pca", "auto"):
        raise ValueError(f'{method=} is unknown: use "tsne", "pca" or "auto".')
    if method != "pca":
        try:
            if len(points) < 4:
                raise ImportError("t-SNE needs at least four points")
            from sklearn.manifold import TSNE  # type: ignore[import-not-found]
        except ImportError:
            if method == "tsne":
                raise
        else:
            perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
            return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points), "t-SNE"
    mean, axes = principal_axes(points)
    return (points - mean) @ axes, "PCA"


class TaskEmbeddingCallback(Measurement):
    """
    Draw the task embeddings of a multitask agent in the plane (TD-MPC2, figure on task embeddings). The results are
    ``nearest``, the mean distance of a task to the next one, and ``spread``, the mean distance of all pairs.

    :param eval_freq: see :class:`Measurement`
    :param names: names of the tasks; those of the agent if None, or their numbers
    :param method: see :func:`to_plane`
    :param folder: see :class:`Measurement`
    :param verbose: see :class:`Measurement`
    """

    name = "task_embeddings"

    def __init__(
        self,
        eval_freq: int = 10_000,
        names: Sequence[str] | None = None,
        method: str = "auto",
        folder: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(eval_freq, folder, verbose)
        self.names, self.method = names, method

    def embeddings(self) -> np.ndarray:
        """
        :return: embeddings of the tasks ``[T, E]``
        :raises ValueError: if the agent has no tasks
        """
        world_model = self.model.policy.world_model
        if not isinstance(world_model, MultitaskWorldModel):
            raise ValueError("The agent has no task embeddings: train it with MultitaskPolicy.")
        tasks = th.arange(world_model.task_embedding.num_embeddings, device=self.model.device)
        return world_model.task_embedding(tasks).detach().cpu().numpy()

    @th.no_grad()
    def measure(self) -> dict[str, float]:
        """:return: mean distance of a task to the nearest other one, and to all others"""
        points = self.embeddings()
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        others = distances[~np.eye(len(points), dtype=bool)].reshape(len(points), -1)
        return dict(nearest=float(others.min(1).mean()), spread=float(others.mean()))

    def draw(self, figure: "Figure") -> None:
        """Draw the embeddings in the plane."""
        plane, method = to_plane(self.embeddings(), self.method)
        figure.set_size_inches(6.5, 5.5)
        axes = figure.subplots()
        axes.scatter(plane[:, 0], plane[:, 1], c=np.arange(len(plane)), cmap="turbo", s=30)
        names = self.names or getattr(self.model.policy, "task_names", None) or list(map(str, range(len(plane))))
        for name, point in zip(names, plane, strict=True):
            axes.annotate(name, point, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set(title=f"task embeddings, {method}", xticks=[], yticks=[])
        axes.margins(0.12)


class LatentTrajectoryCallback(EpisodeMeasurement):
    """
    Draw the latent states of an episode, and the ones that plans expect (MBDPO, figure on latent trajectories).

    The agent acts deterministically. The results are ``error_1`` to ``error_H``: squared distance of the latent state
    that the model predicts from the executed actions, that many steps ahead, as a fraction of the variance of the
    episode's states. 0 is perfect, 1 as good as their mean. Of Fac-TDMPC, the expert's latent states are shown.

    :param eval_env: see :class:`EpisodeMeasurement`; one episode is drawn, in the first environment
    :param eval_freq: see :class:`Measurement`
    :param every: number of decisions between two drawn plans
    :param verbose: see :class:`Measurement`
    :param folder: see :class:`Measurement`
    """

    name = "latent_trajectory"

    def __init__(
        self,
        eval_env: GymEnv,
        eval_freq: int = 10_000,
        every: int = 10,
        verbose: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(eval_env, eval_freq, 1, verbose, folder)
        self.every = every

    @th.no_grad()
    def measure(self) -> dict[str, float]:
        """:return: errors of predictions of 1 to H steps, of those that the episode is long enough for"""
        policy, model, env = self.model.policy, self.model.policy.world_model, self.eval_env
        states, actions, imagined = [], [], []
        observation, state, done = env.reset(), None, False
        starts = np.ones(env.num_envs, dtype=bool)
        while not done:
            tensor, _ = policy.obs_to_tensor(observation)  # type: ignore[arg-type]
            plan, _ = policy.plan_batch(observation, state, starts, deterministic=True)  # type: ignore[arg-type]
            z = model.encode(tensor)[:1]
            states.append(z)
            actions.append(plan.action[:1])
            if len(states) % self.every == 1 or self.every == 1:
                imagined.append(self.predict(z, plan.mean[:1].transpose(0, 1)))
            observation, _, dones, _ = env.step(policy.to_env_actions(plan.action.cpu().numpy()))
            state, starts, done = (plan.mean.cpu().numpy(),), dones, bool(dones[0])
        self.states = self.features(th.cat(states))
        self.imagined = self.features(th.cat(imagined, dim=1))
        variance = max(float(np.square(self.states - self.states.mean(0)).sum(1).mean()), 1e-12)
        errors = {}
        executed = th.stack(actions)  # [T, 1, A]
        for k in range(1, min(self.model.horizon, len(states) - 1) + 1):
            start = len(states) - k
            sequences = th.stack([executed[t : t + start, 0] for t in range(k)])  # [k, T - k, A]
            predicted = self.features(self.predict(th.cat(states[:start]), sequences)[-1])
            errors[f"error_{k}"] = float(np.square(predicted - self.states[k:]).sum(1).mean()) / variance
        return errors

    def predict(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param actions: ``[T, E, A]``
        :return: predicted latent states, the given ones first ``[T + 1, E, D]``
        """
        states = [z]
        for action in actions:
            states.append(self.model.policy.world_model.next(states[-1], action))
        return th.stack(states)

    def features(self, z: th.Tensor) -> np.ndarray:
        """
        :param z: latent states ``[..., D']``, with the number of the task if there are several
        :return: latent features ``[..., D]``
        """
        return z[..., : self.model.policy.world_model.latent_dim].cpu().numpy()

    def draw(self, figure: "Figure") -> None:
        """Draw the episode and the imagined states along the axes of largest variance of the episode."""
        figure.set_size_inches(6.5, 5)
        axes = figure.subplots()
        mean, plane = principal_axes(self.states)
        for index, segment in enumerate(np.swapaxes(self.imagined, 0, 1)):
            label = "imagined by a plan" if index == 0 else None
            axes.plot(*((segment - mean) @ plane).T, color="0.25", lw=1, zorder=3, label=label)
        points = (self.states - mean) @ plane
        axes.plot(*points.T, color="0.8", lw=0.8, zorder=1)
        shown = axes.scatter(points[:, 0], points[:, 1], c=np.arange(len(points)), cmap="viridis", s=10, zorder=2)
        figure.colorbar(shown, label="decision")
        axes.set(title=f"latent states of an episode of {len(points)} decisions", xlabel="first axis", ylabel="second")
        axes.legend(fontsize=8)
