from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa.errors import InputError
from probes.attentive import AttentiveProbe
from probes.cache import FeatureCache
from probes.linear import LinearProbe
from probes.neighbours import NeighbourProbe
from probes.policy import BehaviourCloning, GoalCloning, InverseDynamicsProbe
from probes.saved import load
from probes.task import probe

QUICK = {"epochs": 1, "lr": [1e-3], "accelerator": "cpu"}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (GoalCloning(8, "flat", modes=3), "action"),
        (BehaviourCloning(8), "action"),
        (InverseDynamicsProbe(8), "action"),
        (AttentiveProbe(heads=2), "x,y"),
        (LinearProbe(tokens="flat"), "x"),
        (LinearProbe(classes=2), "side"),
        (NeighbourProbe(k=5, classes=2), "side"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else value,
)
def test_a_fitted_probe_is_read_back(cache_path, tmp_path, kind, target):
    report = probe(cache_path, kind, target, tmp_path, **QUICK)
    again, told = load(tmp_path)
    assert told == json.loads((tmp_path / "report.json").read_text()) == report
    assert type(again) is type(kind) and again.arguments() == kind.arguments() and not again.training
    saved = load_file(tmp_path / "probe.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
    test = FeatureCache(cache_path).examples("test", target, kind.reads, kind.classes)
    assert again.answer(again(test[:7][0])).isfinite().all()


@pytest.fixture
def saved(cache_path, tmp_path):
    """Writes a fitted probe's report anew, with other entries in its recipe."""
    probe(cache_path, GoalCloning(8), "action", tmp_path / "out", **QUICK)
    path = tmp_path / "out" / "report.json"
    report = json.loads(path.read_text())

    def change(**entries):
        path.write_text(json.dumps(report | {"recipe": report["recipe"] | entries}))
        return path.parent

    return change


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"class_path": "os.system"}, "os.system, which is no probe of probes"),
        ({"class_path": "probes.task.probe"}, "probes.task.probe, which is no probe"),
        ({"class_path": "probes.policy.torch"}, "which is no probe"),
        ({"class_path": "probes.policy.Missing"}, "which is not there"),
        ({"class_path": 7}, "which is no probe of probes"),
        ({"init_args": {"hiden": 8}}, "cannot be built .*hiden"),
        ({"init_args": {"hidden": 0}}, "cannot be built .*hidden=0"),
        ({"init_args": None}, "cannot be built"),
        ({"latents": [2, 2, 5]}, "are not the weights of its report"),
        ({"latents": "wide"}, "cannot be built"),
        ({"targets": []}, "cannot be built"),
    ],
)
def test_nothing_but_a_probe_is_built(saved, entries, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        load(saved(**entries))
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_named(saved, tmp_path):
    with pytest.raises(InputError, match="no probe at"):
        load(tmp_path / "nowhere")
    folder = saved()
    weights = load_file(folder / "probe.safetensors")
    save_file({"other": torch.zeros(1)}, folder / "probe.safetensors")
    with pytest.raises(InputError, match="are not the weights of its report"):
        load(folder)
    (folder / "probe.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match="are not the weights of its report"):
        load(folder)
    save_file(weights, folder / "probe.safetensors")
    for text, complaint in (("{", "cannot be read"), ("[]", "no report of a probe"), ("{}", "does not say how")):
        (folder / "report.json").write_text(text)
        with pytest.raises(InputError, match=complaint):
            load(folder)
