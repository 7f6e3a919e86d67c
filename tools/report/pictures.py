"""Frames, and figures that were drawn elsewhere, as data inside the page."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from tools.report.content import Diagram
from tools.report.markup import tag


def png(frame: Any) -> str:
    """A frame ``uint8 [C,H,W]`` with one or three channels, as a ``data:`` address."""
    pixels = np.asarray(frame)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[0] in (1, 3), (pixels.dtype, pixels.shape)
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def diagram(figure: Diagram) -> str:
    """A card; the figure is an image of its own, so that its style stays its own."""
    address = f"data:image/{figure.kind};base64," + base64.b64encode(figure.data).decode("ascii")
    picture = f'<img src="{address}" alt="{escape(figure.title)}" style="max-width:100%">'
    return tag("figure", picture, class_="card storyboard")
