"""The verb ``jepa inspect``: say what a file holds without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from jepa.checkpoints.load import load, read
from jepa.data.decoders import ENDINGS
from jepa.data.hdf5 import Hdf5Episodes
from jepa.data.index import VideoIndex
from jepa.data.listing import scanned
from jepa.errors import InputError
from jepa.schema import Episodes, Specs
from jepa.tasks.features import read_meta
from jepa.tasks.inspect_video import summary, table

PUBLISHED = (".pt", ".pth", ".tar", ".safetensors")  # endings of official weights


def inspect(path: Path) -> str:
    """Say what a dataset (.h5, or videos), a checkpoint (.ckpt), published weights or a feature cache (folder) hold.

    Args:
        path: the file or folder; of videos also an index (.parquet) or a list (.csv)
    """
    if not path.exists():
        raise InputError(f"nothing at {path}; give a dataset (.h5), a checkpoint (.ckpt) or a feature cache (folder)")
    if (path / "meta.json").is_file():
        return _features(path)
    if path.is_dir() and any(path.glob("*.safetensors")):
        return _published(path)
    if path.is_dir() and not scanned(path):
        raise InputError(
            f"{path} is a folder with neither meta.json (a feature cache of `jepa embed`) nor weights (.safetensors) "
            "nor video files; give one of these"
        )
    if path.is_dir() or path.suffix.lower() in (*ENDINGS, ".parquet", ".csv"):
        return summary(path, VideoIndex.open(path))
    if path.suffix == ".ckpt":
        return _checkpoint(path)
    if path.suffix in PUBLISHED:
        return _published(path)
    return _dataset(path, Hdf5Episodes(path))


def _dataset(path: Path, episodes: Episodes) -> str:
    lengths = [episodes.length(number) for number in range(len(episodes))]
    files = path.rglob("*") if path.is_dir() else [path]
    facts = {
        "episodes": len(lengths),
        "frames": sum(lengths),
        "frames of an episode": f"{min(lengths)} to {max(lengths)}",
        "bytes on disk": f"{sum(file.stat().st_size for file in files):,}",
    }
    return table(f"dataset {path}", facts | _specs(episodes.specs))


def _checkpoint(path: Path) -> str:
    checkpoint, world = read(path), load(str(path))
    latent = f"{world.encoder.dim} wide, grid {world.encoder.grid}"
    facts = {"optimiser steps": checkpoint["global_step"], **_parts(world), "latent": latent}
    return table(f"checkpoint {path}", facts | _specs(world.specs))


def _published(path: Path) -> str:
    """Official weights; what was assumed of sizes that leave no trace in them is in the log."""
    model = load(str(path))
    return table(f"published weights {path}", _parts(model) | {"left over": ", ".join(model.leftovers) or "nothing"})


def _parts(model: nn.Module) -> dict[str, str]:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {name: f"{type(part).__name__}, {counts[name]:,} parameters" for name, part in model.named_children()}


def _features(path: Path) -> str:
    about = read_meta(path)
    grid = " ({} x {})".format(*about["grid"]) if about["grid"] else ""
    facts = {
        "row": about["transform"],
        "latent": f"{about['steps']} x {about['tokens']} tokens{grid}, {about['width']} wide, {about['dtype']}",
        "layers": "the last" if about["layers"] is None else ", ".join(map(str, about["layers"])),
        "quantised": _quantised(about),
        **{name: about[name] for name in ("pool", "precision", "checkpoint", "checkpoint_hash", "source")},
        "rows": f"{about['rows']:,} in {about['shards']:,} shards",
        "bytes on disk": f"{sum(file.stat().st_size for file in path.iterdir()):,}",
        "software": ", ".join(f"{name} {number}" for name, number in about["software"].items()),
    }
    facts |= {f"episodes in {name}": len(numbers) for name, numbers in about["splits"].items()}
    specs = Specs.from_dict(about["specs"])
    if "files" not in about:
        return table(f"feature cache {path}", facts | _specs(specs))
    labels = ", ".join(specs.observation.state_names) or "none"
    return table(f"feature cache {path}", facts | {"labels": labels, "files left out": len(about["left_out"])})


def _quantised(about: dict[str, Any]) -> str:
    if not about["quantise"]:
        return "no"
    return "{bytes} bytes a token, {lost:.1%} of the variance lost".format(**about["quantisation"])


def _specs(specs: Specs) -> dict[str, Any]:
    seen, action = specs.observation, specs.action
    return {
        "frame": f"{seen.channels} x {seen.height} x {seen.width}",
        "action": f"{action.env_width} wide, in blocks of {action.block}",
        "action bounds": f"{_numbers(action.low)} to {_numbers(action.high)}",
        "action mean, std": f"{_numbers(action.mean)}, {_numbers(action.std)}",
        "proprioception": f"{len(seen.proprio_mean)} wide",
        "privileged state": ", ".join(seen.state_names) or "none",
        "environment": f"{specs.evaluation.env or 'none'} {dict(specs.evaluation.env_options)}",
        "history": specs.evaluation.history,
        "protocol": specs.evaluation.protocol or "none",
    }


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
