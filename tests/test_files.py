"""A file is there whole or not at all."""

import os
from pathlib import Path

import pytest

from jepa.files import replacing


def test_it_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "clip.mp4"
    with replacing(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent and partial.suffix == ".mp4" and not path.exists()
        assert partial.name.startswith(".")  # what scans a folder passes over it
    assert path.read_text() == "new" and os.listdir(path.parent) == ["clip.mp4"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError(), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("lasting", [True, False])
def test_a_lasting_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch, lasting: bool) -> None:
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("disk"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    with replacing(tmp_path / "a", lasting) as partial:
        partial.write_text("new")
    assert done == (["disk", "name"] if lasting else ["name"])
