"""Parameters, gradients and moments divided over processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from jepa.checkpoints.keys import unpickle
from jepa.errors import InputError
from jepa.models.layers import Block
from jepa.tasks.start import check_weights


class Sharded(ModelParallelStrategy):
    """FSDP2: every process holds its part of each parameter, and of its gradient and moments, and gathers a block's
    parameters while it is computed.

    Checkpoints are those of one device: one file, whose moments are numbered as the optimiser numbers them. A training
    can go on from it on any number of devices, sharded or not.

    Args:
        shards: processes that divide the parameters among them, the others are copies; those of a machine if null.
    """

    def __init__(self, shards: int | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.shards = shards

    def setup_environment(self) -> None:
        if self.shards is not None:
            processes = self.num_nodes * self.num_processes
            if self.shards < 1 or processes % self.shards:
                raise InputError(f"shards={self.shards} of {processes} processes: expected a divisor, give one")
            # Lightning's names for the two axes of its mesh, along which it splits nothing by itself
            self._data_parallel_size, self._tensor_parallel_size = processes // self.shards, self.shards
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state on process zero, nothing on the others."""
        inner = getattr(optimizer, "optimizer", optimizer)  # of Lightning's wrapper
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, inner, options=options)
        names = [name for group in state.get("param_groups", []) for name in group["params"]]
        return _renamed(state, {name: number for number, name in enumerate(names)}) if names else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = self.broadcast(str(checkpoint_path))
        checkpoint = unpickle(Path(path), mmap=True)
        check_weights(self.model.state_dict(), checkpoint["state_dict"], path)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            ours = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(self.model, optimizer, _renamed(state, dict(enumerate(ours))), options=options)
        return checkpoint


def _renamed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser's state whose parameters have new names."""
    moments = {new[old]: value for old, value in state["state"].items()}
    groups = [group | {"params": [new[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": moments, "param_groups": groups}


def shard(world: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every transformer block by itself, and what is left together, in place. A sharded model stays as it is.

    ``mesh`` has two axes, of which those of size 1 do not count: along the first parameters are copied, along the
    second divided.
    """
    if isinstance(world, FSDPModule):
        return
    axes = tuple(name for name, size in zip(mesh.mesh_dim_names, mesh.shape) if size > 1)
    mesh = mesh[axes or mesh.mesh_dim_names[-1:]]
    for module in world.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(world, mesh=mesh)
    register_fsdp_forward_method(world, "encode")
