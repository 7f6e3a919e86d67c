"""Tiny datasets, checkpoints and feature caches, made once per session, where possible through the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core: their threads would fight over it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what it puts in the background like that
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent / "data"))

from filmed import film  # noqa: E402

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = {  # name of a dataset in the configs -> how a tiny one is collected
    "two_rooms": ("--script=wander", "--episodes=12", "--steps=24"),
    "two_rooms_random": ("--script=wander", "--episodes=12", "--steps=24"),
    "pusht": ("--script=contact", "--episodes=4", "--steps=42", "--num=4"),
    "reacher": ("--script=smooth", "--episodes=4", "--steps=42", "--num=4"),
    "point_maze": ("--script=smooth", "--episodes=4", "--steps=42", "--num=4"),
    "ogbench_cube": ("--script=oracle", "--episodes=4", "--steps=42", "--num=4"),
    "metaworld_reach": ("--script=expert", "--episodes=4", "--steps=42", "--num=4"),
}
SMALL_WORLD = {"dim": 16, "width": 32, "depth": 1, "heads": 4, "convolutions": [4, 8, 8], "frames": 5, "rollout": 4}
SMALL_WORLD |= {"encoder_depth": 1, "encoder_heads": 2, "mlp_ratio": 2.0}
SMALL_FIT = (
    "--data.batch_size=4",
    "--data.windows_per_epoch=16",
    "--data.val_windows=4",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)
# datasets of videos in the configs
FILMS = ("k710", "ssv2", "howto100m", "yt1b", "moving_digits/train", "moving_digits/test")
IMAGES = ("images", "lvd142m", "imagenet/train")
SMALL_VARS = {  # of the masked models
    "steps": 4,
    "check": 4,
    "warmup": 1,
    "nodes": 1,
    "size": 64,
    "patch": 8,
    "frames": 4,
    "dim": 16,
    "depth": 4,
    "heads": 2,
    "levels": [0, 1, 2, 3],
    "width": 32,
    "predictor_depth": 1,
    "predictor_heads": 2,
}
SMALL_MASKED = (
    "--data.batch_size=4",
    "--data.workers=0",
    "--data.clips_per_epoch=8",
    "--data.val_clips=4",
    "--data.time_limit=null",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.strategy=auto",
    "--trainer.devices=1",
)


def small_world(given: dict[str, object]) -> list[str]:
    """Flags that shrink the run of a world model with these variables."""
    return [*(f"--vars.{name}={value}" for name, value in SMALL_WORLD.items() if name in given), *SMALL_FIT]


def small_masked(given: dict[str, object]) -> list[str]:
    """Flags that shrink the run of a masked model with these variables."""
    small = {name: value for name, value in SMALL_VARS.items() if name in given}
    small["grid"] = [2 if "frames" in given else 1, 8, 8]
    return [*(f"--vars.{name}={value}" for name, value in small.items()), *SMALL_MASKED]


def record(path: Path) -> None:
    """Noise, with actions and poses as wide as those of DROID's robot."""
    from jepa.data.hdf5 import Hdf5Writer
    from jepa.schema import ActionSpec, ObservationSpec, Specs

    ones, zeros, random = (1.0,) * 7, (0.0,) * 7, np.random.default_rng(0)
    space = ActionSpec((-1.0,) * 7, ones, zeros, ones)
    with Hdf5Writer(path, Specs(space, ObservationSpec(32, 32, proprio_mean=zeros, proprio_std=ones))) as writer:
        for _ in range(4):
            video = random.integers(256, size=(12, 3, 32, 32), dtype=np.uint8)
            writer.append(video, random.normal(size=(11, 7)).astype("f4"), random.normal(size=(12, 7)).astype("f4"))


@dataclass
class Answer:
    """What a command left behind: its exit code and its two streams."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line that a wrong input gets."""
        lines = self.err.strip().splitlines()
        told = [line for line in lines if line.startswith("jepa: ")]
        assert self.code == 2 and len(told) == 1 and lines[-1] == told[0], f"exit code {self.code}\n{self.err}"
        assert "Traceback" not in self.err + self.out
        return told[0]


class Workshop:
    """A folder in which the paths of the configs hold, and commands that make in it what is asked for, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *args: object) -> None:
        from jepa.cli import main

        with _chdir(self.folder):
            assert main([str(arg) for arg in args]) == 0

    def data(self, name: str) -> Path:
        path = self.folder / "data" / f"{name}.h5"
        if not path.exists():
            record(path) if name == "droid" else self.run("collect", name, f"--out={path}", *DATA[name])
        return path

    def checkpoint(self, run: str) -> Path:
        """Of the shrunk fit of the config whose vars.run this is."""
        path = self.folder / "runs" / run / "last.ckpt"
        if not path.exists():
            config = next(file for file in CONFIGS.glob("pretrain/*.yaml") if variables(file)["run"] == run)
            given = variables(config)
            if given.get("data") in (*DATA, "droid"):
                self.data(given["data"])
                self.run("fit", "-c", config, *small_world(given))
            else:
                self.videos()
                if given.get("start"):
                    self.checkpoint(Path(given["start"]).parent.name)
                self.run("fit", "-c", config, *small_masked(given))
        return path

    def videos(self) -> None:
        """The folders of videos and images that the configs name, a few files each."""
        if (self.folder / "data" / FILMS[0]).exists():
            return
        random = np.random.default_rng(0)
        for name in (*FILMS, *IMAGES):
            folder = self.folder / "data" / name
            folder.mkdir(parents=True)
            for number in range(6):
                coarse = random.integers(256, size=(24, 6, 8, 3), dtype=np.uint8)
                frames = coarse.repeat(12, axis=1).repeat(12, axis=2)
                if name in FILMS:
                    film(folder / f"{number}.mp4", frames)
                else:
                    Image.fromarray(frames[0]).save(folder / f"{number}.png")
        self._label("moving_digits/train"), self._label("moving_digits/test")

    def _label(self, name: str) -> None:
        from jepa.data.index import VideoIndex

        folder, number = self.folder / "data" / name, np.arange(6)
        labels = {"direction": number, "speed": number % 3, "digit": number}
        VideoIndex.open(folder, workers=1).with_labels(labels).write(folder / "index.parquet")

    def features(self, run: str, baseline: str = "") -> Path:
        """Of the trained encoder, or of a baseline: untrained, pixels."""
        path = self.folder / "runs" / run / "_".join(filter(None, ("features", baseline)))
        if not path.exists():
            self.checkpoint(run)
            configs = [file for file in sorted(CONFIGS.glob("embed/*.yaml")) if variables(file)["run"] == run]
            config = next(file for file in configs if ("pixels" in file.stem) == (baseline == "pixels"))
            given = variables(config)
            small = [f"--vars.{name}={SMALL_VARS[name]}" for name in ("size", "frames") if name in given]
            small += ["--world.untrained=true"] if baseline == "untrained" else []
            self.run("embed", "-c", config, f"--out={path}", *small)
        return path


@contextlib.contextmanager
def _chdir(folder: Path):
    """contextlib.chdir, which Python 3.10 lacks."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def variables(config: Path) -> dict[str, object]:
    return yaml.safe_load(config.read_text()).get("vars", {})


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


class Command:
    """Runs commands in the workshop and holds what they say: ``jepa("inspect", path).out``."""

    def __init__(self, capture: pytest.CaptureFixture) -> None:
        self.capture = capture

    def __call__(self, *args: object) -> Answer:
        from jepa.cli import main

        self.capture.readouterr()
        code = main([str(arg) for arg in args])
        return Answer(code, *self.capture.readouterr())

    def print(self, *args: object) -> str:
        """What a command prints that ends the process with success, as --print_config and --help do."""
        with pytest.raises(SystemExit) as left:
            self(*args)
        assert left.value.code in (0, None)
        return self.capture.readouterr().out


@pytest.fixture
def jepa(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Command:
    monkeypatch.chdir(workshop.folder)
    return Command(capfd)
