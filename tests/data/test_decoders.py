"""Every decoder numbers frames alike, by their time of presentation, and reads them in any order."""

from __future__ import annotations

import builtins
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from footage import FRAMES, KINDS, UNEVEN, film, kind, numbers, real_clips, sound, turned
from PIL import Image, ImageOps

from jepa.data import decord, pyav, torchcodec
from jepa.data.decoders import DECODERS, Reader, Unreadable, check_decoder, open_video
from jepa.errors import InputError

# what decord does not read, or misreads: the index names PyAV for these (tests/data/test_index.py)
BEYOND_DECORD = {"open.mp4", "av1.mp4"}
PAIRS = [(decoder, name) for decoder in DECODERS for name in KINDS if decoder != "decord" or name not in BEYOND_DECORD]
SCATTERED = (39, 3, 3, 20, 0, 12, 11, 13, 38, 25)
TORCHCODEC_OVER_PYAV = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from pathlib import Path
from footage import KINDS, kind, numbers
from jepa.data.decoders import open_video
from jepa.data.probe import probe
for name in KINDS:
    path = Path({folder!r}) / name
    with open_video(path, "torchcodec") as reader, open_video(path, "pyav") as other:
        assert np.array_equal(reader.times, other.times)
        wanted = np.array({wanted})
        assert numbers(reader.decode(wanted)) == wanted.tolist(), name
        assert np.abs(reader.decode(wanted).astype(int) - other.decode(wanted)).mean() < 1
        assert np.array_equal(reader.decode(wanted, lambda *_: (1, 3, 9, 11)), reader.decode(wanted)[:, 1:10, 3:14])
        assert (reader.height, reader.width, reader.codec) == (other.height, other.width, other.codec)
with open_video(Path({folder!r}) / "turned.mp4", "torchcodec") as reader:
    assert (reader.height, reader.width) == (96, 64)
assert probe(Path({folder!r}) / "uneven.mp4", "torchcodec").reason == ""
assert probe(kind(Path({folder!r}), "refreshed.mp4"), "torchcodec").reason, "other frames were taken for right"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name in KINDS:
        kind(folder, name)
    turned(folder / "turned.mp4", folder / "constant.mp4")
    return folder


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    if request.param == "torchcodec":
        try:
            check_decoder("torchcodec")
        except InputError as error:
            pytest.skip(f"its library cannot be loaded here: {error}")
    return request.param


@pytest.mark.parametrize(("decoder", "name"), PAIRS, indirect=["decoder"])
def test_frames_are_the_ones_asked_for(folder: Path, decoder: str, name: str) -> None:
    with open_video(folder / name, decoder) as reader:
        assert isinstance(reader, Reader)
        times = np.array(UNEVEN) / 1000 if name.startswith("uneven") else np.arange(FRAMES) / 10
        assert reader.times.dtype == np.float64
        np.testing.assert_allclose(reader.times, times - times[0], atol=1e-6)
        for wanted in (SCATTERED, SCATTERED[::-1], range(FRAMES), range(0, FRAMES, 3), [39], [0], [22, 23]):
            pixels = reader.decode(np.array(wanted))
            assert pixels.dtype == np.uint8 and pixels.shape[1:] == (reader.height, reader.width, 3)
            assert numbers(pixels) == list(wanted)
        for wrong in ([FRAMES], [-1]):
            with pytest.raises(IndexError, match=f"has {FRAMES} frames"):
                reader.decode(np.array(wrong))


@pytest.mark.parametrize(("decoder", "name"), PAIRS, indirect=["decoder"])
def test_a_region_is_a_part_of_the_whole_frames(folder: Path, decoder: str, name: str) -> None:
    wanted = np.array([39, 3, 3, 20])
    with open_video(folder / name, decoder) as reader:
        pixels = reader.decode(wanted)
        for box in ((1, 31, 33, 35), (0, 0, 64, 96), (0, 95, 64, 1)):
            top, left, height, width = box
            sizes = []
            found = reader.decode(wanted, lambda *size, box=box, sizes=sizes: sizes.append(size) or box)
            np.testing.assert_array_equal(found, pixels[:, top : top + height, left : left + width])
            assert set(sizes) == {(64, 96)} == {(reader.height, reader.width)}
        for wrong in ((0, 0, 65, 96), (-1, 0, 9, 9), (0, 90, 9, 7), (0, 0, 0, 9)):
            with pytest.raises(AssertionError, match=f"{name}: .* not within 64 x 96"):
                reader.decode(wanted, lambda *_, box=wrong: box)
        assert numbers(reader.decode(wanted)) == wanted.tolist()  # the reader goes on


@pytest.mark.parametrize("clip", real_clips(), ids=lambda path: path.stem)
def test_decoders_agree_on_real_clips(clip: Path) -> None:
    with open_video(clip, "decord") as one, open_video(clip, "pyav") as other:
        np.testing.assert_allclose(one.times, other.times, atol=1e-6)
        wanted = np.array([len(one.times) - 1, 5, 60, 61, 5, 100])
        first, second = one.decode(wanted), other.decode(wanted)
        assert np.abs(first.astype(int) - second).mean() < 1 and np.array_equal(first[1], first[4])


def test_rotated_files_are_upright_in_every_decoder(folder: Path) -> None:
    with open_video(folder / "turned.mp4", "decord") as one, open_video(folder / "turned.mp4", "pyav") as other:
        assert (one.height, one.width) == (other.height, other.width) == (96, 64)
        assert np.abs(one.decode(np.array([30])).astype(int) - other.decode(np.array([30]))).mean() < 1


def test_torchcodec_by_the_libraries_of_pyav(folder: Path, tmp_path: Path) -> None:
    """The wheel of PyAV carries the libraries that torchcodec looks for, under other names."""
    import av

    carried = Path(av.__file__).parents[1] / "av.libs"
    if not carried.is_dir() or not sys.platform.startswith("linux"):
        pytest.skip("this PyAV carries no libraries")
    for file in carried.glob("lib*-*.so.*"):
        stem, _, version = file.name.partition(".so.")
        (tmp_path / f"{stem.rpartition('-')[0]}.so.{version.split('.')[0]}").symlink_to(file)
    code = TORCHCODEC_OVER_PYAV.format(tests=str(Path(__file__).parent), folder=str(folder), wanted=list(SCATTERED))
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    if "does not load" in done.stderr:
        pytest.skip(f"torchcodec takes none of them: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_whatever_else_their_tags_hold(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tags)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    with open_video(tmp_path / "a.png") as reader:
        assert np.array_equal(reader.decode(np.array([0]))[0], upright)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif"])
def test_images_of_16_bits_keep_the_upper_ones(tmp_path: Path, name: str) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (4, 6)).astype(np.uint16)
    Image.fromarray(grey.astype(">u2" if name == "big.tif" else "<u2")).save(tmp_path / name)
    with open_video(tmp_path / name) as reader:
        assert np.array_equal(reader.decode(np.array([0]))[0], np.repeat((grey >> 8)[..., None], 3, axis=2))
    for numbers_of in (np.int32, np.float32):
        Image.fromarray(grey.astype(numbers_of)).save(tmp_path / "boundless.tif")
        with pytest.raises(Unreadable, match="pixels of no known range"):
            open_video(tmp_path / "boundless.tif").__enter__()


def test_whatever_pillow_raises_tells_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    for error in (struct.error("required argument"), RuntimeError("no planes"), IndexError(), NotImplementedError()):
        monkeypatch.setattr(Image.Image, "getexif", lambda image, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(Unreadable, match="a.png cannot be read as an image"):
            open_video(tmp_path / "a.png").__enter__()


def test_only_what_is_needed_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV: one frame costs those from its key frame on; decord: dense key frames are read through without a seek."""
    counted = []
    with open_video(folder / "constant.mp4", "pyav") as reader:
        decoded = reader._decoded
        counting = lambda *args: (counted.append(one) or one for one in decoded(*args))  # noqa: E731
        monkeypatch.setattr(reader, "_decoded", counting)
        reader.decode(np.array([26]))
        assert 1 <= len(counted) <= 3  # frames 24, 25 and 26
        reader.decode(np.array([26, 37]))
        assert len(counted) <= 3 + 3 + 2
    with open_video(folder / "dense.mp4", "decord") as reader:
        assert reader._dense(np.arange(0, 40, 3)) and not reader._dense(np.array([1, 39]))
    with open_video(folder / "constant.mp4", "decord") as reader:
        assert not reader._dense(np.arange(0, 40, 3))


def test_images_are_videos_of_one_frame(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = (255, 0, 0)
    image = Image.fromarray(pixels)
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera was turned: show it by a quarter clockwise
    image.save(tmp_path / "a.JPG", exif=tags, quality=95)
    with open_video(tmp_path / "a.JPG") as reader:
        assert isinstance(reader, Reader) and reader.times.tolist() == [0.0] and reader.codec == "jpeg"
        assert (reader.height, reader.width) == (30, 20)
        shown = reader.decode(np.array([0, 0]))
        assert np.array_equal(reader.decode(np.array([0, 0]), lambda *_: (3, 5, 7, 9)), shown[:, 3:10, 5:14])
        assert shown.shape == (2, 30, 20, 3) and shown[0, 5, 10, 0] > 240 and shown[1, 25, 10, 0] < 15
        with pytest.raises(IndexError):
            reader.decode(np.array([1]))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(Unreadable, match="b.png cannot be read as an image"):
        open_video(tmp_path / "b.png").__enter__()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    with open_video(tmp_path / "grey.png", "torchcodec") as reader:
        assert reader.decode(np.array([0])).shape == (1, 20, 30, 3)


def test_broken_files_are_one_line(tmp_path: Path, decoder: str) -> None:
    film(tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    broken = {"zero.mp4": b"", "text.mp4": b"hello\n" * 99, "cut.mp4": content[: len(content) // 2]}
    for name, written in broken.items():
        (tmp_path / name).write_bytes(written)
    sound(tmp_path / "sound.mp4")
    for name in (*broken, "sound.mp4", "missing.mp4"):
        with pytest.raises(Unreadable, match=name) as raised:
            open_video(tmp_path / name, decoder).__enter__()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400 and raised.value.reason


def test_readers_leave_no_file_open(tmp_path: Path, decoder: str) -> None:
    film(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    for _ in range(3):
        with open_video(tmp_path / "a.mp4", decoder) as reader:
            reader.decode(np.array([7]))
        with pytest.raises(Unreadable):
            open_video(tmp_path / "b.mp4", decoder).__enter__()
        opened = {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _link(number)}
        assert not any(str(tmp_path) in target for target in opened)


def _link(number: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{number}")


@pytest.mark.parametrize("module", [decord, pyav, torchcodec], ids=DECODERS)
def test_a_missing_library_says_what_to_do(module, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module.__name__.rpartition(".")[2]
    imported = {"pyav": "av"}.get(name, name)
    real = builtins.__import__

    def without(wanted, *args, **options):
        if wanted.split(".")[0] == imported:
            raise ImportError(f"No module named {wanted!r}")
        return real(wanted, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    module.package.cache_clear()
    try:
        then = "; every video needs it" if name == "pyav" else ", or choose decoder"
        with pytest.raises(InputError, match=f"the decoder {name} does not load .*pip install .*{then}"):
            open_video("a.mp4", name).__enter__()
    finally:
        module.package.cache_clear()


def test_an_unknown_decoder() -> None:
    with pytest.raises(InputError, match="did you mean 'decord'"):
        open_video("a.mp4", "decrod").__enter__()
