"""What a model imagines, shown by the real frames nearest to it, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jepa.retrieval import FrameIndex
from jepa.schema import Episodes

SIDE, GAP, CAPTION, HEAD, NAMES = 96, 6, 18, 26, 150  # pixels: frame, between, below a frame, above a board, row names
INK, SOFT, PAPER = "#1a1d21", "#5a636e", "#fbfaf7"


@dataclass(frozen=True)
class Dream:
    """The real frames nearest to the steps of what was imagined."""

    video: Tensor  # uint8 [H,C,H,W]
    state: Tensor | None  # [H,X] privileged, where the episodes have it
    distance: list[float]  # [H] in latents


def retrieve(index: FrameIndex, episodes: Episodes, imagined: Tensor) -> Dream:
    """Of imagined latents [H,N,D], by an index over frames of these episodes."""
    frames, distance = index.search(imagined)
    found = [episodes.read(int(episode), np.array([frame])) for episode, frame in frames[:, 0]]
    state = None if found[0].state is None else torch.cat([frame.state for frame in found])
    return Dream(torch.cat([frame.video for frame in found]), state, distance[:, 0].tolist())


@dataclass(frozen=True)
class Board:
    """Rows of frames, one column for each model step."""

    title: str
    rows: Mapping[str, Tensor]  # name -> uint8 [H,C,H,W]
    captions: Mapping[str, Sequence[str]]  # name of a row -> [H] what stands below its frames


def sheet(boards: Sequence[Board]) -> Image.Image:
    """All boards, one above the other."""
    steps = max(len(frames) for board in boards for frames in board.rows.values())
    tall = [HEAD + len(board.rows) * (SIDE + CAPTION + GAP) + GAP for board in boards]
    picture = Image.new("RGB", (NAMES + steps * (SIDE + GAP) + GAP, sum(tall)), PAPER)
    draw, font, top = ImageDraw.Draw(picture), ImageFont.load_default(size=12), 0
    for board, height in zip(boards, tall):
        draw.text((GAP, top + 8), board.title, fill=INK, font=font)
        for row, (name, frames) in enumerate(board.rows.items()):
            place = top + HEAD + row * (SIDE + CAPTION + GAP)
            draw.multiline_text((GAP, place + SIDE // 2 - 14), name, fill=SOFT, font=font)
            for step, frame in enumerate(frames):
                left = NAMES + step * (SIDE + GAP)
                picture.paste(thumbnail(frame.permute(1, 2, 0).numpy(), SIDE), (left, place))
                if name in board.captions:
                    draw.text((left, place + SIDE + 2), board.captions[name][step], fill=SOFT, font=font)
        top += height
    return picture


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """uint8 [H,W,C] -> a square of the centre; small frames keep their pixels sharp."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, :1].repeat(3, axis=2))
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    how = Image.Resampling.NEAREST if short < side else Image.Resampling.LANCZOS
    return image.crop((left, top, left + short, top + short)).resize((side, side), how)
