"""A world model that also knows where the robot is: V-JEPA 2-AC, with its encoder of single frames."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.poses import WIDTH, reckon
from jepa.models.targets import Target
from jepa.models.video import VideoViT
from jepa.models.vjepa2_ac import PosePredictor
from jepa.models.world import WorldModel
from jepa.schema import Sample


class StillViT(VideoViT):
    """A video transformer that sees every frame alone, as a clip of one tubelet in which nothing moves.

    uint8 video [B,T,C,size,size] -> latents [B,T,N,D], one step per frame. Arguments as those of ``VideoViT``; the
    positions of V-JEPA 2's weights are "rotary_tiled", and V-JEPA 2-AC reads its latents with ``norm``.
    """

    def latents(self, video: Tensor) -> Tensor:
        still = video.flatten(0, 1).unsqueeze(1).expand(-1, self.tubelet, -1, -1, -1)
        return super().latents(still).view(*video.shape[:2], -1, self.width)


class PoseWorld(WorldModel):
    """A world model whose predictor sees proprioception beside the action.

    In training it is that of the sample, in the rollout too. For a plan it is reckoned from the present pose and the
    actions, which then must be differences of poses (:mod:`jepa.models.poses`), one per model step; the camera stays.
    ``rollout`` and ``predict`` want the proprioception of the frames that they are given.

    Args:
        encoder: video [B,T,C,H,W] to latents [B,T,N,D].
        predictor: latents, actions and poses to forecasts.
        target: what the forecasts are compared with in training.
        rollout_steps: K, how many steps the model is unrolled on its own forecasts in training; the context is the T-K
            frames before. 0 for none.
        forced: also forecast every step from real latents (teacher forcing).
    """

    def __init__(
        self, encoder: Encoder, predictor: PosePredictor, target: Target, rollout_steps: int = 2, forced: bool = True
    ) -> None:
        super().__init__(encoder, predictor, target, rollout_steps, forced)

    def _bind_predictor(self) -> None:
        self.predictor.bind(self.specs.action.width, len(self.specs.observation.proprio_mean))

    def predict(self, z: Tensor, action: Tensor, proprio: Tensor | None = None) -> Tensor:
        """z [B,T,N,D], raw actions [B,T,A], raw proprio [B,T,P] -> p [B,T,N,D], where p[:, t] forecasts z[:, t+1]."""
        return self.predictor(z, self.specs.action.normalise(action), self._standardise(self._seen(proprio)))

    def rollout(self, z: Tensor, action: Tensor, past: Tensor | None = None, proprio: Tensor | None = None) -> Tensor:
        """z [B,T,N,D], raw plans [B,S,H,A], past actions [B,T-1,A], proprio [B,T,P] -> forecasts [B,S,H,N,D].

        Raises:
            InputError: no proprioception, or actions that are not differences of poses.
        """
        widths = (action.shape[-1], 0 if proprio is None else proprio.shape[-1] - self.predictor.camera)
        if widths != (WIDTH, WIDTH):
            raise InputError(
                f"the rollout was given actions of width {widths[0]} and poses of width {widths[1]}; it reckons poses "
                f"from differences of them, both of width {WIDTH}: give proprio, and actions of one such difference"
            )
        present = proprio[:, -1:].expand(-1, action.shape[1], -1)
        camera = present[..., WIDTH:].unsqueeze(2).expand(-1, -1, action.shape[2], -1)
        poses = torch.cat([reckon(present[..., :WIDTH], action), camera], dim=-1)
        return self._roll(z, action, past, proprio[:, :-1], poses)

    def _roll(self, z: Tensor, action: Tensor, past: Tensor | None, before: Tensor, poses: Tensor) -> Tensor:
        """As :meth:`rollout`, with the poses of all frames but the last [B,T-1,P] and of the plans [B,S,H,P]."""
        space, (batch, plans) = self.specs.action, action.shape[:2]
        past = action[:, 0, :0] if past is None else past
        cache = self.predictor.begin(z, space.normalise(past), self._standardise(before)).expand(plans)
        forecasts = self._unroll(cache, space.normalise(action), self._standardise(poses))
        return forecasts.unflatten(0, (batch, plans))

    def _forced(self, z: Tensor, sample: Sample) -> Tensor:
        return self.predict(z, sample.action, self._seen(sample.proprio)[:, :-1])

    def _open_loop(self, z: Tensor, sample: Sample) -> Tensor:
        last = z.shape[1] - 1
        action, poses = sample.action, self._seen(sample.proprio)[:, :-1]
        plan, future = action[:, last:].unsqueeze(1), poses[:, last:].unsqueeze(1)
        return self._roll(z, plan, action[:, :last], poses[:, :last], future).squeeze(1)

    @staticmethod
    def _seen(proprio: Tensor | None) -> Tensor:
        if proprio is None:
            raise InputError("this world model needs proprio beside the video; use episodes that record it")
        return proprio

    def _standardise(self, proprio: Tensor) -> Tensor:
        seen = self.specs.observation
        mean, std = (torch.tensor(values, device=proprio.device) for values in (seen.proprio_mean, seen.proprio_std))
        return (proprio - mean) / std
