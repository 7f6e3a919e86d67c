"""Read back a probe that ``jepa probe`` fitted: its class and arguments from report.json, its weights beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from jepa.errors import InputError
from probes.base import Probe
from probes.cache import Examples

WEIGHTS, REPORT = "probe.safetensors", "report.json"
KINDS = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}  # of targets


def recipe(probe: Probe, train: Examples) -> dict[str, Any]:
    """What :func:`load` needs to build a probe again: its class, arguments and the shapes it was built for."""
    kind = type(probe)
    z, y = train[:1]
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": probe.arguments(),
        "latents": list(z.shape[1:]),  # [T,N,D]
        "targets": [len(train), *y.shape[1:]],
        "kind": str(y.dtype).removeprefix("torch."),
    }


def load(folder: Path | str) -> tuple[Probe, dict[str, Any]]:
    """A fitted probe in evaluation mode, on the CPU, and its report.

    Args:
        folder: the ``out`` of ``jepa probe``.

    Raises:
        InputError: there is no such probe, or it names what is no probe of ours; nothing else is ever built.
    """
    folder = Path(folder)
    report = _report(folder)
    made = report.get("recipe")
    rest = {"target", "metric", "settings", "seeds"}
    whole = isinstance(made, Mapping) and rest <= report.keys()
    parts = {"class_path", "init_args", "latents", "targets", "kind"}
    if not whole or not parts <= made.keys() or made["kind"] not in KINDS:
        raise InputError(f"{folder / REPORT} does not say how its probe is built: fit it again with jepa probe")
    probe = _build(folder, made)
    try:
        probe.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / WEIGHTS} are not the weights of its report ({reason}): fit it again") from error
    return probe.eval().requires_grad_(False), report


def _report(folder: Path) -> dict[str, Any]:
    try:
        report = json.loads((folder / REPORT).read_text())
    except FileNotFoundError as error:
        raise InputError(f"no probe at {folder}: expected a folder that jepa probe wrote, with {REPORT}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / REPORT} cannot be read ({error}): fit the probe again") from error
    if not isinstance(report, dict):
        raise InputError(f"{folder / REPORT} is no report of a probe: expected a folder that jepa probe wrote")
    return report


def _build(folder: Path, made: Mapping[str, Any]) -> Probe:
    """A probe as its recipe says, with any weights."""
    kind = _kind(str(made["class_path"]))
    try:
        with torch.random.fork_rng(devices=[]):
            probe = kind(**made["init_args"])
            y = torch.zeros(1, dtype=KINDS[made["kind"]])
            probe.build(torch.zeros(2, *made["latents"]), y.expand(made["targets"]).contiguous())
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the probe of {folder / REPORT} cannot be built ({reason}): fit it again") from error
    return probe


def _kind(class_path: str) -> type[Probe]:
    module, _, name = class_path.rpartition(".")
    if module.split(".")[0] != "probes":
        raise InputError(f"the report names {class_path}, which is no probe of probes.*: fit one with jepa probe")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the report names {class_path}, which is not there ({error}): fit it again") from error
    if not (isinstance(kind, type) and issubclass(kind, Probe) and kind.__module__.split(".")[0] == "probes"):
        raise InputError(f"the report names {class_path}, which is no probe: fit one with jepa probe")
    return kind
