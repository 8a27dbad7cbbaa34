"""The constructor takes SAC's arguments, settles the automatic ones once, and leaves the caller's objects alone."""

import copy
import inspect
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_mpc import FacTDMPC
from tests.support.agents import SMALL, PointEnv, SpaceEnv, assert_same_state, make_agent, vec

SAC_ONLY = {"ent_coef", "target_update_interval", "target_entropy", "use_sde", "sde_sample_freq", "use_sde_at_warmup"}
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_arguments_are_those_of_sac_and_have_defaults(algorithm: Any) -> None:
    parameters = inspect.signature(algorithm.__init__).parameters.values()
    ours = [
        p for p in parameters if p.kind is not p.VAR_KEYWORD
    ]  # which there is to refuse unknown ones in plain words
    sacs = [name for name in inspect.signature(SAC.__init__).parameters if name not in SAC_ONLY]
    names = [parameter.name for parameter in ours]
    assert [name for name in names if name in sacs] == sacs  # all of them, in the same order
    assert names[-1] == "_init_setup_model"  # load() relies on it
    assert all(p.default is not inspect.Parameter.empty for p in ours if p.name not in ("self", "policy", "env"))
    positional = [p.name for p in ours if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == sacs[: len(positional)]  # positional calls mean the same


def test_arguments_of_learn_are_those_of_sac(algorithm: Any) -> None:
    ours, sacs = inspect.signature(algorithm.learn).parameters, inspect.signature(SAC.learn).parameters
    assert list(ours)[: len(sacs)] == list(sacs)
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(sacs) :])
    for name, parameter in sacs.items():
        assert ours[name].default == (algorithm.__name__ if name == "tb_log_name" else parameter.default)


def test_environment_may_be_a_name_an_environment_or_vectorised(algorithm: Any) -> None:
    for env in ("Pendulum-v1", gym.make("Pendulum-v1"), make_vec_env("Pendulum-v1", n_envs=2)):
        model = make_agent(algorithm, env)
        assert model.get_env().num_envs == model.n_envs


def test_buffer_size_may_be_one_and_learning_rate_zero(algorithm: Any) -> None:
    model = make_agent(
        algorithm, PointEnv(), buffer_size=1, batch_size=1, learning_rate=0.0, learning_starts=1, tau=0.0
    )
    before = copy.deepcopy(model.get_parameters()["policy"])
    model.learn(10)
    assert model._n_updates == 9
    # These are not learned by gradient, or (the student of FacTDMPC) at a rate of their own
    statistics = ("running_scale", "energy_mean", "energy_std", "student", "spread")
    scale = {name for name in before if any(statistic in name for statistic in statistics)}
    after = model.get_parameters()["policy"]
    assert_same_state(
        {k: v for k, v in before.items() if k not in scale}, {k: v for k, v in after.items() if k not in scale}
    )


def test_buffer_size_is_divided_by_the_environments(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv), buffer_size=10)
    model.learn(30)
    assert model.replay_buffer.buffer_size == 5
    assert model.replay_buffer.observations.shape[:2] == (5, 2)
    assert model.replay_buffer.full


def test_learning_rate_schedule_reaches_every_group_and_keeps_the_scale_of_the_encoder(algorithm: Any) -> None:
    own = dict(distill_steps=0) if algorithm is FacTDMPC else {}  # whose lines of the log would be written after these
    model = make_agent(algorithm, PointEnv(), learning_rate=LinearSchedule(1e-2, 1e-3, 1.0), enc_lr_scale=0.5, **own)
    model.learn(20)
    rate = model.lr_schedule(model._current_progress_remaining)
    assert rate == pytest.approx(1e-3)
    model_rates = {group["lr"] for group in model.policy.model_optimizer.param_groups}
    assert sorted(model_rates) == pytest.approx([0.5 * rate, rate])
    assert [group["lr"] for group in model.policy.pi_optimizer.param_groups] == pytest.approx([rate])
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(rate)
    encoder = {id(parameter) for parameter in model.policy.world_model.encoder.parameters()}
    for group in model.policy.model_optimizer.param_groups:
        inside = {id(parameter) in encoder for parameter in group["params"]}
        assert inside == {group["lr"] == pytest.approx(0.5 * rate)}


def test_learning_rate_may_be_a_schedule_object(algorithm: Any) -> None:
    """The zoo wraps every learning rate in one."""
    model = make_agent(algorithm, PointEnv(), learning_rate=ConstantSchedule(1e-3)).learn(10)
    assert model.policy.pi_optimizer.param_groups[0]["lr"] == 1e-3


def test_wrong_train_freq_is_refused_by_sb3(algorithm: Any) -> None:
    for train_freq in ("4", ("1", "episode"), "non_sense", (1, "close")):
        with pytest.raises(ValueError, match="train_freq"):
            make_agent(algorithm, PointEnv(), train_freq=train_freq)


def test_policies_have_the_names_of_sb3(algorithm: Any) -> None:
    assert {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"} <= set(algorithm.policy_aliases)
    with pytest.raises(ValueError, match="unknown"):
        make_agent(algorithm, PointEnv(), policy="MlpPolitics")
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_agent(algorithm, SpaceEnv(spaces.Dict(a=BOX), BOX), policy="MlpPolicy")
    policy_class = algorithm.policy_aliases["MlpPolicy"]
    assert type(make_agent(algorithm, PointEnv(), policy=policy_class).policy) is policy_class


@pytest.mark.parametrize(
    ("length", "gamma", "learning_starts"), [(100, 0.95, 1000), (500, 0.99, 2500), (5000, 0.995, 25_000)]
)
def test_gamma_and_learning_starts_follow_the_episode_length(
    algorithm: Any, tmp_path: Any, length: int, gamma: float, learning_starts: int
) -> None:
    env = gym.wrappers.TimeLimit(PointEnv(10**9), length)
    model = make_agent(algorithm, env, gamma="auto", learning_starts="auto")
    assert type(model.gamma) is float and model.gamma == pytest.approx(gamma)
    assert type(model.learning_starts) is int and model.learning_starts == learning_starts
    # settled once: a shorter environment at load time changes nothing
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=gym.wrappers.TimeLimit(PointEnv(10**9), 20))
    assert (loaded.gamma, loaded.learning_starts) == (model.gamma, model.learning_starts)


def test_automatic_settings_need_no_time_limit(algorithm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_agent(algorithm, PointEnv(), gamma="auto", learning_starts="auto")
    assert 0.9 <= model.gamma < 1.0
    assert model.learning_starts >= 1000


def test_own_gamma_and_learning_starts_are_kept(algorithm: Any, tmp_path: Any) -> None:
    make_agent(algorithm, "Pendulum-v1", gamma=0.5, learning_starts=3).save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model")
    assert (model.gamma, model.learning_starts) == (0.5, 3)


def test_derived_settings_do_not_pile_up_through_saving(algorithm: Any, tmp_path: Any) -> None:
    """More iterations are planned for 20 and more action dimensions, but not more with every load."""
    env = SpaceEnv(BOX, spaces.Box(-1.0, 1.0, (20,), np.float32))
    model = make_agent(algorithm, env, iterations=2)
    for _ in range(2):
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=env)
        assert loaded.iterations == model.iterations == 2
        assert loaded.policy.planner.iterations == model.policy.planner.iterations
        model = loaded


def test_policy_kwargs_choose_sizes_and_optimisers(algorithm: Any) -> None:
    for policy_kwargs in (
        dict(net_arch=[]),
        dict(net_arch=[8, 8]),
        dict(net_arch=dict(pi=[8, 4], qf=[8])),
        dict(n_critics=1),
        dict(n_critics=3),
        dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=None),
        dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.5)),
    ):
        model = make_agent(algorithm, PointEnv(), policy_kwargs=policy_kwargs).learn(10)
        if "n_critics" in policy_kwargs:
            assert model.policy.world_model.num_q == policy_kwargs["n_critics"]
        for optimizer in (model.policy.model_optimizer, model.policy.pi_optimizer):
            assert type(optimizer) is policy_kwargs.get("optimizer_class", th.optim.Adam)
            if policy_kwargs.get("optimizer_kwargs"):
                assert all(group["weight_decay"] == 0.5 for group in optimizer.param_groups)


@pytest.mark.parametrize("wrong, message", [(dict(lr=1e-3), "use learning_rate"), (dict(epz=1e-3), "'eps'")])
def test_optimizer_kwargs_that_an_optimiser_does_not_take(
    algorithm: Any, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(TypeError, match=f"optimizer_kwargs.*{message}"):
        make_agent(algorithm, PointEnv(), policy_kwargs=dict(optimizer_kwargs=wrong))


def test_arguments_of_the_user_stay_as_they_are(algorithm: Any) -> None:
    policy_kwargs = dict(
        latent_dim=8, net_arch=[8], optimizer_kwargs=dict(weight_decay=0.1), features_extractor_kwargs={}
    )
    replay_buffer_kwargs: dict[str, Any] = {}
    kept = copy.deepcopy(policy_kwargs)
    for seed in range(2):  # a second agent from the same dicts
        env = PointEnv(3, terminate=True)
        settings = dict(SMALL, policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs)
        algorithm("MlpPolicy", env, learning_starts=8, seed=seed, **settings).learn(10)
        assert policy_kwargs == kept and replay_buffer_kwargs == {}


def test_nothing_is_warned_about(algorithm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_agent(algorithm, PointEnv(), seed=0).learn(20)


def test_hyperparameters_can_be_read(algorithm: Any) -> None:
    """HParamCallback of SB3's guide and the zoo read these."""
    model = make_agent(algorithm, "Pendulum-v1", learning_rate=1e-3)
    assert isinstance(model.gamma, float) and isinstance(model.learning_rate, float) and isinstance(model.tau, float)
    assert isinstance(model.learning_starts, int) and isinstance(model.batch_size, int)
    assert model.device.type == model.policy.device.type == "cpu"
