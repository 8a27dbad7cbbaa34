"""Mistakes of users: each ends in a sentence that names the culprit and the way out, and nothing on disk is lost."""

import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from tests.support.agents import (
    PointEnv,
    SpaceEnv,
    assert_one_clear_sentence,
    assert_same_state,
    make_agent,
    observations_of,
    vec,
)

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
# One of these verbs tells what to do about it
FIX = r"use|pass|set |give|choose|check|wrap|rescale|reduce|remove|replace|load|clip|make|instead|leave|needs?|must"


@pytest.fixture
def algorithm() -> type[TDMPC2]:
    """:return: one class for all of them: bad input is met in what they share"""
    return TDMPC2


class Spoiler(gym.Wrapper):
    """
    Puts a bad number into one step of the environment.

    :param env: environment
    :param at: steps since the start of the run after which it happens
    :param value: the number
    :param where: "observation", "reward", or the key of a dict observation
    """

    def __init__(self, env: gym.Env, at: int, value: float, where: str) -> None:
        super().__init__(env)
        self.at, self.value, self.where, self.count = at, value, where, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        if self.count == self.at:
            if self.where == "reward":
                reward = self.value  # type: ignore[assignment]
            elif self.where == "observation":
                observation = observation.copy()
                observation[1] = self.value
            else:
                observation[self.where] = np.full_like(observation[self.where], self.value)
        return observation, reward, terminated, truncated, info


# --- spaces and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(3), "Discrete"),
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete"),
        (spaces.MultiBinary(3), "MultiBinary"),
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), "inf|bound|finite"),
        (spaces.Box(0.0, np.inf, (2,), np.float32), "inf|bound|finite"),
        (spaces.Box(-128, 127, (2,), np.int8), "floating-point"),
    ],
    ids=str,
)
def test_action_spaces_that_cannot_be_planned_in_are_refused(algorithm: Any, space: spaces.Space, words: str) -> None:
    with pytest.raises(AssertionError) as error:  # as SB3 does, for its tests and for scripts that rely on it
        make_agent(algorithm, SpaceEnv(BOX, space))
    assert isinstance(error.value, ValueError)
    assert_one_clear_sentence(error.value, "action space", words, FIX)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("latent_dims", "latent_dim"), ("num_qs", "num_q"), ("feature_extractor_class", "features_extractor_class")],
)
def test_wrong_key_in_policy_kwargs_names_the_right_one(algorithm: Any, wrong: str, meant: str) -> None:
    with pytest.raises(TypeError) as error:
        make_agent(algorithm, PointEnv(), policy_kwargs={wrong: 16})
    assert_one_clear_sentence(error.value, f"{wrong}['\"` ]", f"{meant}['\"` ?.,]", "policy_kwargs")


def test_keys_of_sac_alone_in_policy_kwargs_are_refused(algorithm: Any) -> None:
    for key in ("share_features_extractor", "use_sde", "activation_fn"):
        with pytest.raises(TypeError) as error:
            make_agent(algorithm, PointEnv(), policy_kwargs={key: True})
        assert_one_clear_sentence(error.value, key, "leave it out")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("ent_coef", "entropy_coef"),
        ("use_sde", "leave it out"),
        ("batchsize", "batch_size"),
        ("monitor_wrapper", "help"),
    ],
)
def test_unknown_argument_names_the_right_one(algorithm: Any, wrong: str, hint: str) -> None:
    with pytest.raises(TypeError) as error:
        make_agent(algorithm, PointEnv(), **{wrong: 1})
    assert_one_clear_sentence(error.value, algorithm.__name__, wrong, hint)


def test_defaults_of_sac_may_be_said(algorithm: Any, tmp_path: Path) -> None:
    make_agent(algorithm, PointEnv(), ent_coef="auto", use_sde=False, target_update_interval=1, target_entropy="auto")
    defaults: dict[str, Any] = dict(share_features_extractor=False, use_sde=False, log_std_init=-3, clip_mean=2.0)
    model = make_agent(algorithm, PointEnv(), policy_kwargs=defaults)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=PointEnv(), policy_kwargs=model.policy_kwargs)
    assert_same_state(loaded.policy.state_dict(), model.policy.state_dict())


def test_advice_on_the_entropy_does_not_invite_the_scale_of_sac(algorithm: Any) -> None:
    with pytest.raises(TypeError) as error:
        make_agent(algorithm, PointEnv(), ent_coef=0.2)
    assert_one_clear_sentence(error.value, "leave it out", "another scale", "1e-4")


def test_what_is_no_environment_is_refused(algorithm: Any) -> None:
    def make() -> gym.Env:
        return PointEnv()

    for wrong, kind, fix in (
        ([make, make], "a list", "DummyVecEnv"),
        (make, "the function make", "call it"),
        (PointEnv, "the class PointEnv", "call it"),
        (7, "type int", "gymnasium.Env"),
        (gym.make_vec("Pendulum-v1", 2), "Vec", "VecEnv of SB3"),
    ):
        for use in (partial(make_agent, algorithm), make_agent(algorithm, PointEnv()).set_env):
            with pytest.raises(ValueError) as error:
                use(wrong)
            assert_one_clear_sentence(error.value, kind, "not an environment", fix)


def test_environments_of_old_gym_are_adapted_by_sb3(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked of them: their spaces are of classes of their own."""

    class OldEnv:
        """Neither of Gymnasium nor with its spaces."""

        action_space = observation_space = "a space of another library"

    def adapt(env: Any) -> gym.Env:
        if isinstance(env, gym.Env):
            return env
        assert isinstance(env, OldEnv)
        return PointEnv()

    monkeypatch.setattr("sb3_mpc.common.checks.arguments._patch_env", adapt)
    assert make_agent(algorithm, OldEnv()).learn(12).num_timesteps == 12


def test_setting_changed_on_the_agent_is_warned_about(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv()).learn(10)
    model.num_samples = 24
    with pytest.warns(UserWarning, match="num_samples was changed to 24 on the agent, but its planner keeps .* load"):
        model.learn(2, reset_num_timesteps=False)
    model.save(tmp_path / "agent")
    assert algorithm.load(tmp_path / "agent", num_samples=20).policy.active()[1].num_samples == 20


def test_unknown_key_of_net_arch_is_refused(algorithm: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(algorithm, PointEnv(), policy_kwargs=dict(net_arch=dict(pi=[16], vf=[16])))
    assert_one_clear_sentence(error.value, "net_arch", "vf", "use qf")


def test_an_agent_needs_an_environment(algorithm: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(algorithm, None)
    assert_one_clear_sentence(error.value, algorithm.__name__, "environment", FIX)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("horizon", "3"),
        ("buffer_size", -5),
        ("gamma", 1.5),
        ("gamma", None),
        ("tau", 2),
        ("temperature", -1),
        ("min_std", 3.0),
        ("replay_buffer_kwargs", dict(horizon=9)),
    ],
)
def test_number_out_of_range_is_refused(algorithm: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        make_agent(algorithm, PointEnv(), **{name: value})
    assert_one_clear_sentence(error.value, name, FIX)


@pytest.mark.parametrize(("name", "value"), [("dropout", 1.0), ("num_q", 0), ("latent_dim", -16)])
def test_size_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(TDMPC2, PointEnv(), policy_kwargs={name: value})
    assert_one_clear_sentence(error.value, f"{name}={value}", FIX)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (BMPC, "reanalyze_batch_size"),
        (BMPC, "td_horizon"),
        (MBDPO, "score_states"),
        (FacTDMPC, "distill_batch_size"),
        (FacTDMPC, "distill_temperature"),
    ],
)
def test_number_of_a_method_out_of_range_is_refused(method: Any, name: str) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(method, PointEnv(), **{name: 0})
    assert_one_clear_sentence(error.value, f"{name}=0", FIX)


OF_FEW_NAMES: list[tuple[Any, str]] = [
    *((TDMPCSquare, name) for name in ("constraint_scaling", "actor_mode")),
    *((BMPC, name) for name in ("kl_direction", "expert_mean", "values_of", "imitation_loss")),
    (MBDPO, "target_policy"),
    (FacTDMPC, "kl_direction"),
]


@pytest.mark.parametrize(("method", "name"), OF_FEW_NAMES)
def test_arguments_that_a_saved_agent_gets_are_checked(method: Any, name: str, tmp_path: Path) -> None:
    make_agent(method, PointEnv()).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=f"{name}='nonsense' is unknown: use"):
        method.load(tmp_path / "agent", PointEnv(), **{name: "nonsense"})


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (FacTDMPC, dict(action_groups=[[0, 1]])),
        (BMPC, dict(values_of="actions")),
        (MBDPO, dict(use_score_network=True)),
    ],
)
def test_a_saved_agent_keeps_its_networks(method: Any, change: dict[str, Any], tmp_path: Path) -> None:
    make_agent(method, PointEnv()).save(tmp_path / "agent")
    with pytest.raises(ValueError) as error:
        method.load(tmp_path / "agent", PointEnv(), **change)
    assert_one_clear_sentence(error.value, *change, "leave out")


def test_arguments_of_something_else_are_sent_there() -> None:
    for method, name, words in (
        (TDMPC2, "actor_mode", ("TDMPCSquare", "leave it out")),
        (TDMPC2, "kl_direction", ("BMPC and FacTDMPC",)),
        (FacTDMPC, "student_planner_kwargs", ("use policy_kwargs",)),
        (TDMPC2, "latent_dim", ("use policy_kwargs",)),
    ):
        with pytest.raises(TypeError) as error:
            make_agent(method, PointEnv(), **{name: 1})
        assert_one_clear_sentence(error.value, name, *words)


def test_own_arguments_are_shown_and_checked() -> None:
    for algorithm, name in OF_FEW_NAMES:
        with pytest.raises(ValueError, match=f"{name}='nonsense' is unknown: use"):
            make_agent(algorithm, PointEnv(), **{name: "nonsense"})
    with pytest.raises(TypeError, match="no_such_argument"):
        make_agent(MBDPO, PointEnv(), no_such_argument=1)


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, NStepReplayBuffer])
def test_foreign_replay_buffer_is_refused(algorithm: Any, buffer_class: type) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(algorithm, PointEnv(), replay_buffer_class=buffer_class)
    assert_one_clear_sentence(error.value, buffer_class.__name__, FIX)


def test_more_n_steps_than_a_window_has_are_refused(algorithm: Any) -> None:
    for n_steps, words in ((4, ("n_steps", "4", "horizon")), (0, ("n_steps", "0"))):
        with pytest.raises(ValueError) as error:
            make_agent(algorithm, PointEnv(), n_steps=n_steps, horizon=3)
        assert_one_clear_sentence(error.value, *(("n_steps", "td_horizon") if algorithm is BMPC else words))


def test_latent_size_that_simplices_do_not_divide_is_refused(algorithm: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(algorithm, PointEnv(), policy_kwargs=dict(latent_dim=20))
    assert_one_clear_sentence(error.value, "latent_dim", "20", "8")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["observation", "reward"])
@pytest.mark.parametrize("at", [3, 5, 14], ids=["seeding", "end of episode", "training"])
def test_bad_number_from_an_environment_stops_the_run(algorithm: Any, value: float, where: str, at: int) -> None:
    model = make_agent(algorithm, vec(lambda: PointEnv(5), lambda: Spoiler(PointEnv(5), at, value, where)))
    with pytest.raises(ValueError) as error:
        model.learn(100)
    assert_one_clear_sentence(
        error.value, where, r"env\w* 1\b|env\w* (index|number|no\.) 1\b", str(abs(value)), r"step \d+", FIX
    )
    assert model.num_timesteps == 2 * at
    # what was collected before stays usable
    assert np.isfinite(model.replay_buffer.observations[: model.replay_buffer.size()]).all()
    assert np.isfinite(model.replay_buffer.rewards[: model.replay_buffer.size()]).all()
    if model.replay_buffer.size() > 0:
        model.train(gradient_steps=1, batch_size=4)
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())


def test_bad_number_in_a_dict_names_the_key(algorithm: Any) -> None:
    space = spaces.Dict(left=BOX, right=spaces.Box(-1.0, 1.0, (3,), np.float32), count=spaces.Discrete(3))
    env = Spoiler(SpaceEnv(space, BOX), 4, np.nan, "right")
    model = make_agent(algorithm, env, policy="MultiInputPolicy")
    with pytest.raises(ValueError) as error:
        model.learn(20)
    assert_one_clear_sentence(error.value, "right", "nan", r"env\w* 0\b")


def test_bad_number_in_the_first_observation_stops_the_run(algorithm: Any) -> None:
    class BadStart(PointEnv):
        """Starts nowhere."""

        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return np.full_like(observation, np.nan), info

    with pytest.raises(ValueError) as error:
        make_agent(algorithm, BadStart(), learning_starts=0).learn(3)
    assert_one_clear_sentence(error.value, "observation", "nan")


def test_bad_number_given_to_predict_is_refused(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    observations = observations_of(model.get_env(), 3)
    for value in (np.nan, np.inf):
        observations[1, 2] = value
        for use_planner in (True, False):
            with pytest.raises(ValueError) as error:
                model.predict(observations, deterministic=True, use_planner=use_planner)
            assert_one_clear_sentence(error.value, "observation", str(value))


def test_bad_state_given_to_predict_is_refused(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    observations = observations_of(model.get_env(), 3)
    (mean,) = model.predict(observations)[1]
    mean[0, 0, 0] = np.nan
    with pytest.raises(ValueError) as error:
        model.predict(observations, state=(mean,))
    assert_one_clear_sentence(error.value, "state", "finite", FIX)
    with pytest.raises(ValueError) as error:
        model.predict(observations, episode_start=np.array([True, False]))
    assert_one_clear_sentence(error.value, "episode_start has 2 entries for 3", FIX)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_observation_of_another_shape_given_to_predict_is_refused(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    for shape in ((4,), (2,), (5, 4), (1, 3, 3)):
        with pytest.raises(ValueError) as error:
            model.predict(np.zeros(shape, np.float32))
        assert_one_clear_sentence(
            error.value, "observation", r"\(3,\)", str(shape).replace("(", r"\(").replace(")", r"\)")
        )


def test_no_observations_given_to_predict_have_no_actions(algorithm: Any) -> None:
    """As with SB3: a fleet of which none is active is a batch like others."""
    model = make_agent(algorithm, PointEnv())
    for use_planner in (True, False):
        actions, state = model.predict(np.zeros((0, 3), np.float32), use_planner=use_planner)
        assert actions.shape == (0, *model.action_space.shape)
        if use_planner:
            assert model.predict(np.zeros((0, 3), np.float32), state=state)[1][0].shape == state[0].shape


def test_plan_of_another_number_of_environments_given_to_predict_is_refused(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    _, state = model.predict(observations_of(model.get_env(), 3))
    with pytest.raises(ValueError) as error:
        model.predict(observations_of(model.get_env(), 2), state=state)
    assert_one_clear_sentence(error.value, "state", "3", "2")


class Reshaper(VecEnvWrapper):
    """
    Vectorised environment that changes its observations half way through.

    :param venv: environment
    :param at: step of the change
    :param change: function of the observations
    """

    def __init__(self, venv: Any, at: int, change: Any) -> None:
        super().__init__(venv)
        self.at, self.change, self.count = at, change, 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.count += 1
        return (self.change(observations) if self.count >= self.at else observations), rewards, dones, infos


@pytest.mark.parametrize("at", [3, 12], ids=["seeding", "training"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_observations_that_change_their_shape_stop_the_run(algorithm: Any, at: int, width: int) -> None:
    env = Reshaper(vec(PointEnv, PointEnv), at, lambda observations: np.resize(observations, (2, width)))
    model = make_agent(algorithm, env)
    with pytest.raises(ValueError) as error:
        model.learn(100)
    assert_one_clear_sentence(error.value, "observation", r"\(3,\)", rf"\({width},\)", "shape")
    assert model.num_timesteps == 2 * at
    assert model.replay_buffer.size() == at - 1


def test_errors_of_the_environment_stay_its_own(algorithm: Any) -> None:
    def fail(observations: np.ndarray) -> np.ndarray:
        raise ValueError("cannot broadcast my own arrays")

    with pytest.raises(ValueError, match=r"^cannot broadcast my own arrays$"):
        make_agent(algorithm, Reshaper(vec(PointEnv), 12, fail)).learn(100)


def test_observations_that_lose_a_key_stop_the_run(algorithm: Any) -> None:
    space = spaces.Dict(left=BOX, right=BOX)
    env = Reshaper(vec(lambda: SpaceEnv(space, BOX)), 12, lambda observations: {"left": observations["left"]})
    with pytest.raises((ValueError, KeyError)) as error:
        make_agent(algorithm, env, policy="MultiInputPolicy").learn(100)
    assert_one_clear_sentence(error.value, "right")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 0.3, 0.7, 0.99])
def test_truncated_checkpoint_is_refused(algorithm: Any, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.zip"
    make_agent(algorithm, PointEnv()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError) as error:
        algorithm.load(path)
    assert_one_clear_sentence(error.value, r"model\.zip", "truncated|incomplete|damaged|corrupt|not a", FIX)
    assert path.read_bytes() == content[: int(keep * len(content))]


def test_missing_checkpoint_is_a_missing_file(algorithm: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        algorithm.load(tmp_path / "nothing")


def test_checkpoint_of_another_environment_is_refused(algorithm: Any, tmp_path: Path) -> None:
    make_agent(algorithm, PointEnv()).save(tmp_path / "model")
    with pytest.raises(ValueError) as error:
        algorithm.load(tmp_path / "model", env=SpaceEnv(BOX, PointEnv().action_space))
    assert_one_clear_sentence(error.value, "observation space", r"\(3,\)", r"\(2,\)")
    with pytest.raises(ValueError) as error:
        algorithm.load(tmp_path / "model", env=SpaceEnv(PointEnv().observation_space, BOX))
    assert_one_clear_sentence(error.value, "action space")


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_replay_buffer_is_refused(algorithm: Any, tmp_path: Path, keep: float) -> None:
    model = make_agent(algorithm, PointEnv()).learn(20)
    path = tmp_path / "buffer.pkl"
    model.save_replay_buffer(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    kept = model.replay_buffer
    with pytest.raises(ValueError) as error:
        model.load_replay_buffer(path)
    assert_one_clear_sentence(error.value, r"buffer\.pkl", "truncated|incomplete|damaged|corrupt|not a", FIX)
    assert model.replay_buffer is kept


def test_replay_buffer_of_another_environment_is_refused(algorithm: Any, tmp_path: Path) -> None:
    other = make_agent(algorithm, SpaceEnv(BOX, BOX)).learn(10)
    other.save_replay_buffer(tmp_path / "buffer")
    model = make_agent(algorithm, PointEnv())
    kept = model.replay_buffer
    with pytest.raises(ValueError) as error:
        model.load_replay_buffer(tmp_path / "buffer")
    assert_one_clear_sentence(error.value, "observation space", r"\(3,\)", r"\(2,\)")
    assert model.replay_buffer is kept


def test_replay_buffer_of_another_number_of_environments_is_refused(algorithm: Any, tmp_path: Path) -> None:
    make_agent(algorithm, vec(PointEnv, PointEnv)).learn(10).save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError) as error:
        make_agent(algorithm, PointEnv()).load_replay_buffer(tmp_path / "buffer")
    assert_one_clear_sentence(error.value, "number of env", "2", "1")


def break_torch_save(monkeypatch: Any, model: Any) -> type[Exception]:
    """The disk is full half way through the archive."""
    real, calls = th.save, []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(th, "save", save)
    return OSError


def break_attribute(monkeypatch: Any, model: Any) -> type[Exception]:
    """Something was attached that cannot be pickled."""
    model.attached = threading.Lock()
    return TypeError


@pytest.mark.parametrize("break_it", [break_torch_save, break_attribute])
def test_failed_save_keeps_the_previous_checkpoint(
    algorithm: Any, tmp_path: Path, monkeypatch: Any, break_it: Any
) -> None:
    model = make_agent(algorithm, PointEnv())
    model.save(tmp_path / "model")
    expected = model.get_parameters()["policy"]
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    model.learn(12)
    error = break_it(monkeypatch, model)
    with pytest.raises(error):
        model.save(tmp_path / "model")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]  # no litter
    assert_same_state(dict(algorithm.load(tmp_path / "model").get_parameters()["policy"]), expected)


def test_failed_save_keeps_the_previous_replay_buffer(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv()).learn(12)
    model.save_replay_buffer(tmp_path / "buffer")
    model.learn(12)
    model.replay_buffer.zzz_attached = threading.Lock()
    with pytest.raises((TypeError, pickle.PicklingError)):
        model.save_replay_buffer(tmp_path / "buffer")
    assert [path.name for path in tmp_path.iterdir()] == ["buffer.pkl"]
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 12


def test_saving_creates_missing_folders_and_replaces_files(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv(), verbose=0).learn(4)
    for _ in range(2):
        model.save(tmp_path / "new" / "model")
        model.save_replay_buffer(tmp_path / "new" / "buffer")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["buffer.pkl", "model.zip"]


def test_file_of_another_algorithm_is_refused(algorithm: Any, tmp_path: Path) -> None:
    SAC("MlpPolicy", PointEnv(), policy_kwargs=dict(net_arch=[4])).save(tmp_path / "sac")
    with pytest.raises(ValueError) as error:
        algorithm.load(tmp_path / "sac")
    assert_one_clear_sentence(error.value, algorithm.__name__, "SACPolicy", FIX)


@pytest.mark.parametrize(("method", "other"), [(BMPC, TDMPC2), (TDMPC2, FacTDMPC), (MBDPO, TDMPC2)])
def test_file_of_another_method_is_refused(method: Any, other: Any, tmp_path: Path) -> None:
    make_agent(method, PointEnv()).save(tmp_path / "model")
    with pytest.raises(ValueError) as error:
        other.load(tmp_path / "model")
    assert_one_clear_sentence(error.value, f"saved by {method.__name__}", f"use {method.__name__}.load")

    class Derived(method):  # type: ignore[misc]
        """A method of the user's own."""

    assert isinstance(Derived.load(tmp_path / "model"), Derived)


def test_saving_through_a_link_keeps_the_link(algorithm: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest.zip").symlink_to(tmp_path / "disk" / "model.zip")
    make_agent(algorithm, PointEnv()).save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink()
    algorithm.load(tmp_path / "disk" / "model.zip")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_replay_buffer_larger_than_the_memory_is_refused(algorithm: Any) -> None:
    with pytest.raises(MemoryError) as error:
        make_agent(algorithm, PointEnv(), buffer_size=10**13)
    assert_one_clear_sentence(error.value, "buffer_size", r"[GT]i?B", FIX)


def test_replay_buffer_larger_than_the_memory_does_not_hinder_loading(algorithm: Any, tmp_path: Path) -> None:
    """A model that was trained on a larger machine still acts here."""
    model = make_agent(algorithm, PointEnv())
    model.buffer_size = 10**13
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=PointEnv())
    observation = observations_of(loaded.get_env(), 2)
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    with pytest.raises(MemoryError) as error:
        loaded.learn(3)
    assert_one_clear_sentence(error.value, "buffer_size", FIX)
    algorithm.load(tmp_path / "model", env=PointEnv(), buffer_size=100).learn(10)
