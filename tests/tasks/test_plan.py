"""The verb ``jepa plan``: a world that reads pixels, planned with in the real Two Rooms, from Python and from YAML."""

import json

import numpy as np
import pytest
import torch

from jepa.cli import main
from jepa.data.clips import split
from jepa.envs import two_rooms
from jepa.errors import InputError
from jepa.evaluation import PROTOCOLS, EvaluationProtocol, Report, compare
from jepa.planning import CEM, GoalLatent
from jepa.runtime import call
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Sample, Specs, World
from jepa.tasks.plan import plan, plan_compare

ROOMS = EvaluationProtocol("rooms/episodes", "jepa/TwoRooms-v0", goals="episodes", offset=10, budget=30, unsolved=True)


class SeesDots:
    """The latent is where the red dot is; forecasts are the true physics of the fixed rooms."""

    def __init__(self, env="jepa/TwoRooms-v0", bound=1.0, protocol=""):
        action = ActionSpec((-bound,) * 2, (bound,) * 2, (0.0, 0.0), (0.4, 0.4))
        self.specs = Specs(action, ObservationSpec(64, 64), EvalSpec(env, protocol=protocol))

    def encode(self, sample):
        red = sample.video[:, :, 0].float()
        grid = (torch.arange(64) + 0.5) / 64
        mass = red.sum((2, 3))
        centre = [(red.sum(2) * grid).sum(-1) / mass, (red.sum(3) * grid).sum(-1) / mass]
        return torch.stack(centre, -1).unsqueeze(2)

    def rollout(self, z, action, past=None):
        batch, plans, horizon, _ = action.shape
        start = z[:, -1, 0].repeat_interleave(plans, 0)
        room = torch.tensor([two_rooms.FIXED_WALL, two_rooms.FIXED_DOOR]).expand(len(start), 2)
        state, path = torch.cat([start, room], 1).numpy().astype(np.float32), []
        for moves in action.flatten(0, 1).unbind(1):
            state[:, :2] = two_rooms.move(state, moves.numpy())
            path.append(torch.from_numpy(state[:, :2].copy()))
        return torch.stack(path, 1).reshape(batch, plans, horizon, 1, 2)


def sees_dots() -> World:
    return SeesDots()


def run(out, **options):
    arguments = {
        "world": SeesDots(),
        "planner": CEM(hold=3),
        "cost": GoalLatent(reduce="sum", last_weight=3.0),
        "protocol": "two_rooms/v1",
        "horizon": 24,
        "execute": 4,
        "pairs": 6,
        "decisions": 2,
    }
    return plan(**arguments | options, out=out)


def test_a_run_writes_its_report_and_trajectories(tmp_path):
    report = run(tmp_path / "out", name="truth")
    assert report.rate > report.floors["random"].rate and report.floors["idle"].rate == 0
    loaded = Report.load(tmp_path / "out" / "report.json")
    assert loaded == report and loaded.settings["planner"]["class"] == "CEM" and loaded.settings["horizon"] == 24
    with np.load(tmp_path / "out" / "trajectories.npz", allow_pickle=False) as file:
        assert file["state"].shape == (6, 81, 4) and file["frame"].shape == (6, 3, 64, 64)
        solved = file["steps"] >= 0
        assert np.isfinite(file["state"][:, 0]).all() and solved.sum() == report.successes
    again = run(tmp_path / "again", against=tmp_path / "out" / "report.json", floors=False, decisions=0, num=4)
    assert again.steps == report.steps and again.comparison.p_value == 1.0


def test_a_world_for_another_environment_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    for world, word in ((SeesDots(env="Reacher-v5"), "Reacher-v5"), (SeesDots(bound=2.0), "action.high")):
        with pytest.raises(InputError, match=word):
            run(tmp_path / "out", world=world)
    with pytest.raises(InputError, match="did you mean"):
        run(tmp_path / "out", protocol="two_rooms/v2")
    with pytest.raises(InputError, match="no report at"):
        run(tmp_path / "out", against=tmp_path / "missing.json")
    with pytest.raises(InputError, match="needs a dataset"):
        monkeypatch.setitem(PROTOCOLS, "rooms/episodes", ROOMS)
        run(tmp_path / "out", protocol="rooms/episodes")
    with pytest.raises(InputError, match="leave it out"):
        run(tmp_path / "out", episodes=tmp_path / "some.h5")
    assert not (tmp_path / "out").exists()


def test_yaml_plugs_any_function_that_returns_a_world(tmp_path, monkeypatch):
    monkeypatch.setattr(two_rooms, "sees_dots", sees_dots, raising=False)
    sees_dots.__module__ = "jepa.envs.two_rooms"
    path = tmp_path / "plan.yaml"
    config = {
        "world": {"class_path": "jepa.envs.two_rooms.sees_dots"},
        "planner": {"class_path": "jepa.planning.ICEM", "init_args": {"candidates": 16, "elites": 4, "keep": 2}},
        "cost": {
            "class_path": "jepa.planning.WeightedSum",
            "init_args": {
                "costs": [
                    {"class_path": "jepa.planning.GoalLatent", "init_args": {"reduce": "sum"}},
                    {"class_path": "jepa.planning.ActionPenalty"},
                ],
                "weights": [1.0, 0.01],
            },
        },
        "protocol": "two_rooms/v1",
        "horizon": 6,
        "floors": False,
        "decisions": 0,
        "out": str(tmp_path / "out"),
    }
    path.write_text(json.dumps(config))
    report = call(plan, ["--config", str(path), "--force", "--pairs=2", "--planner.init_args.hold=2"])
    assert report.pairs == 2 and report.settings["planner"] == report.settings["planner"] | {"class": "ICEM", "hold": 2}
    assert report.settings["cost"]["weights"] == [1.0, 0.01]


class Wanderer:
    """Stands in for the HDF5 store: six episodes of dots that walk to the right through the lower room."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 6

    def length(self, episode):
        return 12

    def read(self, episode, frames, columns=None):
        x, y = 0.05 + 0.03 * np.asarray(frames), 0.6 + 0.05 * episode
        return Sample(state=torch.tensor([[value, y, 0.5, 0.35] for value in x], dtype=torch.float32))


def test_goals_come_from_the_test_episodes_only(tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "rooms/episodes", ROOMS)
    monkeypatch.setattr("jepa.tasks.judging.Hdf5Episodes", Wanderer)
    report = run(tmp_path, protocol="rooms/episodes", episodes=tmp_path / "some.h5", horizon=9)
    _, _, test = split(Wanderer(""))
    with np.load(tmp_path / "trajectories.npz", allow_pickle=False) as file:
        rows = {round((y - 0.6) / 0.05) for y in file["goal"][:, 1].tolist()}
        assert np.allclose(file["goal"][:, 0] - file["state"][:, 0, 0], 0.3, atol=1e-5)
    assert rows == set(test) and report.rate == 1.0 and report.solved_at_start == 0.0


def test_the_protocol_comes_from_the_world_by_default(tmp_path):
    world = SeesDots(protocol="two_rooms_random/v1")
    report = run(tmp_path, world=world, protocol=None, pairs=1, floors=False, decisions=0)
    assert report.protocol["name"] == "two_rooms_random/v1"


def test_a_mismatch_is_refused_with_a_diff_and_force_goes_on(tmp_path, caplog):
    options = {"pairs": 1, "floors": False, "decisions": 0}
    for wrong, diff in (
        ({"history": 2}, "evaluation.history: 1 != 2"),
        ({"world": SeesDots(env="Reacher-v5")}, "evaluation.env: Reacher-v5 != jepa/TwoRooms-v0"),
    ):
        with pytest.raises(InputError, match=diff):
            run(tmp_path, **options, **wrong)
        caplog.clear()
        assert run(tmp_path, **options, **wrong, force=True).pairs == 1
        assert diff in caplog.text


def test_an_open_loop_protocol_wants_a_plan_that_covers_it(tmp_path, monkeypatch):
    options = {"goals": "episodes", "offset": 10, "judged": "end", "stops": False, "open_loop": True}
    blind = EvaluationProtocol("rooms/blind", "jepa/TwoRooms-v0", budget=12, pairs=4, **options)
    monkeypatch.setitem(PROTOCOLS, "rooms/blind", blind)
    monkeypatch.setattr("jepa.tasks.judging.Hdf5Episodes", Wanderer)
    given = {"protocol": "rooms/blind", "episodes": tmp_path / "some.h5", "pairs": None, "floors": False}
    with pytest.raises(InputError, match="one plan of 12 environment steps.*make 4: raise horizon and execute"):
        run(tmp_path, **given)
    report = run(tmp_path, **given, horizon=12, execute=12)
    assert set(report.steps) <= {12, -1} and report.latency.decisions == 1


def test_two_reports_are_compared_from_the_command_line(tmp_path, capsys):
    good = run(tmp_path / "good", name="good", floors=False, decisions=0)
    poor = run(tmp_path / "poor", name="poor", floors=False, decisions=0, horizon=1, execute=1)
    paths = [str(tmp_path / "good"), str(tmp_path / "poor" / "report.json")]
    assert main(["plan", "--compare", *paths]) == 0
    shown = capsys.readouterr().out
    assert str(compare(good, poor)) in shown and shown.count("two_rooms/v1") == 2 and "McNemar p" in shown
    same = plan_compare(tmp_path / "good", tmp_path / "good")
    assert "+0.0 points" in same and f"good ({tmp_path / 'good' / 'report.json'})" in same


@pytest.mark.parametrize(
    "spoil,word", [("pairs", "number of pairs 2 is not 3"), ("protocol", "random/v1"), ("gone", "no report at")]
)
def test_reports_that_cannot_be_compared_are_refused_in_one_line(tmp_path, capsys, spoil, word):
    options = {"floors": False, "decisions": 0, "pairs": 2}
    run(tmp_path / "a", **options)
    if spoil != "gone":
        run(tmp_path / "b", **options | ({"pairs": 3} if spoil == "pairs" else {"protocol": "two_rooms_random/v1"}))
    capsys.readouterr()  # the bars of the runs
    assert main(["plan", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_comparing_wants_two_reports(capsys):
    for words in ([], ["a.json"], ["a.json", "b.json", "c.json"]):
        assert main(["plan", "--compare", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.endswith("(jepa plan --compare --help)\n")
