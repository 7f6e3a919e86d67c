"""Published attentive probes as ours: V-JEPA's and V-JEPA 2's classifiers, and the anticipation of actions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from jepa.checkpoints.keys import State, count, fill, rename, shape_of
from jepa.checkpoints.sizes import HEADS, PROBE_HEADS
from jepa.errors import InputError
from jepa.models.attentive import NORM_EPS, ActionAnticipator, AttentiveClassifier

WHAT = "an attentive probe"
PREFIXES = ("module.",)
ANSWERS = ("verb", "noun", "action")  # in the order of their queries
_KIND = r"\.(weight|bias)"
_PARTS = r"pooler\.(cross_attention_block|blocks\.\d+)\."
RULES = (
    (r"pooler\.query_tokens", "pooler.query_tokens"),
    (_PARTS + r"(norm[12]|attn\.qkv|attn\.proj|xattn\.q|xattn\.kv)" + _KIND, r"pooler.\1.\2.\3"),
    (_PARTS + r"mlp\.fc1" + _KIND, r"pooler.\1.mlp.0.\2"),
    (_PARTS + r"mlp\.fc2" + _KIND, r"pooler.\1.mlp.2.\2"),
    (r"linear" + _KIND, r"linear.\1"),
    (rf"({'|'.join(ANSWERS)})_classifier" + _KIND, r"classifiers.\1.\2"),
)
BACK = (
    *((pattern, new) for pattern, new in RULES[:2]),
    (_PARTS + r"mlp\.0" + _KIND, r"pooler.\1.mlp.fc1.\2"),
    (_PARTS + r"mlp\.2" + _KIND, r"pooler.\1.mlp.fc2.\2"),
    (r"linear" + _KIND, r"linear.\1"),
    (r"classifiers\.(\w+)" + _KIND, r"\1_classifier.\2"),
)

Probe = AttentiveClassifier | ActionAnticipator


def probe_from_published(state: State, heads: int | None = None, eps: float = NORM_EPS) -> Probe:
    """The probe of a published state dict, every key of it.

    Args:
        state: as published, with "module." before its keys or without.
        heads: attention heads; None for the 16 of the published probes.
        eps: of its layer norms: 1e-5 as published, 1e-6 in HF transformers.

    Raises:
        InputError: a key is unknown or missing, or the heads must be given.
    """
    ours, _ = rename(state, RULES, (), PREFIXES, WHAT)
    _, queries, dim = shape_of(ours, "pooler.query_tokens", WHAT, axes=3)
    if heads is None and dim not in HEADS:
        raise InputError(
            f"the state dict is that of an attentive probe of width {dim}, which is none of the published "
            f"{', '.join(map(str, HEADS))}: it does not say its attention heads; give heads=..."
        )
    heads, depth = PROBE_HEADS if heads is None else heads, 1 + count(ours, "pooler.blocks.")
    ratio = shape_of(ours, "pooler.cross_attention_block.mlp.0.weight", WHAT, axes=2)[0] / dim
    probe: nn.Module
    if names := [name for name in ANSWERS if f"classifiers.{name}.weight" in ours]:
        classes = {name: shape_of(ours, f"classifiers.{name}.weight", WHAT, axes=2)[0] for name in names}
        probe = ActionAnticipator(dim, heads, depth, classes, ratio)
    else:
        outputs = shape_of(ours, "linear.weight", WHAT, axes=2)[0]
        probe = AttentiveClassifier(dim, heads, depth, outputs, queries, ratio, eps)
    fill(probe, ours, WHAT)
    return probe


def probe_to_published(probe: Probe) -> dict[str, Tensor]:
    """The published state dict of a probe, without prefixes."""
    return rename(probe.state_dict(), BACK, (), (), WHAT)[0]


def is_probe(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of an attentive probe."""
    return any(key.endswith("pooler.query_tokens") for key in state)
