"""An encoder alone: what embeds and probes need of a model that forecasts nothing."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.mask_predictor import MaskPredictor
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs


def frame_specs(height: int, width: int) -> Specs:
    """The specs of frames alone: no actions, no environment."""
    return Specs(ActionSpec((), (), (), ()), ObservationSpec(height, width))


class FrozenEncoder(nn.Module):
    """Latents of a frozen encoder, for ``jepa embed`` and whatever reads its cache.

    Args:
        encoder: any, e.g. jepa.models.encoders.TimmBackbone with its weights.
        predictor: kept beside a distilled encoder, whose teacher's latents it forecasts, for those who go on with it.
    """

    def __init__(self, encoder: Encoder, predictor: MaskPredictor | None = None) -> None:
        super().__init__()
        encoder.freeze()
        self.encoder, self.predictor = encoder, predictor
        self.specs = frame_specs(*encoder.frame)

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] -> z [B,T',N,D], T' steps of the encoder: T of one that looks at single frames."""
        if sample.video is None:
            raise InputError("the sample has no video, which the encoder reads: give data with pixels")
        return self.encoder(sample.video)
