"""Teachers: the EMA's closed form, what stays frozen, and where gradients flow."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from jepa.models.encoders import ConvNet, TimmBackbone
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import EMA, Frozen, Online, Target
from jepa.models.world import WorldModel
from jepa.objectives.prediction import Regression
from jepa.optim import Optimizer
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.pretrain import Pretrain

SPECS = Specs(ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.5, 2.0)), ObservationSpec(16, 16))


def encoder(seed=0, norm=True):
    torch.manual_seed(seed)
    return ConvNet(dim=8, size=16, channels=(8, 8, 8), hidden=8, norm=norm)


def video(rows=2, steps=3, size=16):
    return torch.randint(0, 256, (rows, steps, 3, size, size), dtype=torch.uint8)


class Windows(LightningDataModule):
    specs = SPECS

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        shape = (3, 3, 16, 16)
        rows = [
            Sample(
                video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
                action=torch.randn(2, 2, generator=generator),
            )
            for _ in range(12)
        ]
        return DataLoader(rows, batch_size=4, collate_fn=Sample.stack)


def fit(target: Target, made=None, steps=6) -> WorldModel:
    """A world after a real fit of a few steps, with weight decay, which moves all that the optimiser holds."""
    made = made or encoder()
    world = WorldModel(made, ActionPredictor(made.dim, 16, 1, 2, 3), target)
    task = Pretrain(world, {"forced": Regression()}, Optimizer(lr=1e-2))
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(accelerator="cpu", devices=1, max_steps=steps, **silent).fit(task, datamodule=Windows())
    return world


@pytest.mark.parametrize(("start", "end", "steps"), [(0.9, 0.999, 7), (0.5, 0.5, 3), (0.0, 1.0, 4)])
def test_ema_closed_form(start, end, steps):
    """teacher <- m_i teacher + (1 - m_i) student after step i = 0 ... n-1, with m_i = start + (end - start) i / n."""
    student, target = encoder(), EMA(start, end)
    target.bind(student)
    expected = [parameter.detach().clone() for parameter in student.parameters()]
    for i in range(steps):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += torch.randn_like(parameter)
        target.update(student, i / steps)
        m = start + (end - start) * i / steps
        expected = [m * mine + (1 - m) * theirs for mine, theirs in zip(expected, student.parameters())]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(target.teacher.parameters(), expected))


def test_ema_in_a_fit_updates_once_after_every_step():
    """With momentum zero throughout, the teacher is the encoder of the last step; with one, that of the first."""
    world = fit(EMA(0.0, 0.0))
    assert all(map(torch.equal, world.target.teacher.parameters(), world.encoder.parameters()))
    world = fit(EMA(1.0, 1.0))
    assert all(map(torch.equal, world.target.teacher.parameters(), encoder().parameters()))
    assert not all(map(torch.equal, world.encoder.parameters(), encoder().parameters()))


def test_ema_momentum_follows_the_progress_of_the_fit(monkeypatch):
    seen = []
    monkeypatch.setattr(EMA, "update", lambda self, encoder, progress: seen.append(progress))
    fit(EMA(), steps=4)
    assert seen == [0, 0.25, 0.5, 0.75]  # as in I-JEPA, the first step has the momentum `start`


def test_ema_follows_buffers():
    student, target = TimmBackbone("resnet18", 32, frozen=False), EMA(1.0, 1.0)
    target.bind(student)
    student.train()(video(size=32))
    mine, theirs = target.teacher.backbone.bn1, student.backbone.bn1
    assert not torch.equal(mine.running_mean, theirs.running_mean)
    target.update(student, 0.5)
    assert torch.equal(mine.running_mean, theirs.running_mean)
    assert torch.equal(mine.num_batches_tracked, theirs.num_batches_tracked)


def test_the_teacher_is_a_copy_without_gradients():
    student, target = encoder(), EMA()
    target.bind(student)
    pictures = video()
    z = student(pictures)
    h = target(student, pictures, z)
    assert torch.allclose(h, z, atol=1e-3) and not h.requires_grad  # both end with a layer norm
    ((z - h - 1).square() * torch.randn_like(z)).sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target.parameters())
    assert not {id(p) for p in target.parameters()} & {id(p) for p in student.parameters()}
    world = fit(EMA())
    assert all(parameter.grad is None for parameter in world.target.parameters())


@pytest.mark.parametrize("target", [EMA, Frozen, Online])
@pytest.mark.parametrize("norm", [True, False])
def test_norm_is_a_layer_norm_of_the_target_only(target, norm):
    student, made, pictures = encoder(norm=False), target(norm=norm), video()
    made.bind(student)
    z = student(pictures)
    expected = torch.nn.functional.layer_norm(z, z.shape[-1:]) if norm else z
    assert torch.allclose(made(student, pictures, z), expected, atol=1e-5)


def test_a_frozen_encoder_does_not_move_in_a_fit():
    made = TimmBackbone("resnet18", 16, frozen=False)  # with batch norm, whose statistics move without gradients
    before = {key: value.clone() for key, value in made.state_dict().items()}
    world = fit(Frozen(), made)
    after = world.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert world.predictor.project.weight.std() > 0


def test_frozen_targets_are_the_latents():
    student, target = encoder(), Frozen(norm=False)
    target.bind(student)
    z = torch.randn(2, 3, 1, 8, requires_grad=True)
    h = target(student, video(), z)
    assert torch.equal(h, z) and not h.requires_grad


def test_online_gradients_flow_through_both_sides():
    z = torch.randn(2, 3, 1, 8, requires_grad=True)
    assert torch.equal(Online()(encoder(), video(), z), z)
    Online()(encoder(), video(), z).sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    assert not Online(stop_gradient=True)(encoder(), video(), z).requires_grad
