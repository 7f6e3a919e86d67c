"""What lies ahead, beside what was seen: a frozen encoder's latents, and its predictor's forecast of a later moment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.video import VideoViT
from jepa.schema import Sample


class Anticipating(nn.Module):
    """Latents of a clip and, as one more step, the forecast of the tubelet that lies ahead of its end.

    As V-JEPA 2 anticipates actions (Assran et al. 2025): of a clip of L tokens, N of them a tubelet, the predictor is
    asked for those from L + N * floor(ahead / tubelet) on, which no clip of the training had. That takes rotary
    positions. The model is frozen.

    Args:
        model: A masked model, or a frozen encoder, with its predictor: class_path jepa.checkpoints.load.
        ahead: How far behind the end of the clip, in its frames, where the sample does not say; 8 is one second of
            clips of 8 frames per second. Sources of videos with ``actions`` say it for every clip.
        token: The mask token that asks. Of the released V-JEPA 2, the first was trained, and the second is what the
            published evaluation asks with.
    """

    def __init__(self, model: nn.Module, ahead: float = 8.0, token: int = 0) -> None:
        super().__init__()
        encoder = model.reader if isinstance(model, MaskedJEPA) else getattr(model, "encoder", None)
        predictor = getattr(model, "predictor", None)
        if not isinstance(encoder, VideoViT) or not isinstance(predictor, MaskPredictor):
            raise InputError(
                f"Anticipating was given a {type(model).__name__} that has no masked predictor of videos; load a "
                "masked model with its predictor"
            )
        if not predictor.positions.rotary:
            form = predictor.positions.form
            raise InputError(f"the predictor has {form} positions, which end with the clip; give one with rotary ones")
        if predictor.dim != encoder.dim or predictor.out < encoder.dim or predictor.out % encoder.dim:
            raise InputError(
                f"the predictor forecasts {predictor.out} dimensions for latents of {encoder.dim}: both must be of one "
                "model"
            )
        if not 0 <= ahead < float("inf") or not 0 <= token < len(predictor.mask_tokens):
            raise InputError(
                f"ahead={ahead}, token={token}: expected 0 frames or more, and one of the {len(predictor.mask_tokens)} "
                "mask tokens, counted from 0"
            )
        self.model, self.specs, self.token = model.requires_grad_(False), model.specs, token
        # a buffer, so that features of one setting are not taken for those of another
        self.register_buffer("asked", torch.tensor([float(ahead), float(token)]))

    @property
    def encoder(self) -> VideoViT:
        return self.model.reader if isinstance(self.model, MaskedJEPA) else self.model.encoder

    @torch.no_grad()
    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] and ahead [B] -> z [B,T/tubelet+1,N,D], of which the last step is the forecast."""
        encoder, video = self.encoder, sample.video
        seen, grid = encoder.latents(video), encoder.clip_grid(video)  # [B,T',N,levels*D]
        ahead = self.asked[:1].expand(len(video)) if sample.ahead is None else sample.ahead
        later = (ahead / encoder.tubelet).long()
        tokens = seen.shape[2]
        context = torch.arange(grid[0] * tokens, device=video.device).expand(len(video), -1)
        target = (grid[0] + later[:, None]) * tokens + torch.arange(tokens, device=video.device)
        long = (grid[0] + int(later.max()) + 1, *grid[1:])
        forecast = self.model.predictor(seen.flatten(1, 2), context, target, self.token, long)
        last = slice(-encoder.dim, None)  # of several levels, the one that the encoder gives
        return torch.cat([seen[..., last], forecast[..., last][:, None].to(seen.dtype)], dim=1)
