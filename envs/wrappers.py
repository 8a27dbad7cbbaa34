"""The wrappers that give the environments of all suites one interface."""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray


class RenderedEnv(gym.Env):
    """
    Base class of the suites' environments, which render in any size.

    Tasks that define success report it in ``info["success"]``.

    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None, width: int, height: int) -> None:
        self.render_mode, self.width, self.height = render_mode, width, height

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state in any size.

        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        raise NotImplementedError

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """
        Render the present state.

        :return: the frame [height, width, 3] if ``render_mode`` is ``"rgb_array"``, else None
        """
        return self.frame(self.height, self.width) if self.render_mode == "rgb_array" else None


class ControlInterface(gym.Wrapper, RecordConstructorArgs):
    """
    The interface that agents are trained on: float32 observations, float32 actions in [-1, 1], repeated actions,
    summed rewards, plain Python types for reward and flags, and success under SB3's name ``info["is_success"]`` too.

    :param env: an environment with flat observations [D] and bounded actions [A]
    :param action_repeat: number of steps of ``env`` per decision; repetition stops at the end of the episode
    :raises ValueError: if ``action_repeat`` is less than 1
    """

    def __init__(self, env: gym.Env, action_repeat: int = 1) -> None:
        if action_repeat < 1:
            raise ValueError(f"action_repeat must be at least 1, but is {action_repeat}.")
        RecordConstructorArgs.__init__(self, action_repeat=action_repeat)
        gym.Wrapper.__init__(self, env)
        observations, actions = env.observation_space, env.action_space
        assert isinstance(observations, gym.spaces.Box) and isinstance(actions, gym.spaces.Box)
        self.action_repeat = action_repeat
        self.observation_space = gym.spaces.Box(
            observations.low.astype(np.float32), observations.high.astype(np.float32), dtype=np.float32
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, actions.shape, np.float32)
        self._low = actions.low.astype(np.float64)
        self._half_range = (actions.high.astype(np.float64) - self._low) / 2
        self._action_dtype = actions.dtype
        if "render_fps" in env.metadata:
            self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / action_repeat}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        Start an episode.

        :param seed: determines the whole episode; without it the random number generator continues
        :param options: passed on to the environment
        :return: the first observation [D] and the info of the environment
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return np.asarray(observation, dtype=np.float32), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        Carry out one decision.

        :param action: the action [A] in [-1, 1]
        :return: the observation [D] after the last repetition, the sum of the rewards, whether the episode terminated,
            whether it was truncated, and the info of the last repetition, success included
        """
        # In double precision the sum is exact: actions whose bounds are -1 and 1 already pass through unchanged.
        native_action = self._low + self._half_range * (np.asarray(action, dtype=np.float64) + 1.0)
        total_reward = 0.0
        for _ in range(self.action_repeat):
            observation, reward, terminated, truncated, info = self.env.step(native_action.astype(self._action_dtype))
            total_reward += float(reward)
            if terminated or truncated:
                break
        if "success" in info:
            info["success"] = info["is_success"] = bool(info["success"])
        return np.asarray(observation, dtype=np.float32), total_reward, bool(terminated), bool(truncated), info


class PixelObservation(gym.Wrapper, RecordConstructorArgs):
    """
    Observe the last frames instead of the state: uint8 [3 * frames, size, size], oldest frame first.

    The environment renders by its method ``frame(height, width)``, which returns uint8 [height, width, 3]; so the small
    frames in observations and the larger ones of ``render()`` are independent.

    :param env: environment with such a method
    :param size: height and width of a frame in pixels
    :param frames: number of frames in one observation
    """

    def __init__(self, env: gym.Env, size: int = 64, frames: int = 3) -> None:
        RecordConstructorArgs.__init__(self, size=size, frames=frames)
        gym.Wrapper.__init__(self, env)
        self.size = size
        self.observation_space = gym.spaces.Box(0, 255, (3 * frames, size, size), np.uint8)
        self._draw = env.get_wrapper_attr("frame")
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=frames)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """
        Start an episode; its first frame fills the whole stack.

        :param seed: passed on to the environment
        :param options: passed on to the environment
        :return: the first observation [3 * frames, size, size] and the info of the environment
        """
        _, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._next_frame()] * (self._frames.maxlen or 1))
        return np.concatenate(self._frames), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """
        Carry out one decision.

        :param action: the action [A]
        :return: the observation [3 * frames, size, size], and the rest as the environment returns it
        """
        _, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(self._next_frame())
        return np.concatenate(self._frames), float(reward), terminated, truncated, info

    def _next_frame(self) -> NDArray[np.uint8]:
        """Render the present state, channels first [3, size, size]."""
        return np.moveaxis(np.asarray(self._draw(self.size, self.size), dtype=np.uint8), -1, 0)
