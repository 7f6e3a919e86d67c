from __future__ import annotations

import json

import pytest
import torch

from tools.benchmark import main
from tools.benchmarks.probes import Plain, Work, compare, difference, plain_heads

SMALL = ("--model=tiny", "--clips=20", "--encoded=2", "--size=64", "--frames=4", "--batch=8", "--epochs=2",
         "--heads=3", "--repeats=2")  # fmt: skip


def test_probing_is_compared(tmp_path, capsys):
    out = tmp_path / "probes.json"
    assert main(["probes", *SMALL, f"--out={out}"]) == 0
    found = json.loads(out.read_text())["result"]
    assert found["tokens"] == 32 and found["largest difference of a head from the plain one"] < 1e-5
    assert found["sweeps"].keys() == {"none", "grid"}
    for sweep in found["sweeps"].values():
        whole = sweep["sweep over encoding once"]["median"]
        one = sweep["one epoch of it over encoding once"]["median"]
        assert whole == pytest.approx(2 * one) and whole > 0
        assert sweep["plain over encoding once and sweep"]["median"] < sweep["plain over sweep"]["median"]
    told = capsys.readouterr().out
    assert told.count("multiplied out") == 4 and told.count("measured") == 2


def test_the_plain_way_is_multiplied_out(tmp_path, monkeypatch):
    """Seconds that are known: of 20 clips, 18 are trained on, in 3 steps of 8 in each of 5 epochs."""
    import numpy as np

    from tools.benchmarks import measure
    from tools.benchmarks.step import Setting

    known = {"encode": 2.0, "train": 1.0, "update": 0.5, "sweep, none": 4.0}
    made = {name: measure.Times(np.full(2, value), np.full(2, value)) for name, value in known.items()}
    monkeypatch.setattr(measure, "interleaved", lambda ways, repeats: {name: made[name] for name in ways})
    work = Work(clips=20, encoded=2, batch=8, epochs=5, heads=3)
    encoder = Setting(64, 4, 2, "rotary_interleaved", "cpu", False, False).world("tiny").encoder
    found = compare(work, encoder, ["none"], 2, tmp_path)["sweeps"]["none"]
    assert found["seconds"]["encoding once, multiplied out"]["median"] == 20.0
    assert found["sweep over encoding once"]["median"] == 0.2
    assert found["one epoch of it over encoding once"]["median"] == pytest.approx(0.04)
    plain = 5 * ((2 + 1) * 9 + 3 * 0.5)
    assert found["seconds"]["plain heads, multiplied out"]["median"] == plain
    assert found["plain over encoding once and sweep"]["median"] == pytest.approx(plain / 24)


def test_a_head_that_differs_is_told(monkeypatch):
    work, z = Work(20, 2, 8, 1, heads=3), torch.randn(2, 2, 4, 12)
    assert 0 < difference(work, z) < 1e-5
    forward = Plain.forward
    monkeypatch.setattr(Plain, "forward", lambda self, x: forward(self, x) * 1.001)
    with pytest.raises(AssertionError, match="differs from the plain one"):
        difference(work, z)


def test_the_plain_heads_are_twenty_that_learn_alone():
    heads, optimisers = plain_heads(Work(20, 2, 8, 1, heads=3), torch.randn(2, 2, 4, 12))
    owned = [{id(value) for group in one.param_groups for value in group["params"]} for one in optimisers]
    assert len(heads) == len(owned) == 20 and not owned[0] & owned[1]
    assert len({(one.defaults["lr"], one.defaults["weight_decay"]) for one in optimisers}) == 20


@pytest.mark.parametrize("wrong", ["--model=vit_x", "--clips=3", "--pools=[nothing]", "--pools=[]", "--repeats=1"])
def test_wrong_input_is_told_in_a_line(wrong, capsys):
    assert main(["probes", wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
