"""The verb ``jepa export``: write a model's weights under their published names."""

from __future__ import annotations

from pathlib import Path

from jepa.checkpoints.export import Layout, write_hf, write_official
from jepa.checkpoints.load import load
from jepa.checkpoints.published import Which
from jepa.checkpoints.sizes import Family
from jepa.errors import InputError


def export(
    checkpoint: str,
    out: Path,
    layout: Layout = "official",
    which: Which = "target",
    family: Family | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    allow: tuple[str, ...] = (),
) -> str:
    """Write a checkpoint's weights under their published names, so that other programs can load them.

    Args:
        checkpoint: a checkpoint that `jepa fit` wrote, or published weights in any layout that jepa reads
        out: the file to write; with layout hf, a .safetensors file or a folder, with config.json beside the weights
        layout: official is encoder, predictor and target_encoder in one file of torch.save, as Meta releases them;
            hf is V-JEPA 2 of HF transformers
        which: the encoder that layout hf writes, which holds one; official holds both
        family: of published weights that do not tell it: ijepa, vjepa, vjepa2, vjepa2_1
        heads: attention heads of the encoder, for published weights of sizes that no release has
        predictor_heads: attention heads of the predictor, likewise
        size: height and width of a frame in pixels, one number where they are equal, likewise
        frames: of the longest video, likewise
        allow: packages, other than jepa, whose classes the checkpoint may name
    """
    if not Path(checkpoint).exists():
        raise InputError(f"no checkpoint at {checkpoint}; expected one of `jepa fit`, or published weights")
    model = load(
        checkpoint,
        which,
        allow=allow,
        family=family,
        heads=heads,
        predictor_heads=predictor_heads,
        size=size,
        frames=frames,
    )
    if layout == "hf":
        write_hf(model, out, which)
    else:
        if out.suffix == ".safetensors" or out.is_dir():
            raise InputError(f"out was given {out}; the official layout is one file of torch.save, e.g. model.pt")
        write_official(model, out)
    return f"{checkpoint} -> {out} ({layout} layout)"
