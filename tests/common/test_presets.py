"""A preset is one argument: what users give wins over it, and updates follow the number of environments."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.common.planning.planner import MPPIPlanner
from tests.support.agents import PointEnv, SpaceEnv, make_agent, vec

# Quick enough to learn in a test; the sizes of the networks stay those of the preset
QUICK: dict[str, Any] = dict(learning_starts=8, pretrain_gradient_steps=1, batch_size=16, device="cpu")


def test_small_trains_and_survives_saving(algorithm: Any, tmp_path: Path) -> None:
    only_student = dict(distill_steps=2) if issubclass(algorithm, FacTDMPC) else {}
    model = algorithm("MlpPolicy", "Pendulum-v1", preset="small", **QUICK, **only_student)
    assert (model.preset, model.tau, model.num_samples, model.policy.world_model.num_q) == ("small", 0.01, 64, 2)
    assert (model.batch_size, model.learning_starts) == (16, 8)
    assert [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == [1e-3, 5e-4, 0.0]
    model.learn(12).save(tmp_path / "model")
    assert model._n_updates == 1 + 4  # after every decision from the ninth on
    loaded = algorithm.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    for name in ("preset", "num_samples", "num_elites", "train_freq", "gradient_steps", "policy_kwargs", "batch_size"):
        assert getattr(loaded, name) == getattr(model, name), name
    with pytest.raises(ValueError, match="load.. keeps the saved settings: leave preset out"):
        algorithm.load(tmp_path / "model", preset="cpu")


def test_what_is_given_wins_even_if_it_is_the_default(algorithm: Any) -> None:
    model = algorithm(
        "MlpPolicy", PointEnv(), 3e-4, preset="small", num_samples=512, policy_kwargs=dict(latent_dim=32), device="cpu"
    )
    assert (model.learning_rate, model.num_samples, model.num_elites) == (3e-4, 512, 12)
    assert model.policy_kwargs.items() >= dict(latent_dim=32, enc_dim=128, net_arch=[128, 128], num_q=2).items()


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (dict(model_size=1), dict()),  # the preset's single sizes would undo it
        (dict(mlp_dim=32), dict(latent_dim=64, enc_dim=128, num_q=2)),  # is net_arch by another name
        (dict(n_critics=3), dict(latent_dim=64, enc_dim=128, net_arch=[128, 128])),  # is num_q by another name
    ],
)
def test_sizes_that_go_by_other_names(given: dict[str, int], left: dict[str, Any]) -> None:
    model = TDMPC2("MlpPolicy", PointEnv(), preset="small", policy_kwargs=given, device="cpu")
    assert model.policy_kwargs == given | left


@pytest.mark.parametrize(("n_envs", "updates"), [(1, (1, 1)), (3, (1, 3)), (10, (1, 10)), (16, (1, 16))])
def test_updates_per_decision_are_those_of_the_preset(n_envs: int, updates: tuple[int, int]) -> None:
    model = TDMPC2("MlpPolicy", make_vec_env(PointEnv, n_envs), preset="small", device="cpu")
    assert (model.train_freq.frequency, model.gradient_steps) == updates  # type: ignore[union-attr]


@pytest.mark.parametrize("given", [dict(train_freq=1), dict(gradient_steps=1)])
def test_own_updates_per_decision(given: dict[str, int]) -> None:
    """Half of the ratio is not taken from the preset."""
    model = TDMPC2("MlpPolicy", PointEnv(), preset="small", device="cpu", **given)  # type: ignore[arg-type]
    assert (model.train_freq.frequency, model.gradient_steps) == (1, 1)  # type: ignore[union-attr]


def test_cpu_leaves_the_updates_alone(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", vec(PointEnv, PointEnv), preset="cpu", device="cpu")
    assert (model.train_freq.frequency, model.gradient_steps, model.policy_kwargs) == (1, 1, dict(model_size=1))
    assert model.learning_rate == 3e-4 and model.num_samples <= 256


def test_images_and_goals(algorithm: Any) -> None:
    images = SpaceEnv(spaces.Box(0, 255, (64, 64, 3), "uint8"), spaces.Box(-1, 1, (2,)))
    model = algorithm("CnnPolicy", images, preset="small", buffer_size=20, device="cpu")
    assert model.policy.world_model.latent_dim == 64
    position = spaces.Box(-1, 1, (2,))

    class Goals(SpaceEnv):
        def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
            return -abs(achieved - desired).sum(-1)

    goals = Goals(
        spaces.Dict(observation=position, achieved_goal=position, desired_goal=position), spaces.Box(-1, 1, (2,))
    )
    more = dict(distill_steps=1) if issubclass(algorithm, FacTDMPC) else {}
    settings = dict(QUICK, replay_buffer_class=HerReplayBuffer, **more)
    model = algorithm("MultiInputPolicy", goals, preset="small", **settings).learn(12)
    assert model._n_updates == 5 and model.num_samples == 64


def test_derived_classes_pass_it_on() -> None:
    class Mine(TDMPC2):
        def __init__(self, *args: Any, extra: int = 0, **kwargs: Any) -> None:
            self.extra = extra
            super().__init__(*args, **kwargs)

    model = Mine("MlpPolicy", PointEnv(), preset="small", extra=1, iterations=2, device="cpu")
    assert (model.extra, model.iterations, model.num_samples) == (1, 2, 64)


def test_a_given_expert_keeps_its_settings() -> None:
    expert = make_agent(TDMPC2, PointEnv())
    model = FacTDMPC("MlpPolicy", PointEnv(), preset="small", expert=expert, device="cpu")
    assert (model.num_samples, model.batch_size, model.learning_starts) == (expert.num_samples, 16, 0)
    assert (model.distill_steps, model.distill_batch_size) == (10_000, 64)
    assert model.policy.world_model.latent_dim == expert.policy.world_model.latent_dim
    assert model.policy_kwargs["student_net_arch"] == [64, 64]
    expert = make_agent(TDMPC2, PointEnv(), num_samples=64)
    policy = FacTDMPC("MlpPolicy", PointEnv(), preset="small", expert=expert).policy
    assert (policy.planner.num_samples, policy.student_planner.num_samples) == (64, 40)
    model = FacTDMPC("MlpPolicy", PointEnv(), preset="small", expert=expert, num_samples=20, num_elites=4)
    assert model.policy.student_planner.num_samples == 20


def test_the_student_plans_with_fewer_samples_than_the_preset_s_expert() -> None:
    def samples(**kwargs: Any) -> tuple[int, int]:
        policy = FacTDMPC("MlpPolicy", PointEnv(), preset="small", device="cpu", **kwargs).policy
        return policy.planner.num_samples, policy.student_planner.num_samples

    assert samples() == (64, 40)
    assert samples(num_samples=50) == (50, 50), "what is asked for holds for both"
    assert samples(policy_kwargs=dict(student_planner_kwargs=dict(max_std=0.1))) == (64, 40)
    assert samples(policy_kwargs=dict(student_planner_kwargs=dict(num_samples=30))) == (64, 30)


def test_agent_files_hold_the_settings_and_not_the_name(tmp_path: Path) -> None:
    model = TDMPC2("MlpPolicy", PointEnv(), preset="small", device="cpu")
    loaded: Any = load_agent(save_agent(model, tmp_path / "agent"))
    assert (loaded.preset, loaded.num_samples, loaded.policy_kwargs) == (None, 64, model.policy_kwargs)


def test_best_is_small_with_improvements(tmp_path: Path) -> None:
    small, best = (TDMPC2("MlpPolicy", PointEnv(), preset=name, **QUICK) for name in ("small", "best"))
    assert (small.n_steps, best.n_steps) == (1, 3) and best.num_samples == small.num_samples
    assert type(best.policy.planner) is ImprovedPlanner and best.policy.planner.noise_correlation == 0.5
    assert best.policy.world_model.encoder.features_extractor.mean.shape == (3,)
    assert best.policy_kwargs.items() > small.policy_kwargs.items()
    save_agent(best.learn(12), tmp_path / "agent")
    loaded: Any = load_agent(tmp_path / "agent")
    assert loaded.n_steps == 3 and type(loaded.policy.planner) is ImprovedPlanner
    plain = dict(normalize_observations=False)
    other = TDMPC2("MlpPolicy", PointEnv(), preset="best", policy_kwargs=plain, **QUICK)
    assert type(other.policy.world_model.encoder.features_extractor) is FlattenExtractor
    short = TDMPC2("MlpPolicy", PointEnv(), preset="best", horizon=2, **QUICK)
    assert (short.horizon, short.n_steps) == (2, 2)
    usual = TDMPC2("MlpPolicy", PointEnv(), preset="best", policy_kwargs=dict(planner_class="MPPIPlanner"), **QUICK)
    assert type(usual.policy.planner) is MPPIPlanner
    more = dict(planner_kwargs=dict(kept_elites=0.5))
    both: Any = TDMPC2("MlpPolicy", PointEnv(), preset="best", policy_kwargs=more, **QUICK).policy.planner
    assert both.noise_correlation == 0.5 and both.num_kept > 0
    for algorithm in (TDMPCSquare, BMPC, MBDPO, FacTDMPC):
        assert "best" not in algorithm.presets


def test_presets_are_not_shared_by_agents(algorithm: Any) -> None:
    first = algorithm("MlpPolicy", PointEnv(), preset="small", device="cpu")
    first.policy_kwargs["net_arch"].append(1)
    assert algorithm.presets["small"]["policy_kwargs"]["net_arch"] == [128, 128]


def test_unknown_name(algorithm: Any) -> None:
    with pytest.raises(
        ValueError,
        match='^There is no preset "large" of this method: use "cpu" or "small"( or "offline")?( or "best")?.$',
    ):
        algorithm("MlpPolicy", PointEnv(), preset="large")
