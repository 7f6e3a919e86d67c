"""A robot loop: frames in, actions out; and what it would have done along a recorded episode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.transforms import resize
from jepa.errors import InputError
from jepa.planning import MPC, TimeLimit
from jepa.schema import Sample

Numbers = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Replayed:
    """What a controller would have done at one step of a recorded episode."""

    step: int  # of the episode
    action: Numbers  # [a], what it would have done
    recorded: Numbers  # [a], what was done
    planned: bool  # whether it planned at this step, or went on with the plan that it had
    seconds: float  # that it took


class RobotController:
    """Acts on plain arrays, one raw environment action for every call: an MPC for one robot, or for B alike.

    Call it once in every control step, also where nothing is planned. With a frame skip of k a model step is k control
    steps: frames are looked at once in k calls, and every call gives the next of the k actions of a block. Frame skip,
    history, action statistics and the size of frames are those of the checkpoint (:class:`jepa.schema.Specs`), so the
    robot must be controlled at the rate of the training episodes. A new plan is made when the steps to execute are
    done, after a :meth:`reset`, and when the goal changes.

    With a ``budget``, the time of a decision counts from the call on, looking at frames included. When it is over, the
    search ends before its next evaluation of candidates, and the cheapest plan so far is acted on; one evaluation is
    always made, and no decision is skipped. A decision thus takes the budget and one evaluation at the longest, or
    looking and one evaluation alone, where those take longer. See :class:`jepa.planning.TimeLimit`, which wraps the
    policy's planner.

    Args:
        policy: what plans; it serves this controller alone
        resize: bring frames of another size to that of the checkpoint, as in training: squeezed, not cropped. If not,
            they are refused
        budget: seconds of a decision; no limit by default

    Raises:
        InputError: frames that are not uint8 or not of the checkpoint's channels and size, proprioception of another
            width, a goal of other robots
    """

    def __init__(self, policy: MPC, resize: bool = False, budget: float | None = None) -> None:
        self.policy, self.resize = policy, resize
        self.limit = None if budget is None else TimeLimit(policy.planner, budget)
        if self.limit is not None:
            policy.planner = self.limit

    def reset(self, done: NDArray[np.bool_] | None = None) -> None:
        """Forget the past of all robots, or of those where ``done [B]`` is true: an episode begins."""
        gone = np.ones(1, dtype=bool) if done is None else np.asarray(done)
        self.policy.reset(torch.from_numpy(gone))

    def act(
        self, frame: Pixels, goal: Pixels, proprio: Numbers | None = None, goal_proprio: Numbers | None = None
    ) -> Numbers:
        """The next action [a] of one robot, or [B,a] of B, float32 in raw units and within the bounds.

        Args:
            frame: what the camera sees, uint8 [H,W,C] or [B,H,W,C]
            goal: what it is to see, likewise
            proprio: [P] or [B,P] raw, for a world that reads it
            goal_proprio: the same at the goal, for a world whose latents hold it
        """
        self._begin()
        one = np.ndim(frame) == 3
        seen = Sample(video=self._video("frame", frame, one), proprio=self._felt("proprio", proprio, one))
        aim = Sample(video=self._video("goal", goal, one), proprio=self._felt("goal_proprio", goal_proprio, one))
        counts = {len(part) for part in (seen.video, seen.proprio, aim.video, aim.proprio) if part is not None}
        if len(counts) > 1:
            raise InputError(f"frames, goals and proprioception are of {sorted(counts)} robots: give as many of each")
        action = self.policy.act(replace(seen, goal=aim)).numpy()
        return action[0] if one else action

    def follow(self, action: Numbers) -> None:
        """Tell what was really executed [a] or [B,a] at the last step, where that is not what :meth:`act` gave."""
        self.policy.follow(torch.from_numpy(np.atleast_2d(np.asarray(action, dtype=np.float32))))

    def replay(self, episode: Sample, goal: int = -1) -> Iterator[Replayed]:
        """What it would have done at each step of a recorded episode, whose past is what was recorded.

        Nothing of the future is seen but the goal's frame. The controller is reset before and after.

        Args:
            episode: a whole one, as :meth:`jepa.schema.Episodes.read` gives it: video uint8 [T,C,H,W], action [T,a] or
                [T-1,a], and proprio [T,P] if the world reads it
            goal: frame of the episode that is to be reached
        """
        if episode.video is None or episode.action is None:
            raise InputError("an episode to replay lacks its video or its actions: read both from the store")
        episode = Sample(video=episode.video, action=episode.action, proprio=episode.proprio)
        steps = np.arange(len(episode.video))
        if not -len(steps) <= goal < len(steps):
            raise InputError(f"goal={goal}: expected a frame of the episode, which has {len(steps)}")
        aim = self._window(episode, int(steps[goal]))
        self.reset()
        try:
            for step in steps[:-1].tolist():
                yield self._replayed(step, replace(self._window(episode, step), goal=aim), episode.action[step].float())
        finally:
            self.reset()

    def _replayed(self, step: int, present: Sample, recorded: Tensor) -> Replayed:
        before, begun = len(self.policy.seconds["total"]), perf_counter()
        self._begin()
        action = self.policy.act(present)[0].numpy()
        seconds, planned = perf_counter() - begun, len(self.policy.seconds["total"]) > before
        self.policy.follow(recorded[None])
        return Replayed(step, action, recorded.numpy(), planned, seconds)

    def _begin(self) -> None:
        if self.limit is not None:
            self.limit.begin()

    def _window(self, episode: Sample, step: int) -> Sample:
        """One frame of an episode as the present of one robot."""
        proprio = None if episode.proprio is None else episode.proprio[None, step : step + 1].float()
        return Sample(video=self._sized("episode", episode.video[None, step : step + 1]), proprio=proprio)

    def _video(self, name: str, pixels: Pixels, one: bool) -> Tensor:
        """uint8 [B,1,C,H,W]"""
        pixels, channels = np.asarray(pixels), self.policy.world.specs.observation.channels
        wanted = 3 if one else 4
        if pixels.dtype != np.uint8 or pixels.ndim != wanted or pixels.shape[-1] != channels:
            form = f"[H,W,{channels}]" if one else f"[B,H,W,{channels}]"
            raise InputError(
                f"the {name} is {pixels.dtype} {list(pixels.shape)}: expected uint8 {form}, as the camera of the "
                "training episodes gave it"
            )
        video = torch.from_numpy(np.ascontiguousarray(pixels[None] if one else pixels)).permute(0, 3, 1, 2)
        return self._sized(name, video.unsqueeze(1))

    def _sized(self, name: str, video: Tensor) -> Tensor:
        spec = self.policy.world.specs.observation
        size = (spec.height, spec.width)
        if tuple(video.shape[-2:]) != size and not self.resize:
            height, width = video.shape[-2:]
            raise InputError(
                f"the {name} has {height}x{width} pixels, the checkpoint was trained on {size[0]}x{size[1]}: give that "
                "size, or make the controller with resize=True"
            )
        return resize(video, size)

    def _felt(self, name: str, values: Numbers | None, one: bool) -> Tensor | None:
        """[B,1,P]"""
        if values is None:
            return None
        values, width = np.asarray(values, dtype=np.float32), len(self.policy.world.specs.observation.proprio_mean)
        if values.ndim != (1 if one else 2) or values.shape[-1] != width:
            form = f"[{width}]" if one else f"[B,{width}]"
            raise InputError(f"{name} is {list(values.shape)}: expected {form}, as in the training episodes")
        return torch.from_numpy(values[None] if one else values).unsqueeze(1)
