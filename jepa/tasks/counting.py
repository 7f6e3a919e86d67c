"""What one training step computes and keeps, counted on the meta device: shapes without numbers, nothing allocated.

A multiply-add counts two, and only matrix products and convolutions count. Attention is counted as the mathematics has
it: that a fused kernel computes its scores again on the way back is not work that a model asks for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jepa.schema import Prediction

Forward = Callable[[], Sequence[Prediction]]  # one clip through the model
Flops = dict[str, float]  # by part
PARTS = {"encoder": "context encoder", "target": "target encoder", "predictor": "predictor"}
EMBEDDING, EMBEDDINGS = "patch embedding", ("patch_embed", "image_patch_embed")  # of an encoder: pixels to tokens
OTHER = "other"
PRODUCTS = ("linear", "matmul", "bmm", "addmm", "conv1d", "conv2d", "conv3d")  # autocast lowers their precision
PRECISE = ("layer_norm", "group_norm")  # and raises that of these
ATTENTION = "scaled_dot_product_attention"
CONFIGURED, NEVER, ALWAYS = "as configured", "recompute=false", "recompute=true"


@dataclass(frozen=True)
class Work:
    """FLOPs of one clip in one part of a model."""

    forward: float
    backward: float
    recomputed: float  # what activation checkpointing computes a second time

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Step:
    """What a training step computes for one clip, and the bytes that it keeps of it for the backward pass.

    ``kept`` has the bytes of every one of :func:`choices`.
    """

    parts: dict[str, Work]
    kept: dict[str, float]

    @property
    def work(self) -> Work:
        """All parts together."""
        every = self.parts.values()
        return Work(*(sum(getattr(work, name) for work in every) for name in ("forward", "backward", "recomputed")))


def count(world: nn.Module, forward: Forward, dtype: torch.dtype) -> Step:
    """Count a training step.

    Args:
        world: a model on the meta device with the parts encoder, predictor and target.
        forward: runs it on one clip.
        dtype: what matrix products are computed in; other layers and the weights keep theirs.
    """
    ahead, again = _flops(world, forward)
    chosen = choices(world)
    with _without_recomputation(world) as recomputes:
        once = _flops(world, forward)[1] if recomputes else again
        ledger = _ledger(world, forward, dtype)
    parts = {name: Work(ahead[name], once[name] - ahead[name], again[name] - once[name]) for name in once}
    kept = {name: ledger.kept(owners) for name, owners in chosen.items()}
    return Step({name: work for name, work in parts.items() if work.total}, kept)


def blocks(world: nn.Module) -> dict[nn.Module, nn.Module]:
    """Every block of the model's transformers -> the transformer."""
    return {block: module for module in world.modules() for block in getattr(module, "blocks", ())}


def choices(world: nn.Module) -> dict[str, set[nn.Module]]:
    """How the model may be configured -> the transformers whose blocks compute again what they did not keep.

    As it is, and where that is another thing: with ``recompute`` in none, and in all that have it and learn.
    """
    learning = {owner for owner in blocks(world).values() if any(p.requires_grad for p in owner.parameters())}
    able = {owner for owner in learning if hasattr(owner, "recompute")}
    configured = {owner for owner in able if owner.recompute}
    others = {NEVER: set[nn.Module](), ALWAYS: able}
    return {CONFIGURED: configured} | {name: owners for name, owners in others.items() if owners != configured}


@contextmanager
def _without_recomputation(world: nn.Module) -> Iterator[bool]:
    """Whether there is any is given to the block, within which there is none."""
    modules = [module for module in world.modules() if getattr(module, "recompute", False)]
    for module in modules:
        module.recompute = False
    try:
        yield bool(modules)
    finally:
        for module in modules:
            module.recompute = True


def _flops(world: nn.Module, forward: Forward) -> tuple[Flops, Flops]:
    """Of the forward pass, and of both passes."""
    with Counter(world) as counter:
        predictions = forward()
        ahead = dict(counter.flops)
        _scalar(predictions).backward()
    world.zero_grad()
    return ahead, counter.flops


class Counter(TorchDispatchMode):
    """Adds up the FLOPs of every part of a model.

    Backward, an operation belongs to the part whose forward made its node of the graph: nodes are numbered in the
    order in which they were made, and it is noted which part was entered or left at which number. Products with the
    weights of the patch embedding are told by these, since encoders use them without calling the layer.
    """

    def __init__(self, world: nn.Module) -> None:
        super().__init__()
        self.parts = {module: told for name, told in PARTS.items() for module in getattr(world, name).modules()}
        layers = [getattr(world.encoder, name) for name in EMBEDDINGS if hasattr(world.encoder, name)]
        self.embeddings = {_storage(weight) for layer in layers for weight in layer.parameters()}
        self.flops = dict.fromkeys([EMBEDDING, *PARTS.values(), OTHER], 0.0)
        self._entered = [OTHER]
        self._numbers, self._names = [0], [OTHER]
        self._hooks = ExitStack()

    def __enter__(self) -> Counter:
        for module in self.parts:
            self._hooks.callback(module.register_forward_pre_hook(self._enter).remove)
            self._hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function.overloadpacket):
            self.flops[self._part(args)] += formula(*args, **(kwargs or {}), out_val=result)
        return result

    def _part(self, args: tuple) -> str:
        if (node := torch._C._current_autograd_node()) is not None:
            return self._names[bisect_right(self._numbers, node._sequence_nr()) - 1]
        if any(isinstance(value, Tensor) and _storage(value) in self.embeddings for value in args):
            self._note(EMBEDDING, made=1)  # the node of this product is the last that was made
            self._note(self._entered[-1])
            return EMBEDDING
        return self._entered[-1]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._entered.append(self.parts[module])
        self._note(self._entered[-1])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._entered.pop()
        self._note(self._entered[-1])

    def _note(self, name: str, made: int = 0) -> None:
        """Nodes belong to ``name`` from the next one on, or from the ones that are ``made`` already."""
        self._numbers.append(torch.autograd._get_sequence_nr() - made)
        self._names.append(name)


def _scalar(predictions: Sequence[Prediction]) -> Tensor:
    """A number that all of the model's forecasts take part in; what objectives compute is little beside the model."""
    tensors = [value for prediction in predictions for value in vars(prediction).values()]
    return sum(value.float().sum() for value in tensors if value is not None and value.requires_grad)


def _ledger(world: nn.Module, forward: Forward, dtype: torch.dtype) -> Ledger:
    """Of what the graph of one clip holds where nothing is computed again."""
    owners = blocks(world)
    ledger = Ledger({_storage(tensor) for tensor in (*world.parameters(), *world.buffers())}, owners)
    with ExitStack() as stack:
        for block in owners:
            stack.callback(block.register_forward_pre_hook(ledger.enter).remove)
            stack.callback(block.register_forward_hook(ledger.leave).remove)
        stack.enter_context(saved_tensors_hooks(ledger.keep, _never))
        stack.enter_context(Precision(dtype, ledger.weights))
        predictions = forward()
    assert predictions, "the model made no prediction"
    return ledger


def _storage(tensor: Tensor) -> int:
    """What two views of one piece of memory have in common; on the meta device addresses are no such thing."""
    return tensor.untyped_storage()._cdata


def _never(packed: object) -> Tensor:
    raise AssertionError("there is no backward pass here")


@dataclass
class Call:
    """Of one block, with the bytes that enter it and those that it keeps."""

    owner: nn.Module
    entered: int
    kept: int = 0


class Ledger:
    """Adds up what autograd keeps, each piece of memory once, within blocks and outside of them.

    Args:
        weights: storages that are there in any case.
        owners: the blocks, and the transformer of each.
    """

    def __init__(self, weights: set[int], owners: Mapping[nn.Module, nn.Module]) -> None:
        self.weights, self.owners = weights, owners
        self.known: set[int] = set()
        self.calls: list[Call] = []
        self.outside, self.inside = 0, False

    def kept(self, again: Collection[nn.Module]) -> float:
        """Bytes, if the blocks of these transformers kept their inputs alone: going back, one block at a time
        computes again what it did not keep."""
        whole = sum(call.kept for call in self.calls if call.owner not in again)
        frugal = [call for call in self.calls if call.owner in again]
        anew = max((call.kept for call in frugal), default=0)
        return float(self.outside + whole + sum(call.entered for call in frugal) + anew)

    def keep(self, tensor: Tensor) -> torch.UntypedStorage:
        storage, number = tensor.untyped_storage(), _storage(tensor)
        if number not in self.weights and number not in self.known:
            self.known.add(number)
            if self.inside:
                self.calls[-1].kept += storage.nbytes()
            else:
                self.outside += storage.nbytes()
        return storage  # alive until the end, so that no other takes its number

    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside = torch.is_grad_enabled()
        if self.inside:
            self.calls.append(Call(self.owners[block], args[0].nbytes))

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.inside = False


class Precision(TorchFunctionMode):
    """Does to the types of tensors what autocast does, which there is not on the meta device, and attends with a fused
    kernel, which keeps its inputs and outputs and no scores.

    Args:
        dtype: of matrix products, convolutions and attention; float32 changes nothing.
        weights: where the copies of the weights are noted, of which there is one for each.
    """

    def __init__(self, dtype: torch.dtype, weights: set[int]) -> None:
        super().__init__()
        self.dtype, self.weights = dtype, weights
        self.copies: dict[int, Tensor] = {}

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == ATTENTION:  # a mask is shared by all and changes nothing
            q, k, v = (self._cast(value, self.dtype) for value in args[:3])
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        wanted = self.dtype if name in PRODUCTS else torch.float32 if name in PRECISE else None
        if wanted is not None:
            args = tuple(self._cast(value, wanted) for value in args)
            kwargs = {key: self._cast(value, wanted) for key, value in kwargs.items()}
        return function(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = copy = value.to(dtype)
            self.weights.add(_storage(copy))
        return self.copies[id(value)]
