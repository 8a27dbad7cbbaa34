"""What is saved comes back, and a run that goes on from files equals the run that was never interrupted."""

import copy
import io
import json
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule, get_device
from stable_baselines3.common.vec_env import VecNormalize

import sb3_mpc
from sb3_mpc import TDMPC2, FacTDMPC
from sb3_mpc.agents import load_agent, save_agent
from tests.support.agents import PointEnv, assert_same_state, make_agent, observations_of, training_alone, vec


def everything(model: Any, rows: bool = True) -> dict[str, Any]:
    """
    :param model: agent
    :param rows: with the content of the replay buffer
    :return: all that decides how it goes on
    """
    size = model.replay_buffer.size() if rows else 0
    return dict(
        parameters=copy.deepcopy(model.get_parameters()),
        counters=(model.num_timesteps, model._n_updates, model._episode_num),
        replay={
            name: getattr(model.replay_buffer, name)[:size].copy() for name in ("actions", "rewards", "dones") if rows
        },
        generator=model.policy.generator.get_state(),
        actions=[model.predict(observations_of(model.get_env(), 2), deterministic=d)[0] for d in (True, False)],
    )


@pytest.mark.parametrize("terminate", [False, True], ids=["truncated", "terminated"])
def test_a_loaded_agent_acts_and_learns_as_the_saved_one(algorithm: Any, tmp_path: Path, terminate: bool) -> None:
    env = PointEnv(4, terminate)
    model = make_agent(algorithm, env, learning_rate=1e-3, horizon=3, entropy_coef=0.123).learn(30)
    assert model.policy.episodic is terminate
    observations = observations_of(env, 10)
    expected, state = model.predict(observations, deterministic=True)
    model.save(tmp_path / "model.zip")
    for device in ("auto", "cpu", "cuda"):
        loaded = algorithm.load(str(tmp_path / "model"), env=env, device=device)
        assert loaded.device.type == loaded.policy.device.type == get_device(device).type
        assert (loaded.horizon, loaded.entropy_coef, loaded._n_updates) == (3, 0.123, model._n_updates)
        if loaded.device.type == "cpu":
            assert_same_state(loaded.get_parameters(), model.get_parameters())
            actual, actual_state = loaded.predict(observations, deterministic=True)
            assert_same_state((actual, actual_state), (expected, state))
        loaded.learn(20)
        assert loaded.num_timesteps == 20


def test_an_agent_is_loaded_without_environment(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv)).learn(16)
    observations = observations_of(model.get_env(), 4)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert loaded.get_env() is None
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    loaded.save(tmp_path / "again")  # a copy of a copy
    again = algorithm.load(tmp_path / "again", env=PointEnv())
    assert_same_state(again.get_parameters(), model.get_parameters())
    again.learn(12)


def test_files_may_be_paths_or_open(algorithm: Any) -> None:
    """Paths and open files alike, which stay open; without a warning about anything left open."""
    model = make_agent(algorithm, PointEnv())
    with warnings.catch_warnings(), tempfile.TemporaryFile() as file:
        warnings.simplefilter("error")
        model.save(file)
        file.seek(0)
        assert_same_state(algorithm.load(file).get_parameters(), model.get_parameters())
        for size in (0, 12):
            if size:
                model.learn(size)
            for kind in (tempfile.TemporaryFile, io.BytesIO):
                with kind() as opened:
                    model.save_replay_buffer(opened)
                    opened.seek(0)
                    model.load_replay_buffer(opened)
                    assert not opened.closed and model.replay_buffer.size() == size
        assert not file.closed


def test_attributes_may_be_excluded_included_and_replaced(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv(), verbose=2, learning_rate=1e-3)
    model.save(tmp_path / "model", exclude=["verbose"])
    assert algorithm.load(tmp_path / "model").verbose != 2
    model.save(tmp_path / "model", exclude=["verbose"], include=["verbose"])
    loaded = algorithm.load(
        tmp_path / "model", custom_objects=dict(learning_rate=2e-5, nothing=1.0), print_system_info=True
    )
    assert loaded.verbose == 2 and loaded.learning_rate == 2e-5 and loaded.lr_schedule(0.5) == 2e-5
    assert not hasattr(loaded, "nothing")
    loaded = algorithm.load(tmp_path / "model", env=PointEnv(), learning_rate=0.5, train_freq=(1, "episode"), verbose=3)
    assert (loaded.learning_rate, loaded.verbose, loaded.train_freq.unit.value) == (0.5, 3, "episode")
    loaded.learn(20)


def test_load_takes_what_rl_zoo3_passes(algorithm: Any, tmp_path: Path) -> None:
    make_agent(algorithm, PointEnv(), learning_rate=ConstantSchedule(1e-3)).learn(12).save(tmp_path / "model")
    objects = dict(learning_rate=0.0, lr_schedule=lambda _: 0.0, clip_range=lambda _: 0.0)
    model = algorithm.load(
        tmp_path / "model", env=PointEnv(), custom_objects=objects, seed=1, buffer_size=1, device="cpu"
    )
    assert model.replay_buffer.buffer_size == 1
    model.predict(observations_of(model.get_env(), 2))
    model.learn(12)


def test_checkpoint_is_small_and_plain(algorithm: Any, tmp_path: Path) -> None:
    """No replay buffer, no environment, no second copy of the network; readable by SB3's tools."""
    model = make_agent(algorithm, vec(PointEnv, PointEnv), buffer_size=10_000).learn(200)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert {"data", "policy.pth", "_stable_baselines3_version", "system_info.txt"} <= set(archive.namelist())
        data = json.loads(archive.read("data"))
    excluded = {"policy", "device", "env", "replay_buffer", "_logger", "world_model", "planner", "actor"}
    assert not excluded & set(data)
    assert len(json.dumps(data)) < 300_000


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_an_agent_is_loaded_for_another_number_of_environments(
    algorithm: Any, tmp_path: Path, before: int, after: int
) -> None:
    make_agent(algorithm, vec(*[PointEnv] * before)).learn(30).save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", env=vec(*[PointEnv] * after))
    assert model.n_envs == after
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps == 60


def test_a_finished_agent_that_hardly_learns_any_more_says_so(tmp_path: Path) -> None:
    """The presets' learning rate falls to zero over the steps of all calls."""
    model = make_agent(TDMPC2, PointEnv(), learning_rate=LinearSchedule(1e-3, 0.0, 1.0)).learn(40)
    model.save(tmp_path / "model")
    save_agent(model, tmp_path / "agent")
    for load, name in ((TDMPC2.load, "model"), (load_agent, "agent.safetensors")):
        loaded = load(tmp_path / name, env=PointEnv())
        with pytest.warns(
            UserWarning,
            match="learning rate begins at 4.8e-05, where the highest .* is 1.0e-03.*load the agent with a new one",
        ) as said:
            loaded.learn(2, reset_num_timesteps=False)
        assert said[0].filename == __file__
    begun = make_agent(TDMPC2, PointEnv(), learning_rate=LinearSchedule(1e-3, 0.0, 1.0))
    begun.learn(40, ConvertCallback(lambda *_: begun.num_timesteps < 38)).save(tmp_path / "begun")
    with pytest.warns(UserWarning, match="learning rate begins at 9.5e-05"):  # it was stopped early, and not resumed
        TDMPC2.load(tmp_path / "begun", env=PointEnv()).learn(4, reset_num_timesteps=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TDMPC2.load(tmp_path / "begun", env=PointEnv()).learn(2, reset_num_timesteps=False)
        TDMPC2.load(tmp_path / "model", env=PointEnv(), learning_rate=3e-4).learn(2, reset_num_timesteps=False)
        TDMPC2.load(tmp_path / "model", env=PointEnv()).learn(80, reset_num_timesteps=False)
        TDMPC2.load(tmp_path / "model", env=PointEnv()).learn(2)


def test_load_and_go_on_in_the_same_environment(algorithm: Any, tmp_path: Path) -> None:
    env = vec(PointEnv)
    model = make_agent(algorithm, env).learn(13)
    model.save(tmp_path / "model")
    kept = algorithm.load(tmp_path / "model", env=env, force_reset=False)
    np.testing.assert_array_equal(kept._last_obs, model._last_obs)
    kept.learn(4, reset_num_timesteps=False)
    assert kept.num_timesteps == 17
    reset = algorithm.load(tmp_path / "model", env=env, force_reset=True)
    assert reset._last_obs is None
    reset.learn(4, reset_num_timesteps=False)
    assert reset.num_timesteps == 17


def test_set_parameters_checks_what_it_is_given(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv()).learn(12)
    original = copy.deepcopy(model.get_parameters())
    assert next(iter(original)) == "policy"
    for exact_match in (True, False):
        with pytest.raises(ValueError):
            model.set_parameters({**original, "nonsense": {}}, exact_match=exact_match)
    with pytest.raises(ValueError):
        model.set_parameters(dict(list(original.items())[:-1]), exact_match=True)
    *names, last = original["policy"]
    fewer = {**original, "policy": {name: original["policy"][name] for name in names}}
    with pytest.raises(RuntimeError):
        model.set_parameters(fewer, exact_match=True)
    random = {"policy": {name: th.rand_like(original["policy"][name]) for name in names}}
    model.set_parameters(random, exact_match=False)
    assert_same_state({**random["policy"], last: original["policy"][last]}, dict(model.get_parameters()["policy"]))
    model.set_parameters(original)
    assert_same_state(model.get_parameters(), original)


@pytest.mark.parametrize("terminate", [False, True], ids=["truncated", "terminated"])
def test_a_policy_is_saved_alone(algorithm: Any, tmp_path: Path, terminate: bool) -> None:
    """``policy.save`` is enough for an agent that plans with all its settings."""
    env = PointEnv(4, terminate)
    model = make_agent(
        algorithm, env, horizon=3, iterations=2, gamma=0.7, num_pi_trajs=0, min_std=0.3, temperature=2.0
    ).learn(30)
    model.policy.save(tmp_path / "policy.pkl")
    loaded = type(model.policy).load(tmp_path / "policy.pkl")
    assert_same_state(dict(loaded.state_dict()), dict(model.policy.state_dict()))
    observations, state = observations_of(env, 3), None
    for _ in range(3):
        expected, new_state = model.predict(observations, state=state, deterministic=True)
        actual, actual_state = loaded.predict(observations, state=state, deterministic=True)
        assert_same_state((actual, actual_state), (expected, new_state))
        state = new_state


def test_running_scale_is_saved(algorithm: Any, tmp_path: Path) -> None:
    """The official code forgets it, and a resumed run starts again with the wrong scale of the values."""
    model = make_agent(algorithm, PointEnv())
    model.policy.running_scale.value.fill_(7.5)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pkl")
    for policy in (algorithm.load(tmp_path / "model").policy, type(model.policy).load(tmp_path / "policy.pkl")):
        assert policy.running_scale.value.item() == 7.5


def test_an_actor_is_saved_alone(algorithm: Any, tmp_path: Path) -> None:
    """The prior acts without planning, and can be saved by itself."""
    env = PointEnv()
    actor = make_agent(algorithm, env).learn(12).policy.actor
    action, _ = actor.predict(observations_of(env, 3), deterministic=True)
    assert action.shape == (3, 2) and all(env.action_space.contains(one) for one in action)
    actor.save(tmp_path / "actor.pkl")
    loaded = type(actor).load(tmp_path / "actor.pkl")
    np.testing.assert_array_equal(loaded.predict(observations_of(env, 3), deterministic=True)[0], action)


def test_compiled_policy_can_be_saved(algorithm: Any, tmp_path: Path) -> None:
    """https://github.com/DLR-RM/stable-baselines3/issues/2137"""
    model = make_agent(algorithm, PointEnv())
    expected = copy.deepcopy(model.get_parameters())
    model.policy = th.compile(model.policy)
    model.save(tmp_path / "model")
    assert_same_state(algorithm.load(tmp_path / "model").get_parameters(), expected)


def test_a_loaded_replay_buffer_is_on_the_device_of_the_agent(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv()).learn(12)
    rewards = model.replay_buffer.rewards.copy()
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer = None
    for device in ("cuda", "cpu"):
        model.device = th.device(device)
        model.load_replay_buffer(tmp_path / "buffer")
        assert model.replay_buffer.device.type == device
    np.testing.assert_array_equal(model.replay_buffer.rewards, rewards)
    assert model.replay_buffer.sample(3).rewards.device.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("terminate", [False, True], ids=["truncated", "terminated"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_interrupted_run_goes_on_in_the_same_environment(
    algorithm: Any, tmp_path: Path, terminate: bool, n_envs: int
) -> None:
    """
    Saved in the middle of an episode and loaded with ``force_reset=False``: bit for bit the run of a single ``learn``,
    with parameters, optimisers, plans, random numbers and the episode that was open. Interrupted before the first
    update, and in the training.
    """

    def start() -> Any:
        env = vec(*[lambda length=length: PointEnv(length, terminate) for length in (7, 5)[:n_envs]])
        settings = dict(seed=4, learning_starts=10, horizon=3, pretrain_gradient_steps=3)
        return make_agent(algorithm, env, **settings, **training_alone(algorithm))

    single = start().learn(24 * n_envs)
    assert single._n_updates > 0
    expected = everything(single)
    for interrupted_at in (4, 14):
        first = start().learn(interrupted_at * n_envs)
        assert (first._n_updates > 0) == (interrupted_at == 14)
        first.save(tmp_path / "model")
        first.save_replay_buffer(tmp_path / "buffer")
        th.manual_seed(99), np.random.seed(99)  # the second half finds another world
        second = algorithm.load(tmp_path / "model", env=first.get_env(), force_reset=False)
        del first
        second.load_replay_buffer(tmp_path / "buffer")
        second.learn((24 - interrupted_at) * n_envs, reset_num_timesteps=False)
        assert_same_state(everything(second), expected)


def test_an_interrupted_run_goes_on_with_normalisation(algorithm: Any, tmp_path: Path) -> None:
    def start() -> Any:
        return make_agent(algorithm, VecNormalize(vec(lambda: PointEnv(7))), seed=4, **training_alone(algorithm))

    single = start().learn(40)
    first = start().learn(20)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    second = algorithm.load(tmp_path / "model", env=first.get_env(), force_reset=False)
    second.load_replay_buffer(tmp_path / "buffer")
    second.learn(20, reset_num_timesteps=False)
    assert_same_state(everything(second), everything(single))


def test_an_interrupted_run_goes_on_with_action_noise(algorithm: Any, tmp_path: Path) -> None:
    """SB3's noises draw from NumPy's global generator, which is the user's to restore; their state is in the file."""

    def start() -> Any:
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.3 * np.ones(2))
        return make_agent(algorithm, PointEnv(1000), seed=4, action_noise=noise)

    first = start().learn(20)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    generator = np.random.get_state()
    second = algorithm.load(tmp_path / "model", env=first.get_env(), force_reset=False)
    second.load_replay_buffer(tmp_path / "buffer")
    # a second learn() restarts the noise, in the running agent as in the loaded one
    assert np.abs(second.action_noise.noise_prev).max() > 0
    for model in (first, second):
        np.random.set_state(generator)
        model.set_env(vec(lambda: PointEnv(1000), seed=2))
        model.learn(20, reset_num_timesteps=False)
    assert_same_state(everything(second), everything(first))


def test_an_interrupted_run_goes_on_in_a_new_environment(algorithm: Any, tmp_path: Path) -> None:
    """The episode that was open is given up: as if the running agent had been given the new environment."""

    def start() -> Any:
        return make_agent(algorithm, vec(lambda: PointEnv(7)), seed=4).learn(24)

    running, first = start(), start()
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    running.set_env(vec(lambda: PointEnv(7), seed=11))
    running.learn(26, reset_num_timesteps=False)
    loaded = algorithm.load(tmp_path / "model", env=vec(lambda: PointEnv(7), seed=None))
    loaded.get_env().seed(11)  # load() has seeded it with the seed of the agent
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(26, reset_num_timesteps=False)
    assert_same_state(everything(loaded), everything(running))


def test_an_interrupted_run_goes_on_from_the_end_of_an_episode(algorithm: Any, tmp_path: Path) -> None:
    """Where episodes start alike, a new environment after the end of an episode changes nothing at all."""

    def start() -> Any:
        return make_agent(algorithm, vec(lambda: PointEnv(6, start=0.5)), seed=4, **training_alone(algorithm))

    single = start().learn(42)
    first = start().learn(24)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    second = algorithm.load(tmp_path / "model", env=vec(lambda: PointEnv(6, start=0.5)))
    second.load_replay_buffer(tmp_path / "buffer")
    second.learn(18, reset_num_timesteps=False)
    assert_same_state(everything(second), everything(single))


def test_an_interrupted_run_distils_the_same_student(tmp_path: Path) -> None:
    """As long as nothing was distilled before."""

    def start(distill_steps: int | str) -> Any:
        env = vec(lambda: PointEnv(6, start=0.5))
        return make_agent(FacTDMPC, env, seed=4, distill_steps=distill_steps)

    single, first = start("auto").learn(42), start(0).learn(24)
    first.save(tmp_path / "model")
    second = FacTDMPC.load(tmp_path / "model", env=vec(lambda: PointEnv(6, start=0.5)))
    second.replay_buffer, second.distill_steps = first.replay_buffer, "auto"
    second.learn(18, reset_num_timesteps=False)
    assert second._student_updates == 42
    assert second.policy.distilled
    assert_same_state(everything(second), everything(single))


CONTINUE = """
import pickle, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import sb3_mpc
from sb3_mpc import TDMPC2, FacTDMPC
from sb3_mpc.agents import load_agent, save_agent
from tests.support.agents import PointEnv, vec
for name, algorithm in sb3_mpc.ALGORITHMS.items():
    model = algorithm.load(name, env=vec(lambda: PointEnv(6, start=0.5)), device="cpu")
    model.load_replay_buffer(name + "-buffer")
    model.learn(18, reset_num_timesteps=False)
    result = model.get_parameters()["policy"], model.replay_buffer.actions[:42]
    pickle.dump(result, open(name + "-result.pkl", "wb"))
"""


@pytest.mark.slow
def test_interrupted_runs_go_on_in_another_process(tmp_path: Path) -> None:
    """Nothing that matters stays in the process. One process for all classes: to start it takes seconds."""

    def start(algorithm: Any) -> Any:
        return make_agent(algorithm, vec(lambda: PointEnv(6, start=0.5)), seed=4, **training_alone(algorithm))

    singles = {}
    for name, algorithm in sb3_mpc.ALGORITHMS.items():
        singles[name] = start(algorithm).learn(42)
        first = start(algorithm).learn(24)
        first.save(tmp_path / name)
        first.save_replay_buffer(tmp_path / f"{name}-buffer")
    subprocess.run([sys.executable, "-c", CONTINUE.format(path=sys.path)], cwd=tmp_path, check=True)
    for name, single in singles.items():
        policy, actions = pickle.loads((tmp_path / f"{name}-result.pkl").read_bytes())
        assert_same_state(dict(policy), dict(single.get_parameters()["policy"]), name)
        np.testing.assert_array_equal(actions, single.replay_buffer.actions[:42])


def test_files_of_versions_with_other_module_names_are_explained(tmp_path: Path) -> None:
    model = make_agent(sb3_mpc.TDMPC2, PointEnv()).learn(12)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    path = tmp_path / "old.pkl"
    path.write_bytes((tmp_path / "buffer.pkl").read_bytes().replace(b"sequence_buffer", b"moved___buffer_"))
    with pytest.raises(ValueError, match="old.pkl was written by an earlier version .* agent file"):
        model.load_replay_buffer(path)
    assert model.replay_buffer.size() == 12


def test_an_agent_file_is_not_a_run(tmp_path: Path) -> None:
    path = save_agent(make_agent(sb3_mpc.TDMPC2, vec(PointEnv)), tmp_path / "agent")
    with pytest.raises(ValueError, match="is an agent file.*use sb3_mpc.agents.load_agent"):
        sb3_mpc.TDMPC2.load(path)


def test_loading_leaves_global_randomness_alone(algorithm: Any, tmp_path: Path) -> None:
    """Unless a seed is given, which seeds the process as SB3 does."""
    make_agent(algorithm, PointEnv(), seed=3).save(tmp_path / "model")
    state = th.get_rng_state(), np.random.get_state()[1].copy()
    algorithm.load(tmp_path / "model", env=PointEnv())
    assert th.equal(th.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
    algorithm.load(tmp_path / "model", seed=3)
    first = th.get_rng_state()
    algorithm.load(tmp_path / "model", seed=3)
    assert th.equal(th.get_rng_state(), first)
