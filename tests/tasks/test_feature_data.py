"""Training from a feature cache: the same forecasts, loss and weights as from pixels, and nothing is encoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import save_file

from jepa.checkpoints import load
from jepa.data.hdf5 import Hdf5Writer
from jepa.data.module import EpisodeData
from jepa.errors import InputError
from jepa.models.encoders import ViT
from jepa.models.frozen import FrozenEncoder
from jepa.models.pose_world import PoseWorld, StillViT
from jepa.models.predictors import ActionPredictor
from jepa.models.proprio_world import ProprioWorld
from jepa.models.targets import EMA, Frozen
from jepa.models.vjepa2_ac import PosePredictor
from jepa.models.world import WorldModel
from jepa.objectives import Regression
from jepa.optim import Optimizer
from jepa.schema import ActionSpec, ObservationSpec, Specs
from jepa.tasks.embed import embed
from jepa.tasks.feature_data import FeatureData, FeatureEpisodes
from jepa.tasks.features import fingerprint, read_meta
from jepa.tasks.pretrain import Pretrain

LENGTHS = (9, 14, 11, 12, 10, 13)
SPECS = Specs(
    ActionSpec((-1.0,) * 7, (1.0,) * 7, (0.0,) * 7, (1.0,) * 7),
    ObservationSpec(16, 16, proprio_mean=(0.0,) * 7, proprio_std=(1.0,) * 7),
)
WINDOWS = {"frames": 4, "frame_skip": 2, "batch_size": 3, "windows_per_epoch": 12, "seed": 5}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Noise with actions and poses of the width of a robot's."""
    path, random = tmp_path_factory.mktemp("recorded") / "data.h5", np.random.default_rng(0)
    with Hdf5Writer(path, SPECS) as writer:
        for length in LENGTHS:
            video = random.integers(0, 256, (length, 3, 16, 16), dtype=np.uint8)
            action, pose = random.normal(size=(length - 1, 7)), random.normal(size=(length, 7))
            writer.append(video, action.astype(np.float32), pose.astype(np.float32))
    return path


def encoder(name="still"):
    torch.manual_seed(0)
    if name == "still":
        return StillViT(16, 2, 2, 8, 12, 2, 2, 2.0, "rotary_tiled", norm=True)
    return ViT(12, 16, 8, 12, 1, 2, "none")


def world(name="still"):
    """V-JEPA 2-AC, or DINO-WM's kind."""
    eyes = encoder(name)
    if name == "still":
        return PoseWorld(eyes, PosePredictor(12, 16, 2, 2, (2, 2), 2.0), Frozen(), rollout_steps=2)
    return ProprioWorld(eyes, ActionPredictor(16, 16, 1, 2, 3, 4, norm=False), Frozen(), rollout_steps=2)


@pytest.fixture(scope="module")
def caches(recorded, tmp_path_factory):
    made, data = {}, EpisodeData(str(recorded), splits=(0.6, 0.2, 0.2), **WINDOWS)
    for name in ("still", "vit"):
        out = tmp_path_factory.mktemp("cache") / name
        made[name] = embed(FrozenEncoder(encoder(name)), data, out, dtype="float32", batch=7)
    return made


def trained(name, data, looks=None, target=None):
    """The task after an epoch, and the loss of each of its steps."""
    seed_everything(0)
    model = target or world(name)
    if looks is not None:
        model.encoder.register_forward_hook(lambda *_: looks.append(1))
    objectives = {part: Regression("l1", part) for part in ("forced", "rollout")}
    task, losses = Pretrain(model, objectives, Optimizer(1e-3)), []
    task.on_train_batch_end = lambda outputs, batch, index: losses.append(outputs["loss"].item())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=8, accelerator="cpu", enable_model_summary=False, **quiet).fit(task, datamodule=data)
    return task, losses


def test_a_cache_is_a_store_of_episodes(caches):
    store = FeatureEpisodes(caches["still"])
    assert len(store) == len(LENGTHS) and sorted(map(store.length, range(len(store)))) == sorted(LENGTHS)
    whole = store.read(1, range(store.length(1)))
    assert whole.latent.shape == (store.length(1), 4, 12) and whole.action.shape[1:] == whole.proprio.shape[1:] == (7,)
    some = store.read(1, [4, 0], ("latent",))
    assert torch.equal(some.latent, whole.latent[[4, 0]]) and some.action is None
    assert sorted(store.part("train") + store.part("val") + store.part("test")) == list(range(len(LENGTHS)))
    lazily = FeatureEpisodes(caches["still"], memory=False)
    assert torch.equal(lazily.read(2, [3, 0, 3]).latent, store.read(2, [3, 0, 3]).latent)
    assert lazily.read(2, [3]).video is None
    with pytest.raises(IndexError):
        store.read(0, [-1])


@pytest.mark.parametrize("name", ["still", "vit"])
def test_windows_are_those_of_the_pixels_encoded(caches, recorded, name):
    pixels = EpisodeData(str(recorded), splits=(0.6, 0.2, 0.2), **WINDOWS)
    cached = FeatureData(str(caches[name]), **WINDOWS)
    assert pixels.specs == cached.specs
    for part in ("train", "val", "test"):
        seen, kept = pixels.clips(part), cached.clips(part)
        assert len(seen) == len(kept)
        one, other = seen.__getitems__(list(range(len(seen)))), kept.__getitems__(list(range(len(kept))))
        assert torch.equal(one.action, other.action) and torch.equal(one.proprio, other.proprio)
        with torch.no_grad():
            assert torch.allclose(encoder(name).eval()(one.video), other.latent, atol=1e-6)


@pytest.mark.parametrize("name", ["still", "vit"])
def test_training_is_that_from_pixels_and_encodes_nothing(caches, recorded, name):
    looks = []
    slow, expected = trained(name, EpisodeData(str(recorded), splits=(0.6, 0.2, 0.2), **WINDOWS))
    fast, losses = trained(name, FeatureData(str(caches[name]), **WINDOWS), looks)
    assert not looks and len(losses) == 8
    assert losses == pytest.approx(expected, abs=1e-5)
    for (key, one), other in zip(slow.world.state_dict().items(), fast.world.state_dict().values()):
        assert torch.allclose(one, other, atol=1e-4), key


def test_a_cache_of_other_weights_or_a_model_that_looks_itself_is_refused(caches):
    data = FeatureData(str(caches["vit"]), **WINDOWS)
    with pytest.raises(InputError, match="other weights than the encoder has"):
        trained("still", data)
    learning = WorldModel(encoder("vit"), ActionPredictor(12, 16, 1, 2, 3, 4), EMA(), 2)
    with pytest.raises(InputError, match="whose encoder is frozen"):
        trained("vit", FeatureData(str(caches["vit"]), **WINDOWS), target=learning)


def test_pooled_latents_and_missing_parts_are_told(recorded, tmp_path):
    data = EpisodeData(str(recorded), splits=(0.6, 0.2, 0.2), **WINDOWS)
    pooled = embed(FrozenEncoder(encoder()), data, tmp_path / "pooled", pool="mean")
    with pytest.raises(InputError, match="pool=none"):
        FeatureEpisodes(pooled)
    some = embed(FrozenEncoder(encoder()), data, tmp_path / "some", splits=("train",))
    with pytest.raises(InputError, match="no episodes of the val split"):
        FeatureData(str(some), **WINDOWS).clips("val")


def test_the_configs_encode_once_and_train_from_that(workshop, jepa, tmp_path):
    workshop.data("droid")
    weights, eyes = tmp_path / "encoder.safetensors", StillViT(32, 2, 2, 16, 12, 1, 2, 2.0)
    save_file(eyes.state_dict(), weights)
    sizes = {"dim": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
    flags = [f"--world.encoder.init_args.{name}={value}" for name, value in sizes.items()]
    both = ("--vars.size=32", f"--vars.weights={weights}")
    cache = tmp_path / "features"
    assert jepa("embed", "-c", "embed/vjepa2_ac_droid", f"--out={cache}", *both, *flags).code == 0
    small = {"dim": 12, "encoder_depth": 1, "encoder_heads": 2, "mlp_ratio": 2.0, "width": 16, "depth": 1, "heads": 2}
    small |= {"grid": [2, 2], "run": "from_features", "steps": 4, "check": 4}
    fit = [f"--vars.{name}={value}" for name, value in small.items()]
    fit += ["--data.class_path=jepa.tasks.feature_data.FeatureData", f"--data.path={cache}", "--data.frames=4"]
    fit += ["--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    told = jepa("fit", "-c", "pretrain/vjepa2_ac_droid", *both, *fit)
    assert told.code == 0, told.err
    world = load(str(workshop.folder / "runs/from_features/last.ckpt"))
    assert all(torch.equal(one, other) for one, other in zip(world.encoder.parameters(), eyes.parameters()))
    assert fingerprint(FrozenEncoder(world.encoder)) == read_meta(cache)["weights"]


def test_weights_of_the_encoder_are_loaded_strictly(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_file({"patch_embed.bias": torch.zeros(12)}, path)
    with pytest.raises(InputError, match="does not fit the encoder"):
        StillViT(32, 2, 2, 16, 12, 1, 2, 2.0, weights=str(path))
    with pytest.raises(InputError, match="no weights of the encoder"):
        StillViT(32, 2, 2, 16, 12, 1, 2, 2.0, weights=str(tmp_path / "none.safetensors"))
