"""Masked pretraining: what the loss is, what counts as a step, how gradients are clipped, how a training starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from jepa.checkpoints.load import FORMAT
from jepa.errors import InputError
from jepa.masks import Masks, MultiBlock
from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.targets import EMA
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.objectives.sigreg import SIGReg
from jepa.objectives.vicreg import Variance
from jepa.optim import Optimizer
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.masked import Hidden, MaskedPretrain

SIZE, FRAMES, TUBELET = 32, 4, 1
SPECS = Specs(ActionSpec((), (), (), ()), ObservationSpec(SIZE, SIZE))


def clips(count: int, frames: int = FRAMES, seed: int = 0) -> Sample:
    random = torch.Generator().manual_seed(seed + frames)
    video = torch.randint(256, (count, frames, 3, SIZE, SIZE), dtype=torch.uint8, generator=random)
    return Sample(video=video, key=torch.randint(2**40, (count,), generator=random))


def part(sample: Sample, start: int, stop: int) -> Sample:
    return sample.map(lambda value: value[start:stop])


class Batches(LightningDataModule):
    """The given batches, in order."""

    specs = SPECS

    def __init__(self, *batches: list[Sample]) -> None:
        super().__init__()
        self.batches = list(batches)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = predict_dataloader = train_dataloader


def masks(seed: int = 0) -> Masks:
    return Masks([MultiBlock(2, (0.15, 0.15)), MultiBlock(1, (0.5, 0.5))], seed=seed)


def task(**options: object) -> MaskedPretrain:
    torch.manual_seed(0)
    encoder = VideoViT(SIZE, FRAMES, TUBELET, patch=8, dim=24, depth=1, heads=2)
    predictor = MaskPredictor(24, (FRAMES // TUBELET, 4, 4), masks=2, width=24, depth=1, heads=2)
    world = MaskedJEPA(encoder, predictor, EMA(0.9, 0.99))
    objectives = {"l1": Regression("l1", weight=2.0), "l2": Regression("l2", weight=0.5)}
    given = {"masks": masks(), "objectives": objectives, "optimizer": Optimizer(lr=1e-2, warmup=0.0)}
    return MaskedPretrain(world, **(given | options))


def trainer(steps: int, **options: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return Trainer(max_steps=steps, max_epochs=-1, **(quiet | options))


def weights(model: MaskedPretrain) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.world.state_dict().items()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_lengths_count_by_their_samples_and_generators_alike():
    model, batch = task(), [clips(1, 1), clips(3, FRAMES)]
    seen, want = [], 0.0

    def step(batch: list[Hidden], batch_idx: int) -> dict[str, object]:
        seen.append(MaskedPretrain.training_step(model, batch, batch_idx))
        return seen[0]

    model.training_step = step
    with torch.no_grad():
        for sample in batch:
            predictions = model.world(sample.video, masks()(sample.key, (sample.video.shape[1], 4, 4)))
            assert len(predictions) == 2
            for p, h in ((prediction.p, prediction.h) for prediction in predictions):
                want += len(sample.video) / 4 * (2 * (p - h).abs().mean() + 0.5 * (p - h).square().mean()) / 2
    trainer(1).fit(model, datamodule=Batches(batch))
    torch.testing.assert_close(seen[0]["loss"].detach(), want)
    assert seen[0]["prediction"].z.shape[0] == 1 and not seen[0]["prediction"].z.requires_grad


def test_a_compiled_model_learns_the_same():
    plain, compiled = task(), task(compile="eager")
    for model in (plain, compiled):
        trainer(2).fit(model, datamodule=Batches([clips(2)], [clips(2, seed=9)]))
    assert furthest(weights(plain), weights(compiled)) < 1e-5
    with pytest.raises(InputError, match="inductr"):
        task(compile="inductr")


def test_images_have_masks_of_their_own():
    model = task(image_masks=Masks([MultiBlock(3, (0.1, 0.1))], seed=5))
    model._trainer = trainer(1)
    images, video = clips(2, 1), clips(2)
    ours, theirs = model.on_before_batch_transfer([images, video], 0)
    assert (len(ours.masks), len(theirs.masks)) == (1, 2)
    assert torch.equal(ours.masks[0].context, model.image_masks(images.key, (1, 4, 4))[0].context)
    assert torch.equal(theirs.masks[1].target, masks()(video.key, (FRAMES, 4, 4))[1].target)


def test_a_batch_moves_with_its_masks():
    sample = clips(2)
    moved = Hidden(sample, masks()(sample.key, (FRAMES, 4, 4)), 2).to("meta")
    assert moved.sample.video.is_meta and all(mask.context.is_meta and mask.target.is_meta for mask in moved.masks)


def test_samples_without_a_key_are_refused():
    with pytest.raises(InputError, match="no key"):
        trainer(1).fit(task(), datamodule=Batches([replace(clips(2), key=None)]))


def test_accumulated_gradients_give_the_update_of_the_large_batch():
    joint = [clips(8, seed=step) for step in range(3)]
    halves = [[part(sample, *bounds)] for sample in joint for bounds in ((0, 4), (4, 8))]
    large, small = task(clip=0.5), task(clip=0.5)
    before = weights(large)
    trainer(3).fit(large, datamodule=Batches(*([sample] for sample in joint)))
    trainer(3, accumulate_grad_batches=2).fit(small, datamodule=Batches(*halves))
    assert furthest(weights(large), before) > 1e-3
    assert furthest(weights(large), weights(small)) < 2e-6


def test_the_teacher_and_the_schedules_count_optimiser_steps():
    model, progress, rates = task(), [], []
    update = model.world.target.update

    def record(encoder: VideoViT, at: float) -> None:
        progress.append(at)
        rates.append(model.optimizers().param_groups[0]["lr"])
        update(encoder, at)

    model.world.target.update = record
    batches = [[clips(2, seed=number)] for number in range(8)]
    trainer(4, accumulate_grad_batches=2).fit(model, datamodule=Batches(*batches))
    assert progress == [0.0, 0.25, 0.5, 0.75]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def gradient_norms(
    steps: int, training: dict[str, object] | None = None, **options: object
) -> list[tuple[float, float]]:
    """Of encoder and predictor, as the optimiser sees them."""
    model, norms = task(**options), []
    clip = model.configure_gradient_clipping

    def clipped(*given: object, **named: object) -> None:
        clip(*given, **named)
        parts = (model.world.encoder, model.world.predictor)
        gradients = [[p.grad.norm() for p in part.parameters() if p.grad is not None] for part in parts]
        norms.append(tuple(float(torch.stack(found).norm()) for found in gradients))

    model.configure_gradient_clipping = clipped
    batches = Batches(*([clips(2, seed=number)] for number in range(steps)))
    trainer(steps, **(training or {})).fit(model, datamodule=batches)
    return norms


def test_encoder_and_predictor_are_clipped_apart():
    free = gradient_norms(1)[0]
    limit = min(free) / 2
    assert gradient_norms(1, clip=limit)[0] == pytest.approx((limit, limit), rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_trainer_clips_what_a_fused_optimiser_gets(precision):
    """Lightning refuses that under every mixed precision, though only scaled gradients forbid it."""
    limits = {"precision": precision, "gradient_clip_val": 1e-3}
    (parts,) = gradient_norms(1, limits, optimizer=Optimizer(lr=1e-2, warmup=0.0, fused=True))
    assert math.hypot(*parts) == pytest.approx(1e-3, rel=1e-2)


def test_scaled_gradients_are_not_clipped(monkeypatch):
    monkeypatch.setattr(Trainer, "precision", "16-mixed")  # which Lightning replaces on a CPU
    for model, options in ((task(clip=0.5), {}), (task(), {"gradient_clip_val": 1.0})):
        with pytest.raises(InputError, match="while they are still scaled.*bf16-mixed"):
            trainer(1, **options).fit(model, datamodule=Batches([clips(2)]))
    trainer(1).fit(task(clip=0.5, optimizer=Optimizer(fused=False)), datamodule=Batches([clips(2)]))


def test_weights_that_are_not_finite_take_no_checkpoint_s_place(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.tasks.training.describe", lambda *_: {})  # of a model that no config made
    good: dict[str, bytes] = {}
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)

    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Trainer, model: MaskedPretrain, *rest: object) -> None:
            if trainer.global_step == 2:
                next(model.world.predictor.parameters()).data.fill_(torch.nan)
                good.update({path.name: path.read_bytes() for path in tmp_path.iterdir()})

    model, batches = task(), [[clips(2, seed=number)] for number in range(3)]
    with pytest.raises(InputError, match="weights are not finite after step 2, and are not saved"):
        trainer(3, enable_checkpointing=True, callbacks=[Breaks(), kept]).fit(model, datamodule=Batches(*batches))
    assert "last.ckpt" in good and {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


@pytest.mark.parametrize(("objective", "told"), [(SIGReg(16), True), (Variance(), True), (Regression("l1"), False)])
def test_accumulation_of_statistics_is_told(objective, told, caplog):
    model = task(objectives={"l1": Regression("l1"), "spread": objective})
    batches = [[clips(4, seed=number)] for number in range(2)]
    trainer(1, accumulate_grad_batches=2).fit(model, datamodule=Batches(*batches))
    assert ("spread: a statistic of each batch" in caplog.text) is told


def test_clipping_begins_where_it_was_told_to():
    clipped = [max(norms) < 1.01e-3 for norms in gradient_norms(4, clip=1e-3, clip_after=0.5)]
    assert clipped == [False, False, True, True]


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"clip_after": 1.5}])
def test_clipping_that_cannot_be(options):
    with pytest.raises(InputError, match="norm above zero"):
        task(**options)


def test_bf16_keeps_weights_and_positions_in_float32():
    model, kinds = task(), set()

    def hook(module: torch.nn.Module, given: tuple, z: Tensor) -> None:
        kinds.add(z.dtype)

    model.world.encoder.blocks[0].mlp.register_forward_hook(hook)
    trainer(1, precision="bf16-mixed").fit(model, datamodule=Batches([clips(2)]))
    assert kinds == {torch.bfloat16}
    assert {value.dtype for value in model.world.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in model.world.state_dict().values())


def test_prediction_encodes_each_length():
    found = trainer(1).predict(task(), datamodule=Batches([clips(2, 1), clips(3)]))
    assert [z.shape for z in found[0]] == [(2, 1, 16, 24), (3, FRAMES, 16, 24)]


def saved(model: MaskedPretrain, path: object, **changes: object) -> str:
    about = {"format": FORMAT, "world": {}, "specs": SPECS.to_dict()}
    states = [optimizer.state_dict() for optimizer in model.trainer.optimizers]
    torch.save({"jepa": about, "state_dict": model.state_dict(), "optimizer_states": states} | changes, path)
    return str(path)


def test_a_training_starts_with_the_weights_and_moments_of_another(tmp_path):
    first, data = task(), Batches(*([clips(2, seed=number)] for number in range(3)))
    trainer(3).fit(first, datamodule=data)
    path = saved(first, tmp_path / "first.ckpt")
    second, seen = task(start=path), []
    step = second.optimizer_step

    def stepped(epoch: int, index: int, optimizer: torch.optim.Optimizer, closure: object) -> None:
        if not seen:
            seen.append(weights(second))
            moments = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
            seen.append([float(m["exp_avg_sq"].sum()) for m in moments])
        step(epoch, index, optimizer, closure)

    second.optimizer_step = stepped
    trainer(1).fit(second, datamodule=data)
    theirs = first.trainer.optimizers[0].state_dict()["state"]
    assert furthest(seen[0], weights(first)) == 0
    assert seen[1] == [float(theirs[number]["exp_avg_sq"].sum()) for number in range(len(theirs))]
    assert furthest(weights(second), weights(first)) > 0 and second.trainer.global_step == 1


def test_a_start_without_moments_says_so(tmp_path, caplog):
    first = task()
    trainer(1).fit(first, datamodule=Batches([clips(2)]))
    path = saved(first, tmp_path / "first.ckpt", optimizer_states=[])
    trainer(1).fit(task(start=path), datamodule=Batches([clips(2)]))
    assert "moments of zero: it holds no optimiser" in caplog.text


def test_a_start_from_another_model_is_refused(tmp_path):
    first = task()
    trainer(1).fit(first, datamodule=Batches([clips(2)]))
    state = {name: value for name, value in first.state_dict().items() if "mask_tokens" not in name}
    path = saved(first, tmp_path / "first.ckpt", state_dict=state)
    with pytest.raises(InputError, match="of another model: predictor.mask_tokens is missing"):
        trainer(1).fit(task(start=path), datamodule=Batches([clips(2)]))
