"""The verb ``jepa propose``, from a dataset and a checkpoint to a plan that starts from the proposal."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa.checkpoints import load
from jepa.data.hdf5 import Hdf5Episodes, Hdf5Writer
from jepa.errors import InputError
from jepa.evaluation import Report
from jepa.models.encoders import ViT
from jepa.models.predictors import ActionPredictor
from jepa.models.proposal import load_proposal
from jepa.models.proprio_world import ProprioWorld
from jepa.models.targets import Frozen
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Specs
from jepa.tasks import propose as module
from jepa.tasks.propose import propose


def test_a_proposal_is_fitted_and_planned_with(jepa, workshop, tmp_path):
    checkpoint, data = workshop.checkpoint("two_rooms"), workshop.data("two_rooms")
    world = ("--world.class_path=jepa.checkpoints.load", f"--world.init_args.path={checkpoint}")
    out = tmp_path / "guess.safetensors"
    small = ("--horizon=3", "--reach=[2,4]", "--steps=20", "--width=16")
    answer = jepa("propose", *world, f"--episodes={data}", f"--out={out}", *small)
    assert answer.code == 0 and "of the actions' variance" in answer.out
    assert load_proposal(str(out)).reach == (2, 4)
    proposal = ("--proposal.class_path=jepa.models.proposal.load_proposal", f"--proposal.init_args.path={out}")
    planner = ("--planner.candidates=8", "--planner.elites=6", "--planner.iterations=1")
    plan = ("-c", "plan/two_rooms", "--pairs=2", "--decisions=1", "--device=cpu", "--horizon=4")
    assert jepa("plan", *plan, *planner, *proposal, f"--out={tmp_path}").code == 0
    told = Report.load(tmp_path / "report.json").settings["proposal"]
    assert told["class"] == "GoalProposal" and told["reach"] == [2, 4]
    for wrong, word in (
        ("--out=guess.bin", "NAME.safetensors"),
        ("--reach=[90]", "no episode has"),
        ("--device=abacus", "device=abacus cannot be used"),
    ):
        assert word in jepa("propose", *world, f"--episodes={data}", f"--out={out}", *small, wrong).complaint()


def test_a_dataset_of_another_environment_is_refused(workshop, tmp_path):
    world = load(str(workshop.checkpoint("two_rooms")))
    world.specs = replace(world.specs, evaluation=EvalSpec(env="Reacher-v5"))
    with pytest.raises(InputError, match="Reacher-v5"):
        propose(world, workshop.data("two_rooms"), tmp_path / "guess.safetensors")


@pytest.fixture
def felt(tmp_path):
    """Four episodes of noise with proprioception, and a world that reads it."""
    ones, zeros, random = (1.0,) * 3, (0.0,) * 3, np.random.default_rng(0)
    space = ActionSpec((-1.0,) * 2, ones[:2], zeros[:2], ones[:2])
    specs = Specs(space, ObservationSpec(16, 16, proprio_mean=zeros, proprio_std=ones))
    with Hdf5Writer(tmp_path / "felt.h5", specs) as writer:
        for _ in range(4):
            video = random.integers(256, size=(9, 3, 16, 16), dtype=np.uint8)
            writer.append(video, random.normal(size=(8, 2)).astype("f4"), random.normal(size=(9, 3)).astype("f4"))
    torch.manual_seed(0)
    encoder = ViT(8, 16, 8, 16, 1, 2, "none", norm=False)
    world = ProprioWorld(encoder, ActionPredictor(13, 16, 1, 2, 3, 4, norm=False), Frozen(False))
    world.bind(Hdf5Episodes(tmp_path / "felt.h5").specs)
    return world.eval(), tmp_path / "felt.h5"


def test_a_world_that_feels_is_given_proprioception(felt, tmp_path, monkeypatch):
    world, data = felt
    store = Hdf5Episodes(data)
    monkeypatch.setattr(module, "FRAMES", 4)  # an episode of nine frames in three pieces
    ((z, action),) = module._read(world, store, [2], "cpu")
    whole = store.read(2, list(range(9)), ("video", "proprio"))
    assert torch.allclose(z, world.encode(whole.map(lambda part: part[None]))[0], atol=1e-5) and action.shape == (8, 2)
    out = tmp_path / "guess.safetensors"
    propose(world, data, out, horizon=2, reach=(1,), width=8, steps=2)
    assert load_proposal(str(out)).dim == 13, "eight channels of the encoder, five of proprioception"


def test_episodes_of_less_than_a_step_are_refused(felt, tmp_path):
    world, data = felt
    world.specs = replace(world.specs, action=replace(world.specs.action, block=9))
    with pytest.raises(InputError, match="no training episode of .*felt.h5 has more than 9 frames"):
        propose(world, data, tmp_path / "guess.safetensors")
