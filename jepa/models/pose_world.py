"""A world model that also knows where the robot is: V-JEPA 2-AC, with its encoder of single frames."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.poses import WIDTH, reckon
from jepa.models.positions import Form
from jepa.models.proprio_world import felt, standardise
from jepa.models.targets import Target
from jepa.models.video import VideoViT
from jepa.models.vjepa2_ac import PosePredictor
from jepa.models.weights import fill, read_state
from jepa.models.world import WorldModel
from jepa.schema import Sample


class StillViT(VideoViT):
    """A video transformer that sees every frame alone, as a clip of one tubelet in which nothing moves.

    uint8 video [B,T,C,size,size] -> latents [B,T,N,D], one step per frame. Defaults are those of
    V-JEPA 2 ViT-g/16, whose latents V-JEPA 2-AC reads with ``norm``.

    Args:
        size: height and width of a frame in pixels, one number where they are equal.
        frames: of the longest clip; the tubelet's are enough.
        tubelet: how often a frame is repeated.
        patch: height and width of a token in pixels.
        dim: D, the width of the latent and of the transformer.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
        positions: as those of ``VideoViT``; "rotary_tiled" is that of V-JEPA 2's weights.
        norm: end with a layer norm without parameters.
        weights: a state dict (.safetensors, or .pth without code) of this encoder in our names, as that of the encoder
            of ``jepa.checkpoints.load`` is; null leaves the random initialisation.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 256,
        frames: int = 2,
        tubelet: int = 2,
        patch: int = 16,
        dim: int = 1408,
        depth: int = 40,
        heads: int = 22,
        mlp_ratio: float = 48 / 11,
        positions: Form = "rotary_tiled",
        norm: bool = True,
        weights: str | None = None,
    ) -> None:
        super().__init__(size, frames, tubelet, patch, dim, depth, heads, mlp_ratio, positions, norm)
        if weights is not None:
            remedy = "give the state dict of an encoder that jepa.checkpoints.load made, saved with safetensors"
            fill(self, read_state(Path(weights), "the encoder", remedy), Path(weights), "the encoder")

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
        return self.predictor(z, self.specs.action.normalise(action), standardise(felt(proprio), self.specs))

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
        cache = self.predictor.begin(z, space.normalise(past), standardise(before, self.specs)).expand(plans)
        forecasts = self._unroll(self.predictor, cache, space.normalise(action), standardise(poses, self.specs))
        return forecasts.unflatten(0, (batch, plans))

    def _forced(self, z: Tensor, sample: Sample) -> Tensor:
        return self.predict(z, sample.action, felt(sample.proprio)[:, :-1])

    def _open_loop(self, z: Tensor, sample: Sample) -> Tensor:
        last = z.shape[1] - 1
        action, poses = sample.action, felt(sample.proprio)[:, :-1]
        plan, future = action[:, last:].unsqueeze(1), poses[:, last:].unsqueeze(1)
        return self._roll(z, plan, action[:, :last], poses[:, :last], future).squeeze(1)
