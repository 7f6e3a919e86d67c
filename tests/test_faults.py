"""What bad input gets: one line (given, expected, what to do next), exit code 2, and nothing lost."""

from __future__ import annotations

import importlib.util
import pickle
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

FIT = ("fit", "-c", "pretrain/two_rooms", "--vars.dim=16", "--trainer.max_steps=1")
PLAN = ("plan", "-c", "plan/two_rooms", "--pairs=1", "--decisions=0", "--floors=false", "--planner.iterations=1")


@pytest.fixture
def dataset(workshop) -> Path:
    return workshop.data("two_rooms")


@pytest.fixture
def checkpoint(workshop) -> Path:
    return workshop.checkpoint("two_rooms")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("fitt",), "unknown verb 'fitt' (did you mean 'fit'?)"),
        (("fit", "-c", "pretrain/two_romms"), "(did you mean 'pretrain/two_rooms'?)"),
        (("fit", "-c", "missing.yaml"), "no config 'missing.yaml'; the names are"),
        (("fit",), "required: data, model"),
        ((*FIT, "--trainer.max_step=3"), "unknown key 'trainer.max_step' (did you mean 'trainer.max_steps'?)"),
        ((*FIT, "--vars.dmi=16"), "no config refers to ${vars.dmi} (did you mean 'dim'?); known: "),
        ((*FIT, "--modle=3"), "unknown key 'modle' (did you mean 'model'?)"),
        ((*FIT, "--data.batchsize=3"), "EpisodeData has no option 'batchsize' (did you mean 'batch_size'?)"),
        ((*FIT, "--model.world.encoder.init_args.dmi=3"), "ConvNet has no option 'dmi' (did you mean 'dim'?)"),
        ((*FIT, "--model.objectives.rollout.weigth=3"), "no option 'weigth' (did you mean 'weight'?)"),
        ((*FIT, "--trainer.max_steps=many"), "Got value: many"),
        ((*FIT, "--trainer.devices=0"), "the trainer cannot be built"),
        ((*FIT, "--trainer.strategy=fsdp9"), "the trainer cannot be built"),
        ((*FIT, "--trainer.accumulate_grad_batches=0"), "accumulate_grad_batches is 0, expected at least 1"),
        ((*FIT, "--trainer.num_nodes=2"), "this run is for 2 machines"),
        ((*FIT, "--trainer.num_nodes=0"), "the trainer cannot be built"),
        ((*FIT, "--data.batch_size=0"), "batch_size is 0, expected at least 1"),
        ((*FIT, "--data.windows_per_epoch=0"), "windows_per_epoch is 0, expected at least 1"),
        ((*FIT, "--model.optimizer.start=-1"), "Optimizer(start=-1"),
        ((*FIT, "--model.optimizer.betas=[2,0.9]"), "betas=(2"),
        ((*PLAN, "--planner.candidate=3"), "CEM has no option 'candidate' (did you mean 'candidates'?)"),
        ((*PLAN, "--planner=jepa.planning.CEMM"), "(did you mean 'CEM'?)"),
        ((*PLAN, "--protocol=two_rooms/v9"), "(did you mean 'two_rooms/v1'?)"),
        (("probe", "-c", "probe/linear", "--probe.rigde=1"), "no option 'rigde' (did you mean 'ridge'?)"),
        (("collect", "two_rooms", "--out=new.h5", "--episode=3"), "(did you mean 'episodes'?)"),
        (("collect", "two_rooms", "--out=new.h5", "--script=wandr"), "(did you mean 'wander'?)"),
        (("collect", "two_rooms", "--out=new.h5", "--options.layuot=random"), "(did you mean 'layout'?)"),
        (("collect", "two_roms", "--out=new.h5"), "unknown environment 'two_roms' (did you mean 'two_rooms'?)"),
        (("collect", "Nothing-v0", "--out=new.h5"), "unknown environment 'Nothing-v0'"),
        (("inspect", "nothing"), "nothing at nothing; give a dataset"),
        (("validate", *FIT[1:]), "validate was given no checkpoint; name one with --ckpt_path"),
        ((*FIT, "--ckpt_path=nothing.ckpt"), "no checkpoint at nothing.ckpt"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, tuple) else "",
)
def test_a_misspelt_command(command, told, jepa, checkpoint):
    assert told in jepa(*command).complaint()
    assert not Path("new.h5").exists() and not Path("new.h5.part").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modle: 3", "unknown key 'modle' (did you mean 'model'?)"),
        ("trainer: {max_step: 3}", "unknown key 'trainer.max_step' (did you mean 'trainer.max_steps'?)"),
        ("data: {class_path: jepa.data.module.EpisodeData, init_args: {pth: a}}", "no option 'pth'"),
        ("data: {class_path: jepa.data.module.EpisodesData}", "(did you mean 'EpisodeData'?)"),
        ("data: {class_path: jepa.data.module.EpisodeData, init_args: {path: '${vars.nmae}'}}", "give --vars.nmae="),
        ("trainer: {max_steps: [", "cannot be read as YAML"),
        ("", "holds nothing, expected keys and values"),
        ("- a", "holds a list, expected keys and values"),
    ],
)
def test_a_misspelt_config(text, told, jepa, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    assert told in jepa("fit", "-c", tmp_path / "run.yaml").complaint()


def edit(action):
    """A way to break a copy of a dataset through h5py."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            action(file)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put(value: float):
    def action(file: h5py.File) -> None:
        file["action"][3] = value

    return edit(action)


def no_specs_but_wide_actions(file: h5py.File) -> None:
    """A plain file of three actions, as another program writes it."""
    rows = file["action"][:]
    del file["action"]
    for name in ("specs", "format", "version", "finished"):
        del file.attrs[name]
    file["action"] = np.pad(np.nan_to_num(rows), ((0, 0), (0, 1)))


BROKEN = {
    "missing": (Path.unlink, "is no file; collect it first"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (cut, "is truncated or damaged; copy or collect it again"),
    "another format": (lambda path: path.write_text("a,b\n1,2\n"), "is not an HDF5 file"),
    "another version": (
        edit(lambda file: file.attrs.modify("version", 9)),
        "version 9, expected 'jepa.episodes' version 1",
    ),
    "without a column": (edit(lambda file: file.__delitem__("action")), "has no column 'action'"),
    "NaN actions": (put(float("nan")), "action of episode 0, step 3 is NaN or infinite"),
    "infinite actions": (put(float("inf")), "action of episode 0, step 3 is NaN or infinite"),
}


@pytest.mark.parametrize("verb", ["fit", "embed", "inspect"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_dataset(verb, kind, jepa, dataset, checkpoint, tmp_path):
    path = tmp_path / "broken.h5"
    shutil.copy(dataset, path)
    damage, told = BROKEN[kind]
    damage(path)
    if verb == "inspect":
        complaint = jepa("inspect", path).complaint()
        assert (told if kind != "missing" else "nothing at") in complaint
    elif verb == "fit":
        logs = state("runs")
        assert told in jepa(*FIT, f"--data.path={path}").complaint()
        assert not lost(logs)
    else:
        assert told in jepa("embed", "-c", "embed/two_rooms", f"--data.path={path}", f"--out={tmp_path}/f").complaint()
        assert not list(tmp_path.glob("*f*")), "a piece of a feature cache is left"


def state(folder: str) -> dict[Path, bytes]:
    """The checkpoints and curves of all runs."""
    kept = (".ckpt", ".csv")
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.suffix in kept}


def lost(before: dict[Path, bytes]) -> list[Path]:
    return [path for path, data in before.items() if not path.is_file() or path.read_bytes() != data]


@pytest.fixture(scope="module")
def other_data(workshop, tmp_path_factory) -> dict[str, Path]:
    """Datasets that the checkpoint was not made for."""
    folder = tmp_path_factory.mktemp("other")
    small, wide = folder / "small.h5", folder / "wide.h5"
    workshop.run("collect", "two_rooms", f"--out={small}", "--size=32", "--episodes=8", "--steps=24")
    shutil.copy(workshop.data("two_rooms"), wide)
    edit(no_specs_but_wide_actions)(wide)
    return {"small": small, "wide": wide}


@pytest.mark.parametrize(
    ("other", "told"),
    [("small", ("3x64x64", "3x32x32")), ("wide", ("the action width is 2 there and 3 here",))],
)
@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_data_of_another_size_than_the_checkpoint(verb, other, told, jepa, checkpoint, other_data):
    before = state("runs")
    complaint = jepa(verb, *FIT[1:], f"--data.path={other_data[other]}", f"--ckpt_path={checkpoint}").complaint()
    assert all(part in complaint for part in told) and str(checkpoint) in complaint
    assert not lost(before)


def test_data_of_another_size_is_not_embedded(jepa, checkpoint, other_data, tmp_path):
    embed = ("embed", "-c", "embed/two_rooms", f"--out={tmp_path}/f")
    assert "(3, 32, 32)" in jepa(*embed, f"--data.path={other_data['small']}").complaint()
    assert "actions of width 3" in jepa(*embed, f"--data.path={other_data['wide']}").complaint()


def test_a_new_model_for_frames_of_another_size(jepa, other_data):
    assert "32x32 pixels, but the encoder expects 64x64" in jepa(*FIT, f"--data.path={other_data['small']}").complaint()


def test_planning_in_another_environment(jepa, checkpoint, tmp_path):
    """Other frames, actions and id at once: the checkpoint names the environment that it is for."""
    plan = (*PLAN, f"--out={tmp_path}/plan")
    complaint = jepa(*plan, "--protocol=two_rooms_random/v1", "--world.path=nothing.ckpt").complaint()
    assert "no checkpoint at nothing.ckpt" in complaint
    torch_file = torch.load(checkpoint, weights_only=True)
    torch_file["jepa"]["specs"]["action"] |= {name: [1.0] * 3 for name in ("low", "high", "mean", "std")}
    torch_file["state_dict"] = {}
    torch.save(torch_file, tmp_path / "wide.ckpt")
    assert "does not fit the model" in jepa(*plan, f"--world.path={tmp_path}/wide.ckpt").complaint()
    complaint = jepa(*plan, f"--world.path={tmp_path}/wide.ckpt", "--world.untrained=true").complaint()
    assert "action.high" in complaint and "train on episodes of this one" in complaint
    assert not (tmp_path / "plan").exists()


class Payload:
    """A pickled object that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


CHECKPOINTS = {
    "truncated": "is truncated or damaged",
    "empty": "is truncated or damaged",
    "a pickled object": "holds pickled objects, or is damaged or no checkpoint",
    "a pickled object in a checkpoint": "holds pickled objects, or is damaged or no checkpoint",
    "another program's": "was not written by `jepa fit`",
    "another version": "has checkpoint format 9, this version of jepa reads format 1",
}


@pytest.fixture
def bad_checkpoint(request, checkpoint, tmp_path) -> Path:
    path, kind = tmp_path / "bad.ckpt", request.param
    content = torch.load(checkpoint, weights_only=True)
    if kind == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:-2000])
    elif kind == "empty":
        path.touch()
    elif kind == "a pickled object":
        path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    elif kind == "a pickled object in a checkpoint":
        torch.save(content | {"loops": Payload(tmp_path / "ran")}, path)
    elif kind == "another program's":
        torch.save({"state_dict": content["state_dict"]}, path)
    else:
        torch.save(content | {"jepa": content["jepa"] | {"format": 9}}, path)
    return path


@pytest.mark.parametrize("verb", ["fit", "validate", "embed", "plan", "inspect"])
@pytest.mark.parametrize("bad_checkpoint", CHECKPOINTS, indirect=True)
def test_a_broken_checkpoint(verb, bad_checkpoint, request, jepa, tmp_path):
    commands = {
        "fit": (*FIT, f"--ckpt_path={bad_checkpoint}"),
        "validate": ("validate", *FIT[1:], f"--ckpt_path={bad_checkpoint}"),
        "embed": ("embed", "-c", "embed/two_rooms", f"--world.path={bad_checkpoint}", f"--out={tmp_path}/features"),
        "plan": (*PLAN, f"--world.path={bad_checkpoint}", f"--out={tmp_path}/plan"),
        "inspect": ("inspect", bad_checkpoint),
    }
    before, kind = state("runs"), request.node.callspec.params["bad_checkpoint"]
    complaint = jepa(*commands[verb]).complaint()
    assert CHECKPOINTS[kind] in complaint and str(bad_checkpoint) in complaint
    assert not (tmp_path / "ran").exists(), "code in the file was run"
    assert not lost(before) and {path.name for path in tmp_path.iterdir()} == {"bad.ckpt"}


def test_the_payload_would_have_run(tmp_path):
    """The proof above is one: whoever unpickles the object runs its code."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


def test_resuming_with_another_model(jepa, checkpoint):
    before = state("runs")
    complaint = jepa(*FIT, "--vars.dim=32", f"--ckpt_path={checkpoint}").complaint()
    assert "the checkpoint is of another model" in complaint and "config.yaml" in complaint
    assert not lost(before)


@pytest.mark.parametrize("env", ["gym_pusht/PushT-v0", "PointMaze_UMaze-v3", "pusht", "point_maze"])
def test_a_simulator_that_is_not_installed(env, jepa, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    hidden = ("gym_pusht", "gymnasium_robotics")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    assert "pip install 'jepa[robots]'" in jepa("collect", env, f"--out={tmp_path}/a.h5").complaint()
    assert not list(tmp_path.iterdir())


@contextmanager
def room(size: int):
    """Writes beyond the first ``size`` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_collection(jepa, dataset, tmp_path):
    finished = tmp_path / "finished.h5"
    shutil.copy(dataset, finished)
    before = finished.read_bytes()
    with room(60_000):
        complaint = jepa("collect", "two_rooms", f"--out={tmp_path}/a.h5", "--episodes=60", "--num=4").complaint()
    assert "no room on the disk" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["finished.h5"] and finished.read_bytes() == before


def test_no_room_for_a_checkpoint(jepa, dataset, checkpoint):
    """The next checkpoint of a run finds a full disk: the one before stays whole."""
    run = Path("runs/full")
    run.mkdir()
    shutil.copy(checkpoint, run / "last.ckpt")
    before = state("runs")
    with room(100_000):
        complaint = jepa(*FIT, "--vars.run=full", "--data.batch_size=4", f"--data.path={dataset}").complaint()
    assert "no room to write the checkpoint" in complaint and "resume with --ckpt_path last" in complaint
    assert not lost(before)
    assert [path.name for path in run.iterdir() if "ckpt" in path.name] == ["last.ckpt"]


def test_no_room_for_a_feature_cache(jepa, checkpoint, tmp_path):
    with room(5_000):
        complaint = jepa("embed", "-c", "embed/two_rooms", f"--out={tmp_path}/features").complaint()
    assert "no room for the feature cache" in complaint and not list(tmp_path.iterdir())


def test_no_room_for_a_report(jepa, checkpoint, tmp_path):
    with room(2_000):
        complaint = jepa(*PLAN, "--planner.first_iterations=1", f"--out={tmp_path}/plan").complaint()
    assert "free space or name another folder" in complaint and not list(tmp_path.glob("plan/*"))
