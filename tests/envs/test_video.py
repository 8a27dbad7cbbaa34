"""Videos show agents in simulated time, whatever they observe."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import sb3_mpc.envs  # noqa: F401  (registers the ids)
from sb3_mpc import TDMPC2
from sb3_mpc.envs.gl import set_headless_backend
from sb3_mpc.envs.video import record_video
from tests.support.rendering import needs_gl

set_headless_backend()
pytest.importorskip("dm_control.suite")
pytest.importorskip("moviepy")
STEPS = 4


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    for task in ("cartpole-swingup", "walker-stand", "cup-catch-pixels"):
        monkeypatch.setattr(gym.spec(f"dmc/{task}-v0"), "max_episode_steps", STEPS)


def tiny(env_id: str, policy: str = "MlpPolicy") -> TDMPC2:
    planner = dict(horizon=2, num_samples=16, num_elites=4, num_pi_trajs=2, iterations=1)
    return TDMPC2(
        policy,
        env_id,
        buffer_size=10,
        **planner,
        policy_kwargs=dict(latent_dim=16, net_arch=[16], num_q=2, num_bins=11),
    )


def frames_of(path) -> tuple[np.ndarray, float]:
    """The frames [N, height, width, 3] of a video, and how many of them make a second."""
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        return np.array(list(clip.iter_frames())), clip.fps


@pytest.mark.slow
@needs_gl
def test_planning_agent_in_simulated_time(tmp_path):
    env_id = "dmc/walker-stand-v0"
    model = tiny(env_id)
    model.save(tmp_path / "model")
    model = TDMPC2.load(tmp_path / "model")
    paths = record_video(model, env_id, tmp_path / "new" / "videos", episodes=2, seed=3, width=64, height=48)
    assert paths == [tmp_path / "new" / "videos" / f"dmc-walker-stand-v0-episode-{number}.mp4" for number in (0, 1)]
    assert sorted((tmp_path / "new" / "videos").iterdir()) == paths, "a file too many"
    frames, fps = frames_of(paths[0])
    assert frames.shape == (STEPS + 1, 48, 64, 3)
    assert fps == pytest.approx(20)  # 0.025 s a step, two steps a decision
    assert np.abs(frames[-1].astype(int) - frames[0]).max() > 30, "nothing moves"
    assert np.abs(frames_of(paths[1])[0].astype(int) - frames).max() > 30, "twice the same episode"

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a folder with videos is nothing to warn about
        again = record_video(model, env_id, tmp_path / "new" / "videos", seed=3, name="again", width=64, height=48)
    np.testing.assert_array_equal(frames_of(again[0])[0], frames)


@needs_gl
def test_agent_that_sees_images(tmp_path):
    (path,) = record_video(tiny("dmc/cup-catch-pixels-v0", "CnnPolicy"), "dmc/cup-catch-pixels-v0", tmp_path)
    frames, fps = frames_of(path)
    assert frames.shape == (STEPS + 1, 384, 384, 3), "the film is not what the agent sees"
    assert fps == pytest.approx(25)


@needs_gl
def test_normalized_observations(tmp_path):
    seen = []

    class Watched(SAC):
        def predict(self, observation, *args, **kwargs):
            seen.append(observation)
            return super().predict(observation, *args, **kwargs)

    env = VecNormalize(DummyVecEnv([lambda: gym.make("dmc/cartpole-swingup-v0")]))
    env.obs_rms.mean[:] = 5  # type: ignore[union-attr]
    env.save(str(tmp_path / "vecnormalize.pkl"))
    model = Watched("MlpPolicy", env, buffer_size=10)
    record_video(model, "dmc/cartpole-swingup-v0", tmp_path, seed=0, normalization=tmp_path / "vecnormalize.pkl")
    first, _ = gym.make("dmc/cartpole-swingup-v0").reset(seed=0)
    np.testing.assert_allclose(seen[0][0], first - 5, rtol=1e-5)


def test_bad_input(monkeypatch, tmp_path):
    model = tiny("dmc/cartpole-swingup-v0")
    with pytest.raises(ValueError, match="episodes must be at least 1, but is 0"):
        record_video(model, "dmc/cartpole-swingup-v0", tmp_path, episodes=0)
    monkeypatch.setattr("sb3_mpc.envs.video.find_spec", lambda _: None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r'pip install -e "\.\[extra\]" in your clone'):
        record_video(model, "dmc/cartpole-swingup-v0", tmp_path)
