"""Masked models: forecast the latents of what is hidden, from what is visible and where to look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_choice
from jepa.models.distances import nearest
from jepa.models.layers import take
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.packing import Beside, PackedMasks
from jepa.models.positions import Grid
from jepa.models.targets import Target
from jepa.models.video import VideoViT
from jepa.schema import Mask, Prediction, Sample, Specs


class MaskedJEPA(nn.Module):
    """A joint-embedding predictive model of masked video; pixels are never decoded.

    Args:
        encoder: makes the latents of the visible tokens.
        predictor: forecasts the latents of the hidden ones, and of the visible ones where it has a head for them.
        target: what the forecasts are compared with: an EMA copy of the encoder that sees the whole video (I-JEPA,
            V-JEPA), another encoder that was trained before (SALT, distillation), or the encoder itself, where a
            regulariser forbids collapse.
        reads: the encoder that ``encode`` uses, "context" or the "target"'s copy of it, which are one where the
            target keeps none.
    """

    specs: Specs

    def __init__(
        self,
        encoder: VideoViT,
        predictor: MaskPredictor,
        target: Target,
        reads: Literal["target", "context"] = "target",
    ) -> None:
        super().__init__()
        self.reads = check_choice("reads", reads, ("target", "context"))
        levels = encoder.width // encoder.dim
        theirs = encoder.dim, levels, encoder.positions.grid, encoder.images
        mine = predictor.dim, predictor.levels, predictor.grid, predictor.images
        if theirs != mine:
            raise InputError(
                f"the encoder makes latents of {_sizes(*theirs)}, but the predictor was given {_sizes(*mine)}; set "
                "the predictor's as the encoder's"
            )
        self.encoder, self.predictor, self.target = encoder, predictor, target
        target.bind(encoder)
        if (width := target.source(encoder).width) != predictor.out:
            raise InputError(
                f"the targets have {width} dimensions, but the predictor forecasts {predictor.out}; set its out={width}"
            )

    def bind(self, specs: Specs) -> None:
        """Learn what the data is, once, before training or before weights are loaded."""
        seen = specs.observation
        if not self.encoder.fits(seen.height, seen.width):
            height, width = self.encoder.frame
            raise InputError(
                f"the data has frames of {seen.height}x{seen.width} pixels, but the encoder expects {height}x{width}; "
                "set the size of the data or of the encoder"
            )
        self.specs = specs

    @property
    def reader(self) -> VideoViT:
        """The encoder that ``encode`` uses."""
        return self.encoder if self.reads == "context" else self.target.reader(self.encoder)

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] -> z [B,T/tubelet,N,D]"""
        return self.reader(sample.video)

    def forward(self, video: Tensor, masks: Sequence[Mask]) -> list[Prediction]:
        """uint8 video [B,T,C,H,W] and a mask of each generator -> a prediction per mask, whose losses are averaged.

        Its p and h are [B,M,L,out], the forecasts and the target's latents of the M masks' tokens; its z is
        [B,1,K,levels*D], the latents of the context, or [B,T/tubelet,N,levels*D], those of the whole video, where the
        target needs them. A predictor with a head for the context adds its forecasts and the target's latents there,
        [B,M,K,out], and the distances of these tokens from the target's, [B,M,K].

        Of packed masks p, h are [1,1,sum of the L,out], with weights, the context likewise, and z is [B,1,1,levels*D],
        the mean over each context. Each row is computed as it would be alone.

        The target sees the video once, and all contexts go through the encoder in one pass.
        """
        self._check(masks)
        whole = self.encoder.latents(video) if self.target.needs_latent else None
        h = self.target(self.encoder, video, whole).flatten(1, 2)
        if h.shape[1] != (tokens := math.prod(self.encoder.clip_grid(video))):
            raise InputError(
                f"the target makes {h.shape[1]} tokens of a clip, the encoder {tokens}; give a teacher with the "
                "encoder's tubelet and patch"
            )
        made = (self._packed if masks[0].packed else self._even)(video, masks, h)
        if whole is not None:
            for prediction in made:
                prediction.z = whole
        return made

    def _check(self, masks: Sequence[Mask]) -> None:
        if not 0 < len(masks) <= len(self.predictor.mask_tokens):
            raise InputError(
                f"the model was given {len(masks)} masks, but has {len(self.predictor.mask_tokens)} mask tokens; set "
                "the predictor's masks to the number of mask generators"
            )
        if len({mask.packed for mask in masks}) > 1:
            raise InputError("the model was given packed masks beside others; collate all generators' masks alike")

    def _even(self, video: Tensor, masks: Sequence[Mask], h: Tensor) -> list[Prediction]:
        """Masks whose rows are of one length; h [B,L',out] is the target's of all tokens."""
        lengths = [mask.context.shape[1] for mask in masks]
        contexts = torch.cat([mask.context for mask in masks], dim=1)
        grid, beside = self.encoder.clip_grid(video), Beside(lengths) if len(masks) > 1 else None
        z = self.encoder.visible(video, contexts, beside).split(lengths, dim=1)
        made: dict[int, Prediction] = {}
        for members in _alike([(mask.context.shape, mask.target.shape) for mask in masks]):
            forecasts = self._forecasts(video, [z[i] for i in members], [masks[i] for i in members], members)
            made |= {i: _compare(z[i], *part, masks[i], h, grid) for i, part in zip(members, forecasts)}
        return [made[i] for i in range(len(masks))]

    def _forecasts(
        self, video: Tensor, z: list[Tensor], masks: list[Mask], tokens: list[int]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Forecasts [B,M,L,out] and [B,M,K,out] of masks of one shape. A sample's M masks do not see each other."""
        context, target = _join([mask.context for mask in masks]), _join([mask.target for mask in masks])
        shape, target = target.shape[:2], target.flatten(0, 1)
        question = self.predictor.questions(tokens, [target.numel() // len(tokens)] * len(tokens))
        question = question.view(*target.shape, -1)
        image = self.encoder.is_image(video.shape[1])
        made = self.predictor.forecast(_join(z), context, question, target, self.encoder.clip_grid(video), image)
        at_target, at_context = (
            [None] * len(tokens) if part is None else part.unflatten(0, shape).chunk(len(tokens)) for part in made
        )
        return list(zip(at_target, at_context))

    def _packed(self, video: Tensor, masks: Sequence[Mask], h: Tensor) -> list[Prediction]:
        """Masks of rows of any lengths, all in one pass; h [B,L',out] is the target's of all tokens."""
        many = PackedMasks(masks, len(video))
        z = self.encoder.visible(video, many.context, many.seen)
        question = self.predictor.questions(range(len(masks)), many.counts)[None]
        grid, image = self.encoder.clip_grid(video), self.encoder.is_image(video.shape[1])
        context = many.ask(many.context)
        p, at_context = self.predictor.forecast(many.ask(z), context, question, many.target, grid, image, many.both)
        parts = {
            "p": p,
            "h": take(h, many.target, many.clip[many.hidden.row]),
            "weight": many.weight(many.hidden, many.counts),
        }
        columns = {name: part[:, None].split(many.counts, dim=2) for name, part in parts.items()}
        if at_context is not None:
            far = nearest(many.hidden.row * h.shape[1] + many.target, many.hidden.rows, grid)
            parts = {
                "context": at_context,
                "context_h": take(h, context, many.clip[many.asked.row]),
                "distance": far[many.asked.row, context],
                "context_weight": many.weight(many.asked, many.context_counts),
            }
            columns |= {name: part[:, None].split(many.context_counts, dim=2) for name, part in parts.items()}
        pooled, nothing = many.seen.mean(z)[:, None, None].chunk(len(masks)), _no_action(h)
        return [
            Prediction(z=pooled[i], action=nothing, **{name: column[i] for name, column in columns.items()})
            for i in range(len(masks))
        ]


def _compare(z: Tensor, p: Tensor, at_context: Tensor | None, mask: Mask, h: Tensor, grid: Grid) -> Prediction:
    """What was made of one mask beside the target's latents there."""
    shape = mask.target.shape
    made = Prediction(
        z=z.unsqueeze(1), h=take(h, mask.target.flatten(1)).unflatten(1, shape[1:]), action=_no_action(h), p=p
    )
    if at_context is not None:
        rows = torch.arange(shape[0] * shape[1], device=h.device).view(*shape[:2], 1)
        far = nearest(rows * h.shape[1] + mask.target, shape[0] * shape[1], grid).unflatten(0, shape[:2])
        made.context, made.context_h = at_context, take(h, mask.context)[:, None].expand_as(at_context)
        made.distance = far.gather(2, mask.context[:, None].expand(-1, shape[1], -1))
    return made


def _no_action(h: Tensor) -> Tensor:
    """No action leads from the context to the target."""
    return h.new_zeros(len(h), 0, 0)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _alike(shapes: Sequence[object]) -> list[list[int]]:
    """Numbers of equal items, together."""
    groups: list[list[int]] = []
    for number, shape in enumerate(shapes):
        # compared, and never hashed: a hash would bind a compiled model to these very lengths
        group = next((group for group in groups if shapes[group[0]] == shape), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _sizes(dim: int, levels: int, grid: Grid, images: bool) -> str:
    return f"dim={dim}, levels={levels}, grid={grid}, images={images}"
