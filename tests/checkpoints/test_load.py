"""Models on disk: what was written comes back, what is damaged or foreign does not, and nothing in a file runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from jepa.checkpoints.io import AtomicCheckpointIO
from jepa.checkpoints.load import FORMAT, describe, load
from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import EMA
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Sample, Specs

SPECS = Specs(
    ActionSpec((-1.0, -2.0), (1.0, float("inf")), (0.1, -0.3), (0.5, 2.0), block=2),
    ObservationSpec(16, 16, state_names=("x", "y")),
    EvalSpec("jepa/TwoRooms-v0", {"random_wall": True}, 2, "two_rooms/v1"),
)
TREE = {
    "class_path": "jepa.models.world.WorldModel",
    "init_args": {
        "encoder": {
            "class_path": "jepa.models.encoders.ConvNet",
            "init_args": {"dim": 8, "size": 16, "channels": [8, 8, 8], "hidden": 8},
        },
        "predictor": {
            "class_path": "jepa.models.predictors.ActionPredictor",
            "init_args": {"dim": 8, "width": 16, "depth": 1, "heads": 2},
        },
        "target": {"class_path": "jepa.models.targets.EMA"},
    },
}


def world() -> WorldModel:
    torch.manual_seed(7)
    made = WorldModel(ConvNet(8, 16, (8, 8, 8), 8), ActionPredictor(8, 16, 1, 2), EMA())
    made.bind(SPECS)
    return made


def contents() -> dict:
    made = world()
    state = {f"world.{key}": value for key, value in made.state_dict().items()}
    return {"jepa": describe(made, TREE), "state_dict": state | {"objectives.x": torch.zeros(1)}, "global_step": 3}


def written(folder: Path, checkpoint: dict | None = None) -> str:
    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint or contents(), path)
    return str(path)


def refused(path: str, *words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_world_comes_back(tmp_path):
    before, after = world(), load(written(tmp_path))
    assert after.specs == SPECS and after.specs.differences(SPECS) == []
    theirs = after.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in before.state_dict().items())
    assert not after.training and not any(parameter.requires_grad for parameter in after.parameters())
    video = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(after.encode(Sample(video=video)), before.eval().encode(Sample(video=video)))


def test_untrained_is_the_same_every_time_and_leaves_the_generator(tmp_path):
    path = written(tmp_path)
    torch.manual_seed(1)
    first = load(path, untrained=True).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    second, trained = load(path, untrained=True).state_dict(), load(path).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["encoder.head.0.weight"], trained["encoder.head.0.weight"])


def test_a_checkpoint_brings_the_weights_that_training_began_from(tmp_path):
    """The file that a pretrained backbone came from need not exist where the checkpoint is used."""
    checkpoint = contents()
    from jepa.models.encoders import TimmBackbone

    made = WorldModel(TimmBackbone("resnet18", 32), ActionPredictor(512, 16, 1, 2), EMA())
    made.bind(Specs(SPECS.action, ObservationSpec(32, 32)))
    tree = {"class_path": TREE["class_path"], "init_args": dict(TREE["init_args"])}
    backbone = {"name": "resnet18", "size": 32, "weights": "/gone/resnet18.pth"}
    tree["init_args"]["encoder"] = {"class_path": "jepa.models.encoders.TimmBackbone", "init_args": backbone}
    tree["init_args"]["predictor"] = {
        "class_path": "jepa.models.predictors.ActionPredictor",
        "init_args": {"dim": 512, "width": 16, "depth": 1, "heads": 2},
    }
    checkpoint["jepa"] = describe(made, tree)
    checkpoint["state_dict"] = {f"world.{key}": value for key, value in made.state_dict().items()}
    after = load(written(tmp_path, checkpoint))
    assert torch.equal(after.encoder.backbone.conv1.weight, made.encoder.backbone.conv1.weight)


def test_a_missing_file(tmp_path):
    refused(str(tmp_path / "nothing.ckpt"), "no checkpoint at", "nothing.ckpt")
    refused(str(tmp_path), "no checkpoint at")


@pytest.mark.parametrize("part", [0, 1, 3, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path, part):
    path = Path(written(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if isinstance(part, float) else part])
    refused(str(path), str(path))


def test_damaged_bytes_are_never_a_traceback(tmp_path):
    """Noise in the headers and in the description: every outcome is a world or one line."""
    path = Path(written(tmp_path))
    whole = path.read_bytes()
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        noisy = bytearray(whole)
        for place in torch.randint(0, 6000, (8,), generator=draw).tolist():
            noisy[place % len(noisy)] ^= int(torch.randint(1, 256, (1,), generator=draw))
        path.write_bytes(noisy)
        try:
            load(str(path))
        except InputError as error:
            assert "\n" not in str(error)


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickled_object_does_not_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    for extra in ({"extra": Payload(tmp_path / "ran")}, {"jepa": Payload(tmp_path / "ran")}):
        torch.save(contents() | extra, path)
        refused(str(path), "pickled objects")
    torch.save(Payload(tmp_path / "ran"), path, _use_new_zipfile_serialization=False)
    refused(str(path), "pickled objects")
    assert not (tmp_path / "ran").exists()


def renamed(class_path: str, init_args: dict | None = None) -> dict:
    checkpoint = contents()
    checkpoint["jepa"]["world"] = {"class_path": class_path, "init_args": init_args or {}}
    return checkpoint


def test_a_foreign_class_is_refused_unless_allowed(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').mkdir()\nfrom jepa.models.world import WorldModel\n"
        "class Mine(WorldModel): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = written(tmp_path, renamed("elsewhere.Mine", TREE["init_args"]))
    refused(path, "elsewhere.Mine", "allow=('elsewhere',)")
    assert not (tmp_path / "ran").exists()
    assert type(load(path, allow=("elsewhere",))).__name__ == "Mine"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("jepa.cli.import_module", {"name": "antigravity"}),  # imports any module
        ("jepa.checkpoints.io.Path", {}),
        ("jepa.checkpoints.io.os.mkdir", {"path": "ran"}),
        ("jepa.tasks.collect.collect", {"env": "two_rooms", "out": "ran"}),  # writes a file
        ("jepa.models.world.Sample", {}),
        ("jepa.tasks.pretrain.LightningModule", {}),  # a module, but not of jepa
        ("jepa.models.layers.nn.Linear", {"in_features": 1, "out_features": 1}),
        ("jepa.models.nothing.World", {}),
        ("jepa.models.world.Nothing", {}),
        ("os.mkdir", {"path": "ran"}),
        ("mkdir", {"path": "ran"}),
        ("jepa_evil.World", {}),
    ],
)
def test_only_modules_are_built(tmp_path, monkeypatch, class_path, init_args):
    monkeypatch.chdir(tmp_path)
    refused(written(tmp_path, renamed(class_path, init_args)), class_path)
    assert not (tmp_path / "ran").exists()


def test_arguments_that_do_not_fit(tmp_path):
    refused(written(tmp_path, renamed(TREE["class_path"], {"encodr": 1})), "cannot be built", "encodr")
    refused(written(tmp_path, renamed("jepa.models.encoders.ConvNet", {"size": 16})), "holds a ConvNet")


def without(*keys: str) -> dict:
    checkpoint = contents()
    inner = checkpoint
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return checkpoint


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (("jepa",), "not written by `jepa fit`"),
        (("state_dict",), "state_dict"),
        (("jepa", "world"), "world"),
        (("jepa", "specs"), "specs"),
        (("jepa", "format"), "format None"),
        (("jepa", "specs", "action"), "action"),
        (("jepa", "specs", "action", "low"), "low"),
        (("state_dict", "world.encoder.head.0.bias"), "encoder.head.0.bias"),
    ],
)
def test_a_missing_key_is_named(tmp_path, keys, word):
    refused(written(tmp_path, without(*keys)), word)


def test_other_formats_and_contents_are_refused(tmp_path):
    checkpoint = contents()
    checkpoint["jepa"]["format"] = FORMAT + 1
    refused(written(tmp_path, checkpoint), f"format {FORMAT + 1}", f"reads format {FORMAT}")
    path = tmp_path / "other.ckpt"
    for other in (torch.zeros(3), [1, 2], {"state_dict": {}}, {"jepa": 3}):
        torch.save(other, path)
        refused(str(path), str(path))
    path.write_text("404: not found")
    refused(str(path), str(path))


def full_disk(monkeypatch, code=errno.ENOSPC, after=1):
    """Every file of Path.open raises once `after` writes are done."""
    original = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, after

        def write(self, data):
            self.left -= 1
            if self.left < 0:
                raise OSError(code, os.strerror(code))
            return self.file.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(Path, "open", lambda self, *args, **options: Full(original(self, *args, **options)))


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, code, after):
    path = Path(written(tmp_path))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        full_disk(patch, code, after)
        with pytest.raises(InputError, match="no room to write the checkpoint") as caught:
            AtomicCheckpointIO().save_checkpoint(contents() | {"more": torch.zeros(100_000)}, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    load(str(path))


def test_other_failures_are_not_called_a_full_disk(tmp_path, monkeypatch):
    path = Path(written(tmp_path))
    with monkeypatch.context() as patch:
        full_disk(patch, errno.EIO, 0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            AtomicCheckpointIO().save_checkpoint(contents(), path)

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        AtomicCheckpointIO().save_checkpoint(contents(), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    path, seen, replace = tmp_path / "new" / "last.ckpt", [], os.replace

    def watched(partial, target):
        seen.append((target.exists(), torch.load(partial, weights_only=True).keys()))
        replace(partial, target)

    monkeypatch.setattr(os, "replace", watched)
    AtomicCheckpointIO().save_checkpoint(contents(), path)
    assert seen == [(False, contents().keys())] and list(path.parent.iterdir()) == [path]
