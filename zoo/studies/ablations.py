"""
What the papers leave out or exchange in their methods, each trained with a small model and a small budget.

    python -m sb3_mpc.zoo.studies.ablations list
    python -m sb3_mpc.zoo.studies.ablations train no-simnorm dmc/walker-walk-v0 --seed 1
    python -m sb3_mpc.zoo plot zoo/studies/results/ablations.csv --output ablations.png

Most are arguments of the methods; variants 1 and 2 of BMPC and other entropies are written here with their hooks. The
rows of the CSV file are those of :mod:`sb3_mpc.zoo.studies.comparison`, with the name of the ablation as method.
Settings that are not changed are those of the preset "small".
"""

import argparse
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.env_util import make_vec_env

import sb3_mpc.envs  # noqa: F401  (registers the ids)
from sb3_mpc import BMPC, TDMPC2, TDMPCSquare
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.networks.gaussian import bound_log_std, gaussian_log_prob, squash_correction
from sb3_mpc.common.networks.losses import UpdateNoise, temporal_weights
from sb3_mpc.common.networks.running_scale import RunningScale
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.planning.prior import PriorPlanner
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.studies.comparison import PRESET, RESULTS, Measure

# -- BMPC: a policy that imitates the planner and guides plans, while values are learned as in TD-MPC2 -----------------


class GuidedModel(WorldModel):
    """TD-MPC2's world model with a second policy network, the guide, a Gaussian whose actions are clamped."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guide_net = self.make_mlp(self.input_dim, self.hidden, 2 * self.action_dim)
        self.guide_scale = RunningScale()

    def guide(self, z: th.Tensor, log_std_range: tuple[float, float] = (-3.0, 1.0)) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: latent states ``[..., D]``
        :param log_std_range: bounds of the log standard deviation
        :return: mean in [-1, 1] and log standard deviation of the guide, both ``[..., A]``
        """
        mean, raw = self.guide_net(self.inputs(z)).split(self.action_dim, dim=-1)
        return th.tanh(mean), bound_log_std(raw, *log_std_range)


class GuidedPlanner(MPPIPlanner):
    """
    MPPI whose proposals are the guide's.

    :param log_std_range: bounds of the log standard deviation of the proposals
    """

    world_model: GuidedModel

    def __init__(self, *args: Any, log_std_range: tuple[float, float] = (-3.0, 1.0), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_std_range = log_std_range

    def act(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """:return: actions of the guide ``[..., A]`` in [-1, 1]"""
        mean, log_std = self.world_model.guide(z, self.log_std_range)
        return (mean + noise * log_std.exp()).clamp(-1, 1)


class GuidedValuePlanner(GuidedPlanner):
    """The guide also takes the action at the end of the horizon, which the terminal value is of."""

    def terminal_value(self, z: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """:return: values ``[E, N, 1]``"""
        mean, log_std = self.world_model.guide(z)
        action = (mean + noise * log_std.exp()).clamp(-1, 1)
        return self.world_model.two_hot.decode(self.world_model.value(z, action, members)).mean(0)


class Guided(BMPC, TDMPC2):
    """
    Variant 1 of BMPC: values and policy are those of TD-MPC2, and a second policy, which imitates the planner, proposes
    the plans' first sequences. Old plans are replaced as in BMPC.

    The paper's text was not at hand. After a summary of it, in variants 1 and 2 the imitating policy guides plans only,
    without a change of the values. That it proposes sequences in the first, and also takes the terminal action in the
    second, is our reading.
    """

    policy_defaults: ClassVar[dict[str, Any]] = dict(world_model_class=GuidedModel, planner_class=GuidedPlanner)
    trains_policy_in_pretraining: ClassVar[bool] = True
    imitation_coef = 1.0  # no other loss trains the guide

    value_target, policy_loss = TDMPC2.value_target, TDMPC2.policy_loss
    draw_noise, policy_arguments = TDMPC2.draw_noise, TDMPC2.policy_arguments

    def make_reanalyzer(self, **arguments: Any) -> MPPIPlanner:
        """:return: planner of the acting kind, with other bounds of the proposals"""
        return type(self.policy.planner)(self.policy.world_model, **arguments)

    def extra_losses(self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """Loss of the guide, which is that of BMPC's policy."""
        model, zs = self.policy.world_model, zs[:-1].detach()
        assert isinstance(model, GuidedModel)
        mean, log_std = model.guide(zs)
        error = self.imitation_error(zs, mean, log_std, batch)
        model.guide_scale.update(error[0])
        entropy = -model.action_dim * gaussian_log_prob(noise.policy_actions[: len(zs)], log_std)
        weights = temporal_weights(self.rho, zs) * batch.mask
        return dict(imitation=(weights * (model.guide_scale(error) - self.entropy_coef * entropy)).mean())


class GuidedValues(Guided):
    """Variant 2 of BMPC: see :class:`Guided`."""

    policy_defaults: ClassVar[dict[str, Any]] = dict(world_model_class=GuidedModel, planner_class=GuidedValuePlanner)


# -- TD-MPC2: the entropy of the policy --------------------------------------------------------------------------------


class SquashedEntropy(TDMPC2):
    """
    TD-MPC2 with the entropy of squashed actions, as in SAC, in place of that before tanh, which grows without bound.

    :cvar penalty: weight of the squared mean before tanh, as in MR.Q (https://arxiv.org/abs/2501.16142)
    """

    penalty = 0.0

    def policy_bonus(self, zs: th.Tensor, action: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """:return: entropy of the squashed actions, less the penalty ``[T, B, 1]``"""
        model = self.policy.world_model
        correction = self.entropy_coef * model.num_actions(zs) * squash_correction(action)
        size = model.mode_before_tanh(zs).square().sum(-1, keepdim=True)
        return super().policy_bonus(zs, action, log_prob) + correction - self.penalty * size


class PenalisedMean(SquashedEntropy):
    """The same with means that are kept small."""

    penalty = 1e-3


# -- What is trained ---------------------------------------------------------------------------------------------------


class Ablation(NamedTuple):
    """
    :param algorithm: class
    :param preset: key of the method whose preset it has
    :param settings: arguments that are changed; ``policy_kwargs`` are merged with those of the preset
    """

    algorithm: type[WorldModelAlgorithm]
    preset: str
    settings: dict[str, Any]


def of_policy(**policy_kwargs: Any) -> Ablation:
    """:return: an ablation of TD-MPC2 by arguments of its policy"""
    return Ablation(TDMPC2, "tdmpc2", dict(policy_kwargs=policy_kwargs))


ACTOR_MODES = TDMPCSquare.choices["actor_mode"]
ABLATIONS = {
    # TD-MPC2, section on ablations
    "tdmpc2": of_policy(),
    "no-simnorm": of_policy(simnorm_dim=None),
    "no-layernorm": of_policy(layer_norm=False),
    "no-norms": of_policy(simnorm_dim=None, layer_norm=False),
    "regression-of-symlog": of_policy(num_bins=1),
    "regression": of_policy(num_bins=0),
    **{f"{count}-values": of_policy(num_q=count) for count in (1, 5, 10)},  # the preset has two
    "no-planning": of_policy(planner_class=PriorPlanner),
    "horizon-1": Ablation(TDMPC2, "tdmpc2", dict(horizon=1)),
    "squashed-entropy": Ablation(SquashedEntropy, "tdmpc2", {}),
    "squashed-entropy-penalised": Ablation(PenalisedMean, "tdmpc2", {}),
    # TD-M(PC)²: policies that it is compared with
    **{mode: Ablation(TDMPCSquare, "tdmpc_square", dict(actor_mode=mode)) for mode in ACTOR_MODES},
    # BMPC, figure 7 and appendix A
    "bmpc": Ablation(BMPC, "bmpc", {}),
    "bmpc-variant-1": Ablation(Guided, "bmpc", {}),
    "bmpc-variant-2": Ablation(GuidedValues, "bmpc", {}),
    "bmpc-variant-3": Ablation(BMPC, "bmpc", dict(values_of="actions")),
    "bmpc-log-prob": Ablation(BMPC, "bmpc", dict(imitation_loss="log_prob")),
    **{
        f"bmpc-reanalyze-{every or 'never'}": Ablation(BMPC, "bmpc", dict(reanalyze_interval=every))
        for every in (0, 40, 80)
    },
}


def make(name: str, env: Any, settings: dict[str, Any], **kwargs: Any) -> WorldModelAlgorithm:
    """
    :param name: one of ``ABLATIONS``
    :param env: environment
    :param settings: what all ablations have in common, of a preset for example
    :param kwargs: further arguments of the class
    :return: the agent
    """
    ablation = ABLATIONS[name]
    settings = {"policy": "MlpPolicy", **settings, **kwargs}
    policy_kwargs = {**settings.pop("policy_kwargs", {}), **ablation.settings.get("policy_kwargs", {})}
    return ablation.algorithm(env=env, **{**settings, **ablation.settings, "policy_kwargs": policy_kwargs})


def train(name: str, task: str, seed: int, every: int, output: Path, **changed: Any) -> WorldModelAlgorithm:
    """
    :param name: one of ``ABLATIONS``
    :param task: id of the environment
    :param seed: seed of agent and environments
    :param every: decisions between evaluations
    :param output: CSV file to append to
    :param changed: settings that override those of the preset
    :return: the trained agent
    """
    settings = load_preset(ABLATIONS[name].preset, task, PRESET) | changed
    steps, env = settings.pop("n_timesteps"), make_vec_env(task, settings.pop("n_envs"), seed=seed)
    model = make(name, env, settings, seed=seed, device="cpu")
    return model.learn(steps, Measure(dict(method=name, task=task, seed=seed), every, output))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the ablations")
    trainer = commands.add_parser("train", help="train one on one task")
    trainer.add_argument("name", choices=ABLATIONS)
    trainer.add_argument("task", help="environment, such as dmc/walker-walk-v0")
    trainer.add_argument("--seed", type=int, default=1)
    trainer.add_argument("--steps", type=int, help="decisions instead of the preset's")
    trainer.add_argument("--every", type=int, default=3_000, help="decisions between evaluations")
    trainer.add_argument("--compile", action="store_true", help="compile plan and update")
    trainer.add_argument("--data", type=Path, default=RESULTS / "ablations.csv", help="CSV file of the runs")
    args = parser.parse_args()
    if args.command == "list":
        for name, ablation in ABLATIONS.items():
            print(f"{name:22} {ablation.algorithm.__name__:13} {ablation.settings or ''}")
        return
    changed = {"compile": args.compile} | ({"n_timesteps": args.steps} if args.steps else {})
    train(args.name, args.task, args.seed, args.every, args.data, **changed)


if __name__ == "__main__":
    main()
