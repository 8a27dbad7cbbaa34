"""Rendering with MuJoCo, and the choice of an OpenGL backend on machines without a display."""

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray


def set_headless_backend() -> None:
    """
    Set ``MUJOCO_GL`` where MuJoCo's own choice would fail, to be called before a simulator is imported.

    MuJoCo and dm_control try GLFW first. It imports without a display and fails when the first frame is rendered. So on
    Linux without a display we choose EGL, else OSMesa, else no rendering, which training on states does not need. A
    ``MUJOCO_GL`` set by the user is not changed; on desktops and other systems MuJoCo's own choice works. Worker
    processes inherit the variable and so the backend.
    """
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not sys.platform.startswith("linux") or has_display or os.environ.get("MUJOCO_GL"):
        return
    if _has_egl_device():
        backend = "egl"
    elif ctypes.util.find_library("OSMesa") is not None:
        backend = "osmesa"
    else:
        backend = "disabled"
    os.environ["MUJOCO_GL"] = backend


def _has_egl_device() -> bool:
    """
    Ask EGL for its devices; the library may be installed without a driver, and dm_control then fails at import.

    :return: whether EGL is installed and offers at least one device (a GPU or Mesa's software renderer)
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(
        address
    )
    count = ctypes.c_int(0)
    return bool(query_devices(0, None, ctypes.byref(count))) and count.value > 0


@contextmanager
def explain_missing_gl() -> Iterator[None]:
    """Turn errors of MuJoCo and dm_control about OpenGL, whose types differ, into one that names the fix."""
    try:
        yield
    except Exception as error:
        if "GL" not in str(error):
            raise
        raise RuntimeError(
            "Rendering needs OpenGL: install EGL (on Debian or Ubuntu `apt install libegl1 libgl1-mesa-dri`) "
            "and unset the environment variable MUJOCO_GL, or set it to a backend that works (egl, osmesa, glfw)."
        ) from error


class MujocoCamera:
    """
    Renders a MuJoCo simulation through one camera, in any size.

    :param camera: name or number of a camera of the model; -1 for one that sees the whole model
    """

    def __init__(self, camera: str | int) -> None:
        self.camera = camera
        self._renderer: Any = None

    def frame(self, model: Any, data: Any, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state.

        :param model: the ``mujoco.MjModel``
        :param data: its ``mujoco.MjData``
        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        import mujoco

        # A renderer is slow to create and serves one model in one size.
        renderer = self._renderer
        if renderer is None or renderer.model is not model or (renderer.height, renderer.width) != (height, width):
            self.close()
            buffer = model.vis.global_
            buffer.offheight, buffer.offwidth = max(buffer.offheight, height), max(buffer.offwidth, width)
            with explain_missing_gl():
                self._renderer = mujoco.Renderer(model, height, width)
        self._renderer.update_scene(data, self.camera)
        return np.asarray(self._renderer.render())

    def close(self) -> None:
        """Free the renderer; the next frame creates another one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
