"""Two processes must train as one process with the joint batch would: same values, same averaged gradients.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepa.objectives import Covariance, Objective, SIGReg, Variance
from jepa.schema import Prediction

SHARES = [slice(0, 5), slice(5, 8)]  # unequal on purpose
OBJECTIVES = {
    "variance": lambda: Variance(margin=3.0),
    "variance per step": lambda: Variance(margin=3.0, over="step"),
    "covariance": lambda: Covariance(),
    "covariance per step": lambda: Covariance(over="step"),
    "sigreg": lambda: SIGReg(directions=32),
    "sigreg over the batch": lambda: SIGReg(directions=32, over="batch"),
    "variance of clips": lambda: Variance(margin=3.0, over="clip"),
    "covariance of clips": lambda: Covariance(over="clip"),
    "sigreg of clips": lambda: SIGReg(directions=32, over="clip"),
}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).double()


def videos(masked: bool = False) -> torch.Tensor:
    """[B,T,N,pixels], or as a masked model sees them, [B,1,K,pixels]."""
    video = torch.randn(8, 3, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return video.flatten(1, 2).unsqueeze(1) if masked else video


def step(model: nn.Module, objective: Objective, video: torch.Tensor) -> dict[str, torch.Tensor]:
    """Value and gradient of one training step, as a flat dictionary."""
    z = model(video)
    loss = objective(Prediction(z=z, h=z, action=torch.zeros(len(z), 2, 1)))
    loss.backward()
    return {"value": loss.detach(), "gradient": torch.cat([p.grad.flatten() for p in model.parameters()])}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {
        f"{name}, masked={masked}": step(DistributedDataParallel(encoder()), build(), videos(masked)[SHARES[rank]])
        for name, build in OBJECTIVES.items()
        for masked in (False, True)
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("masked", [False, True], ids=["world", "masked"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_equal_one_with_the_joint_batch(name, masked, two_processes):
    joint = step(encoder(), OBJECTIVES[name](), videos(masked))
    assert joint["gradient"].abs().max() > 1e-4
    for process in (results[f"{name}, masked={masked}"] for results in two_processes):
        torch.testing.assert_close(process["value"], joint["value"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(process["gradient"], joint["gradient"], rtol=1e-7, atol=1e-10)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
