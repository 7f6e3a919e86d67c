"""MuJoCo environments of gymnasium and gymnasium-robotics, rendered headless and fast."""

from __future__ import annotations

import atexit
import functools
import math
import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs.adapter import Moment, Placeable, Traits, Vector, box_bounds, make_env, shrink
from jepa.errors import InputError
from jepa.schema import Sample

GL_ADVICE = "run apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libgl1, or set MUJOCO_GL to another backend"
_open: weakref.WeakSet[Any] = weakref.WeakSet()


@functools.cache
def load_mujoco() -> Any:
    """Import MuJoCo, with EGL unless the caller's environment chose another MUJOCO_GL, and try a GL context.

    MuJoCo reads MUJOCO_GL once, when it is imported, and its default needs a display.

    Raises:
        InputError: MuJoCo or the libraries of its GL backend are missing.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise InputError(f"MuJoCo cannot be imported ({error}); run pip install 'jepa[robots]'") from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise _headless_error(backend, error) from error
    try:
        from mujoco.gl_context import GLContext

        GLContext(16, 16).free()
    except Exception as error:  # each backend raises its own; without libEGL, PyOpenGL's is an AttributeError
        raise _headless_error(backend, error) from error
    return mujoco


def _headless_error(backend: str, error: Exception) -> InputError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError(f"headless rendering with MUJOCO_GL={backend} failed ({reason}); {GL_ADVICE}")


def _close_all() -> None:
    for adapter in list(_open):
        adapter.close()


def within(state: Tensor, goal: Tensor, width: int, tolerance: float) -> Tensor:
    """Every one of the first ``width`` numbers is within the tolerance of the goal's."""
    return ((state[..., :width] - goal[..., :width]).abs() < tolerance).all(dim=-1)


def no_force(sample: Sample, width: int) -> Tensor:
    """Zero action [B,width]: no torque, no force."""
    assert sample.video is not None, "idle needs the present"
    return torch.zeros(len(sample.video), width)


class MujocoAdapter(Placeable):
    """Any gymnasium environment on MuJoCo. State and proprioception are qpos and qvel.

    Starts and goals are drawn by resetting the environment; the goal is reached when every number of qpos is within
    0.05 of it.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        fast_render: no shadow map and no multi-sampling. Software GL is two orders of magnitude faster without them,
            and the pixels differ: do not mix with data rendered otherwise.
        make_options: further options for ``gymnasium.make``.
    """

    def __init__(
        self,
        env_id: str,
        size: int,
        fast_render: bool = True,
        make_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.mujoco, self.size = load_mujoco(), size
        options = {"render_mode": "rgb_array", "width": size, "height": size, **(make_options or {})}
        self.env = make_env(env_id, **options)
        _open.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # after the hooks of MuJoCo and dm_control, so it runs before they terminate GL
        self.env.reset(seed=0)  # some have no model before
        self.model = self.env.unwrapped.model  # type: ignore[attr-defined]
        if fast_render:  # read when the GL context is made, which is at the first frame
            self.model.vis.quality.shadowsize = 0
            self.model.vis.quality.offsamples = 0
        if camera := self.camera():
            self.renderer().default_cam_config = camera
        self.traits = self.describe(*box_bounds(env_id, self.env.action_space))

    def describe(self, low: tuple[float, ...], high: tuple[float, ...]) -> Traits:
        """Names, widths and success of this environment."""
        names = [f"qpos_{i}" for i in range(self.model.nq)] + [f"qvel_{i}" for i in range(self.model.nv)]
        success = functools.partial(within, width=self.model.nq, tolerance=0.05)
        return Traits(low, high, tuple(names), len(names), success, functools.partial(no_force, width=len(low)))

    def camera(self) -> dict[str, Any]:
        """Settings of the free camera: distance, azimuth, elevation, lookat. Empty: the environment's own."""
        return {}

    def renderer(self) -> Any:
        """The environment's MujocoRenderer."""
        return self.env.unwrapped.mujoco_renderer  # type: ignore[attr-defined]

    @property
    def data(self) -> Any:
        return self.env.unwrapped.data  # type: ignore[attr-defined]

    def draw(self) -> tuple[Vector, Vector]:
        states = []
        for _ in range(2):
            self.env.reset(seed=int(self.rng.integers(2**31)))
            states.append(self.state())
        return states[0], states[1]

    def place(self, state: Vector, goal: Vector) -> None:
        self.set_physics(state[: self.model.nq], state[self.model.nq :])

    def set_physics(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> None:
        """Positions and velocities; everything else that the solver remembers is cleared."""
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self.mujoco.mj_forward(self.model, self.data)

    def state(self) -> Vector:
        """Privileged state [X]."""
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)

    def proprio(self) -> Vector:
        """Proprioception [P]."""
        return self.state()

    def look(self, reward: float = 0.0, ended: bool = False) -> Moment:
        self.mujoco.mj_kinematics(self.model, self.data)  # a step leaves the bodies one solver step behind qpos
        self.mujoco.mj_camlight(self.model, self.data)
        return Moment(shrink(self.picture(), self.size), self.state(), self.proprio(), reward, ended)

    def picture(self) -> NDArray[np.uint8]:
        """The present as an image [h,w,3]."""
        return self.env.render()

    def advance(self, action: Vector) -> tuple[float, bool]:
        _, reward, terminated, truncated, _ = self.env.step(action)
        return float(reward), bool(terminated or truncated)


def is_mujoco(entry_point: Any) -> bool:
    """Whether a registered environment runs on MuJoCo, told by where its class lives."""
    return str(entry_point).startswith(("gymnasium.envs.mujoco", "gymnasium_robotics"))


def above(half_width: float, height: float = 0.0) -> dict[str, Any]:
    """A camera that looks straight down and sees ``half_width`` metres to each side at ``height``.

    gymnasium's default camera looks at the median of the bodies at the first frame, which depends on the seed.
    """
    distance = half_width / math.tan(math.radians(45.0 / 2))  # MuJoCo's default field of view
    return {"distance": distance, "azimuth": 90.0, "elevation": -90.0, "lookat": np.array([0.0, 0.0, height])}
