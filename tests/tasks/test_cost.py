"""What a fit would cost: counted against closed forms, the published anchors, and real tensors."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.targets import EMA, Online
from jepa.models.video import VideoViT
from jepa.schema import Mask
from jepa.tasks.counting import ALWAYS, CONFIGURED, NEVER, Precision, Step, count

WIDE = {"vit_l": (1024, 24, 16, 4.0), "vit_g": (1408, 40, 22, 48 / 11)}
# context and targets as shares of the tokens that legacy masks leave at the published batch: short, then long range
ANCHORS = {  # encoder, frames, size, TFLOPs of a clip with checkpointing
    "vit_l 16f256": ("vit_l", 16, 256, ((0.249, 0.475), (0.062, 0.703)), 4.2),
    "vit_g 16f256": ("vit_g", 16, 256, ((0.249, 0.475), (0.062, 0.703)), 11.4),
    "vit_l 64f256": ("vit_l", 64, 256, ((0.290, 0.494), (0.083, 0.745)), 30.0),
}


def model(dim=48, depth=2, heads=3, ratio=4.0, size=32, frames=4, width=24, layers=1, recompute=False, target=None):
    encoder = VideoViT(size, frames, dim=dim, depth=depth, heads=heads, mlp_ratio=ratio, recompute=recompute)
    predictor = MaskPredictor(dim, encoder.positions.grid, 2, width=width, depth=layers, heads=2 if width < 384 else 12)
    return MaskedJEPA(encoder, predictor, target or EMA())


def clip(size, frames, masks, device):
    video = torch.zeros(1, frames, 3, size, size, dtype=torch.uint8, device=device)

    def tokens(*shape):
        return torch.zeros(1, *shape, dtype=torch.int64, device=device)

    return video, [Mask(tokens(kept), tokens(1, hidden)) for kept, hidden in masks]


def counted(masks, dtype=torch.float32, size=32, frames=4, **options) -> Step:
    with torch.device("meta"):
        world = model(size=size, frames=frames, **options)
    video, given = clip(size, frames, masks, "meta")
    return count(world, lambda: world(video, given), dtype)


def transformer(dim, depth, tokens, ratio=4.0):
    """FLOPs of the blocks: four projections and two of the feed-forward, and scores and values of all pairs."""
    return depth * (2 * tokens * dim * dim * (4 + 2 * ratio) + 4 * tokens**2 * dim)


def test_flops_are_those_of_the_closed_form():
    step, tokens, patch = counted([(3, 4)]), 2 * 2 * 2, 2 * 3 * 16 * 16
    assert step.parts["context encoder"].forward == transformer(48, 2, 3)
    assert step.parts["context encoder"].backward == 2 * transformer(48, 2, 3)
    assert step.parts["target encoder"].forward == transformer(48, 2, tokens) + 2 * tokens * patch * 48
    assert step.parts["target encoder"].backward == 0
    assert step.parts["patch embedding"].forward == 2 * 3 * patch * 48
    assert step.parts["patch embedding"].backward == 2 * 3 * patch * 48  # pixels have no gradient
    # its only block computes no more than keys and values for tokens that are not asked for
    unasked = 2 * 3 * 24 * 24 * (1 + 8) + 4 * 3 * 7 * 24
    predictor = transformer(24, 1, 3 + 4) - unasked + 2 * 3 * 48 * 24 + 2 * 4 * 24 * 48
    assert predictor <= step.parts["predictor"].forward <= predictor + 2 * 3 * 24 * 24
    assert step.parts["predictor"].backward == 2 * step.parts["predictor"].forward
    assert "other" not in step.parts and step.work.recomputed == 0


def test_flops_are_those_that_torch_counts_on_the_cpu():
    world = model()
    video, masks = clip(32, 4, [(3, 4), (2, 5)], "cpu")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sum(prediction.p.sum() for prediction in world(video, masks)).backward()
    assert counted([(3, 4), (2, 5)]).work.total == counter.get_total_flops()


def test_a_target_that_learns_is_counted_forward_and_backward():
    step = counted([(3, 4)], target=Online())
    assert step.parts["context encoder"].forward > transformer(48, 2, 3) + transformer(48, 2, 8) - 1
    assert "target encoder" not in step.parts


def test_checkpointing_computes_again_what_it_did_not_keep():
    plain, again = counted([(3, 4)]), counted([(3, 4)], recompute=True)
    assert again.parts["context encoder"].backward == plain.parts["context encoder"].backward
    # the last product of a block is not needed again
    forward = transformer(48, 2, 3)
    assert again.parts["context encoder"].recomputed == forward - 2 * (2 * 3 * 4 * 48 * 48)
    # of the encoder alone, as it is configured here
    assert again.kept[NEVER] == plain.kept[CONFIGURED] > again.kept[CONFIGURED] > again.kept[ALWAYS]
    assert again.kept[ALWAYS] == plain.kept[ALWAYS] and NEVER not in plain.kept


def test_checkpointed_blocks_keep_what_enters_them():
    options = {"dim": 96, "heads": 3, "depth": 3, "size": 64, "frames": 4, "layers": 2}
    kept = counted([(12, 16)], **options).kept
    with torch.device("meta"):
        world = model(**options)
    for part in (world.encoder, world.predictor):
        part.recompute = True
    video, given = clip(64, 4, [(12, 16)], "meta")
    step = count(world, lambda: world(video, given), torch.float32)
    assert set(step.kept) == {CONFIGURED, NEVER} and step.kept[CONFIGURED] == kept[ALWAYS]
    assert step.parts["predictor"].recomputed > 0 and step.parts["context encoder"].recomputed > 0
    entered = 4 * (3 * 12 * 96 + 2 * 28 * 24)  # tokens of three blocks, and of two
    assert entered < step.kept[CONFIGURED] < kept[CONFIGURED]


@pytest.mark.parametrize("name", ANCHORS)
def test_the_published_steps_cost_what_is_known(name):
    encoder, frames, size, shares, expected = ANCHORS[name]
    dim, depth, heads, ratio = WIDE[encoder]
    tokens = frames // 2 * (size // 16) ** 2
    masks = [(int(kept * tokens), int(hidden * tokens)) for kept, hidden in shares]
    with torch.device("meta"):
        world = model(dim, depth, heads, ratio, size, frames, width=384, layers=12)
    video, given = clip(size, frames, masks, "meta")
    parts = count(world, lambda: world(video, given), torch.float32).parts
    # the anchors take all of the forward as computed again
    again = parts["context encoder"].forward + parts["predictor"].forward
    total = sum(work.total for work in parts.values()) + again
    assert total / 1e12 == pytest.approx(expected, rel=0.02)


def kept_on_the_cpu(world, video, masks):
    """Bytes of what autograd keeps of real tensors, without the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*world.parameters(), *world.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return storage

    with saved_tensors_hooks(keep, lambda storage: None):
        predictions = world(video, masks)
    assert predictions
    return sum(kept.values())


def test_activations_are_those_of_real_tensors():
    options = {"dim": 96, "heads": 3, "depth": 3, "size": 64, "frames": 4}
    video, masks = clip(64, 4, [(12, 16), (8, 20)], "cpu")
    real = kept_on_the_cpu(model(**options), video, masks)
    assert counted([(12, 16), (8, 20)], **options).kept[CONFIGURED] == pytest.approx(real, rel=0.02)


def test_half_precision_keeps_less_and_no_copies_of_weights():
    options = {"dim": 96, "heads": 3, "size": 64, "frames": 4}
    full, half = (counted([(12, 16)], dtype, **options) for dtype in (torch.float32, torch.bfloat16))
    assert 0.5 < half.kept[CONFIGURED] / full.kept[CONFIGURED] < 0.8
    assert half.work == full.work


def test_precision_lowers_products_and_raises_norms():
    weights = set()
    layer, x = torch.nn.Linear(4, 4, device="meta"), torch.empty(2, 4, device="meta")
    with Precision(torch.bfloat16, weights) as precision:
        low = layer(x)
        high = torch.nn.functional.layer_norm(low, (4,))
        layer(x)
    assert (low.dtype, high.dtype) == (torch.bfloat16, torch.float32)
    assert len(precision.copies) == len(weights) == 2  # the weight and the bias, once each


# ---- the command ----


def configuration(folder, **trainer):
    """A small V-JEPA on data that does not exist."""
    encoder = {"size": 64, "frames": 8, "dim": 48, "depth": 2, "heads": 3, "recompute": True}
    init = {
        "encoder": {"class_path": "jepa.models.video.VideoViT", "init_args": encoder},
        "predictor": {
            "class_path": "jepa.models.masked.MaskPredictor",
            "init_args": {"dim": 48, "grid": [4, 4, 4], "width": 48, "depth": 1, "heads": 3},
        },
        "target": {"class_path": "jepa.models.targets.EMA"},
    }
    generators = [{"class_path": "jepa.masks.MultiBlock", "init_args": {"blocks": blocks}} for blocks in (4, 2)]
    task = {
        "world": {"class_path": "jepa.models.masked.MaskedJEPA", "init_args": init},
        "masks": {"class_path": "jepa.masks.Masks", "init_args": {"generators": generators}},
        "objectives": {"l1": {"class_path": "jepa.objectives.prediction.Regression"}},
    }
    sources = [{"path": "/nowhere/a", "frames": 8, "weight": 3.0}, {"path": "/nowhere/b", "frames": 4}]
    data = {"sources": sources, "size": 64, "batch_size": 6}
    tree = {
        "model": {"class_path": "jepa.tasks.masked.MaskedPretrain", "init_args": task},
        "data": {"class_path": "jepa.data.video_module.VideoData", "init_args": data},
        "trainer": {"max_steps": 1000, "devices": 2, "num_nodes": 2, "accumulate_grad_batches": 3} | trainer,
    }
    path = folder / "cost.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def numbers(text, line):
    """The numbers of the first line that begins with these words."""
    found = next(row.strip() for row in text.splitlines() if row.strip().startswith(line)).removeprefix(line)
    return [float(value.replace(",", "")) for value in re.findall(r"[\d,]*\d(?:\.\d+)?(?:e[+-]\d+)?", found)]


def test_cost_of_a_masked_model(jepa, tmp_path):
    path = configuration(tmp_path)
    text = jepa("inspect", "cost", "-c", path, "--accelerators=8", "--peak=100", "--utilisation=0.5").out
    assert "8 frames of 64 x 64, 75% of the clips: 64 tokens" in text
    assert "4 frames of 64 x 64, 25% of the clips: 32 tokens" in text
    # 6 clips on each of 2 x 2 devices, three times; the accelerators share the same steps
    assert numbers(text, "steps") == [1000, 72, 72000, 2, 2]
    flops = numbers(text, "FLOPs")[0]
    assert flops == pytest.approx(72000 * 1e9 * numbers(text, "together")[-1], rel=0.05)
    days, ranks, hours = numbers(text, "time")[:3]
    assert ranks == 8 and hours == pytest.approx(flops / (100e12 * 0.5) / 3600, rel=0.01)
    assert days == pytest.approx(hours / 8 / 24, rel=0.01)


def days(jepa, path, *flags):
    text = jepa("inspect", "cost", "-c", path, *flags).out
    return numbers(text, "time")[0], numbers(text, "steps")[:3], numbers(text, "a step")


def test_more_accelerators_share_the_same_steps(jepa, tmp_path):
    """A step has 72 clips of 2 x 2 devices, whoever takes them."""
    path = configuration(tmp_path)
    found = {n: days(jepa, path, f"--accelerators={n}", "--peak=1e-6") for n in (4, 8, 16, 36, 72)}
    assert all(steps == [1000, 72, 72000] for _, steps, _ in found.values())
    for n, (time, _, _) in found.items():
        assert time == pytest.approx(found[4][0] * 4 / n, rel=0.01)
    shares = {n: told for n, (_, _, told) in found.items()}
    assert shares[4] == [18, 4, 6, 3]  # clips each, accelerators, at once, and how often: as configured
    assert shares[8] == [9, 8, 3, 3] and shares[16] == [4.5, 16]  # nine are no two equal passes of six at most
    assert shares[36] == [2, 36, 2, 1] and shares[72] == [1, 72, 1, 1]
    text = jepa("inspect", "cost", "-c", path, "--accelerators=36").out
    assert "clips, 2 at once on a rank" in text
    assert "73, but a step has 72 clips" in jepa("inspect", "cost", "-c", path, "--accelerators=73").complaint()


def test_devices_that_are_left_to_the_machine_are_eight(jepa, tmp_path):
    path = configuration(tmp_path, devices="auto")
    assert numbers(jepa("inspect", "cost", "-c", path).out, "steps") == [1000, 288, 288000, 2, 8]
    text = jepa("inspect", "cost", "-c", path, "--machine=4", "--accelerators=8").out
    assert numbers(text, "steps") == [1000, 144, 144000, 2, 4] and numbers(text, "a step") == [18, 8, 6, 3]


def test_memory_of_a_rank(jepa, tmp_path):
    text = jepa("inspect", "cost", "-c", configuration(tmp_path), "--memory=0.001").out
    parameters = {name: numbers(text, name)[0] for name in ("encoder", "predictor", "target")}
    assert numbers(text, "trained")[0] == parameters["encoder"] + parameters["predictor"]
    assert parameters["encoder"] == parameters["target"]
    weights, shard = numbers(text, "weights")
    assert weights == pytest.approx(4 * (parameters["encoder"] + parameters["predictor"]) / 2**20, abs=0.01)
    assert shard == pytest.approx(weights / 2, abs=0.01)
    assert numbers(text, "AdamW moments")[0] == pytest.approx(2 * weights, abs=0.02)
    # of encoder and predictor, the encoder alone recomputes
    rows = [numbers(text, f"activations, {name}")[0] for name in (ALWAYS, CONFIGURED, NEVER)]
    assert rows == sorted(set(rows))
    assert "as configured: DDP; recompute=true in encoder" in text
    for name in (ALWAYS, CONFIGURED, NEVER):
        assert f"together, {name}, fits 0.001 GiB: DDP no, FSDP2 over 2 no" in text


def test_what_is_computed_again_has_no_copies_of_its_weights(jepa, tmp_path):
    path = configuration(tmp_path, precision="bf16-mixed")
    text = jepa("inspect", "cost", "-c", path).out
    none, some, all_ = (numbers(text, f"weights in bfloat16, {name}")[0] for name in (NEVER, CONFIGURED, ALWAYS))
    assert none > some > all_
    state = sum(numbers(text, name)[0] for name in ("weights", "gradients", "AdamW", "teacher", "gradients in"))
    for name, copies in ((NEVER, none), (CONFIGURED, some), (ALWAYS, all_)):
        whole = state + copies + numbers(text, f"activations, {name}")[0]
        assert numbers(text, f"together, {name}")[0] == pytest.approx(whole, abs=0.05)


SHARDED, DDP = "jepa.tasks.sharding.Sharded", "lightning.pytorch.strategies.DDPStrategy"


@pytest.mark.parametrize(
    ("options", "flags", "shards", "told"),
    [
        ({}, (), 2, "FSDP2 over 2, 2 x 2 accelerators"),
        ({}, ("--accelerators=18",), 2, "FSDP2 over 2, 2 x 9 accelerators"),
        ({}, ("--accelerators=9",), 1, "FSDP2 over 1, 1 x 9 accelerators"),  # two of a machine cannot be nine
        ({"shards": 4}, (), 4, "FSDP2 over 4, 4 x 1 accelerators"),
    ],
)
def test_what_is_divided_follows_the_strategy(jepa, tmp_path, options, flags, shards, told):
    path = configuration(tmp_path, strategy={"class_path": SHARDED, "init_args": options})
    text = jepa("inspect", "cost", "-c", path, *flags).out
    assert f"as configured: {told};" in text and "gradients in buckets" not in text
    whole, part = numbers(text, "AdamW moments")
    assert part == pytest.approx(whole / shards, abs=0.01)


def test_shards_divide_the_accelerators(jepa, tmp_path):
    path = configuration(tmp_path, strategy={"class_path": SHARDED, "init_args": {"shards": 4}})
    complaint = jepa("inspect", "cost", "-c", path, "--accelerators=18").complaint()
    assert "shards=4 of 18 accelerators" in complaint


def test_ddp_holds_gradients_twice_unless_they_are_views(jepa, tmp_path):
    plain = jepa("inspect", "cost", "-c", configuration(tmp_path, strategy="ddp")).out
    views = {"class_path": DDP, "init_args": {"gradient_as_bucket_view": True}}
    once = jepa("inspect", "cost", "-c", configuration(tmp_path, strategy=views)).out
    gradients = numbers(plain, "gradients")[0]
    assert numbers(plain, "gradients in buckets") == [gradients, 0] and "gradients in buckets" not in once
    more = numbers(plain, "together, as")[0] - numbers(once, "together, as")[0]
    assert more == pytest.approx(gradients, abs=0.02)


@pytest.mark.parametrize("config", ["ijepa_vith14", "vjepa_vitl16", "vjepa2_vitl16", "vjepa2_1_vitl16"])
def test_the_published_runs_recompute_all_or_nothing(jepa, config):
    small = ("--vars.depth=4", "--vars.predictor_depth=2", "--vars.dim=64", "--vars.heads=2", "--vars.size=64")
    small += ("--vars.width=48", "--vars.predictor_heads=2", "--vars.patch=16")
    small += ("--vars.grid=[1,4,4]",) if config.startswith("ijepa") else ("--vars.grid=[8,4,4]",)
    small += ("--vars.levels=[0,1,2,3]",) if "2_1" in config else ()
    for flag, told in (("true", "recompute=true in encoder and predictor"), ("false", "nothing is computed again")):
        text = jepa("inspect", "cost", "-c", f"pretrain/{config}", *small, f"--vars.recompute={flag}").out
        assert f"; {told}" in text and "gradients in buckets" not in text
        assert text.count("together, ") == 2  # as configured, and the other


def test_cost_of_a_world_model_opens_no_data(jepa):
    text = jepa("inspect", "cost", "-c", "pretrain/two_rooms", "--vars.data=nowhere", "--action=3").out
    assert "windows of 9 frames of 64 x 64; actions 3 wide, in blocks of 3" in text
    assert numbers(text, "time")[0] > 0


def test_epochs_say_how_many_steps(jepa, tmp_path):
    path = configuration(tmp_path, max_steps=-1, max_epochs=5)
    text = jepa("inspect", "cost", "-c", path, "--data.clips_per_epoch=7200").out
    assert numbers(text, "steps")[0] == 500
    complaint = jepa("inspect", "cost", "-c", path).complaint()
    assert "does not say how many steps" in complaint


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--peak=0", "TFLOP/s and GiB above zero"),
        ("--utilisation=40", "share of the peak"),
        ("--accelerators=0", "at least one accelerator"),
        ("--machine=0", "one device of a machine"),
        ("--acelerators=2", "did you mean"),
    ],
)
def test_wrong_numbers_are_told(jepa, tmp_path, flag, told):
    assert told in jepa("inspect", "cost", "-c", configuration(tmp_path), flag).complaint()
