"""The verb ``jepa propose``, from a dataset and a checkpoint to a plan that starts from the proposal."""

from dataclasses import replace

import pytest

from jepa.checkpoints import load
from jepa.errors import InputError
from jepa.evaluation import Report
from jepa.models.proposal import load_proposal
from jepa.schema import EvalSpec
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
    for wrong, word in ((["--out=guess.bin"], "NAME.safetensors"), (["--reach=[90]"], "no episode has")):
        assert word in jepa("propose", *world, f"--episodes={data}", f"--out={out}", *small, *wrong).complaint()


def test_a_dataset_of_another_environment_is_refused(workshop, tmp_path):
    world = load(str(workshop.checkpoint("two_rooms")))
    world.specs = replace(world.specs, evaluation=EvalSpec(env="Reacher-v5"))
    with pytest.raises(InputError, match="Reacher-v5"):
        propose(world, workshop.data("two_rooms"), tmp_path / "guess.safetensors")
