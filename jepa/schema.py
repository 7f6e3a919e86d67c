"""The words and the shapes that every room of the toolkit shares.

Shape legend, used in every docstring:

    B batch            T steps                N tokens per step      D latent width
    A action width     P proprioception width X privileged state     C, H, W pixels
    S candidate plans  H plan horizon (in model steps; image height only inside [C,H,W])
    K context tokens   M target masks of L tokens each (masked models)

* Pixels are ``uint8 [B,T,C,H,W]`` until they are on the device.
* Latents are ``[B,T,N,D]`` everywhere: an image is T=1, a pooled vector is N=1.
* Actions are in raw environment units. ``action[t]`` leads from step t to step t+1, so a window of T frames
  carries T-1 actions. With a frame skip of k, one model step is k environment steps and one action is the
  block of the k environment actions, concatenated: A = k * a.
* Plans are ``[B,S,H,A]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@dataclass
class Sample:
    """What was observed and done: a window of an episode, a batch of windows, or the present moment of an agent.

    Every field is optional, and batched or not as a whole; the shapes below are those of a batch.
    ``state`` is privileged (simulator coordinates): probes, scripted policies and evaluation may read it; models,
    planners and trained policies never do.
    """

    video: Tensor | None = None  # uint8 [B,T,C,H,W]
    action: Tensor | None = None  # float32 [B,T-1,A], raw units
    proprio: Tensor | None = None  # float32 [B,T,P], raw units
    state: Tensor | None = None  # float32 [B,T,X], raw units
    reward: Tensor | None = None  # float32 [B,T-1], summed over the frame skip
    terminated: Tensor | None = None  # bool [B,T-1], true where the environment ended within the step
    goal: Sample | None = None  # the frame to reach: video [B,1,C,H,W], proprio [B,1,P], state [B,1,X]
    index: Tensor | None = None  # int64 [B,2]: episode number, first frame
    key: Tensor | None = None  # int64 [B]: tells this draw from those of all ranks and epochs; masks are drawn from it
    ahead: Tensor | None = None  # float32 [B]: what is to be forecast lies so many frames behind the video's end
    latent: Tensor | None = None  # float32 [B,T,N,D]: what a frozen encoder made of the video, in its place
    maps: Tensor | None = None  # [B,T,H,W] a label of every pixel: uint8 class, 255 for none; or float32, NaN for none

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """A new sample with ``function`` applied to every tensor, goals included."""
        changed = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Sample):
                changed[item.name] = value.map(function)
            elif value is not None:
                changed[item.name] = function(value)
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Sample:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    @staticmethod
    def stack(samples: list[Sample]) -> Sample:
        """Collate windows into a batch. A field is kept when every sample has it."""
        stacked: dict[str, Any] = {}
        for item in fields(Sample):
            values = [getattr(sample, item.name) for sample in samples]
            if any(value is None for value in values):
                continue
            stacked[item.name] = Sample.stack(values) if item.name == "goal" else torch.stack(values)
        return Sample(**stacked)


@dataclass
class Mask:
    """Where a masked model looks, and what it must forecast from there: one context and M target masks per sample.

    Tokens are named by their place in the raster order (step, row, column) of a clip's T*N tokens, and every row is in
    that order. With the offsets, the mask is *packed*: rows of different lengths lie end to end, and row i is what
    lies from ``offsets[i]`` up to ``offsets[i+1]``, as attention over variable lengths takes it. Target mask m of
    sample b is row b*M + m.
    """

    context: Tensor  # int64 [B,K]; packed: [sum of the K]
    target: Tensor  # int64 [B,M,L]; packed: [sum of the L]
    context_offsets: Tensor | None = None  # int32 [B+1], packed only
    target_offsets: Tensor | None = None  # int32 [B*M+1], packed only
    longest: tuple[int, int] | None = None  # tokens of the longest context, and with one of its targets; packed only

    @property
    def packed(self) -> bool:
        return self.context_offsets is not None

    def to(self, device: torch.device | str) -> Mask:
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return Mask(**{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in found.items()})


@dataclass
class Prediction:
    """What a world model forecast, beside what it should have: the only thing an objective sees."""

    z: Tensor  # [B,T,N,D] latents of the context encoder; gradients flow
    h: Tensor  # [B,T,N,D] latents of the target (EMA, frozen: detached; online: the same tensor as z)
    action: Tensor  # [B,T-1,A] normalised actions
    p: Tensor | None = None  # [B,T-1,N,D] teacher-forced: p[:, t] forecasts h[:, t+1]
    rollout: Tensor | None = None  # [B,K,N,D] open-loop, fed with its own forecasts: forecasts the last K of h
    # masked models that also forecast what they see (V-JEPA 2.1)
    context: Tensor | None = None  # [B,M,K,D] forecasts at the K visible tokens, as each of the M masks asks
    context_h: Tensor | None = None  # [B,M,K,D] the target's latents there
    distance: Tensor | None = None  # float32 [B,M,K] to the nearest hidden token: Euclidean, in tokens
    # packed masks: all rows end to end, B and M are 1; these, of mean 1, make rows of any length count alike
    weight: Tensor | None = None  # float32 [1,1,sum of the L]
    context_weight: Tensor | None = None  # float32 [1,1,sum of the K]

    def detach(self) -> Prediction:
        """The same numbers without the graph: what callbacks may keep."""
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        return Prediction(**{name: None if value is None else value.detach() for name, value in tensors.items()})


@dataclass(frozen=True)
class ActionSpec:
    """One environment action in raw units, its statistics over the training episodes, and the block it comes in.

    ``low``, ``high``, ``mean``, ``std`` have one number per environment dimension; infinite bounds are allowed.
    ``block`` is the frame skip: how many environment actions one model step concatenates.
    With ``choices`` n above 0 the environment takes one of n actions: its raw action is a one-hot vector of width n.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    block: int = 1
    choices: int = 0  # of a discrete action; 0 where actions are continuous

    def __post_init__(self) -> None:
        sizes = {len(self.low), len(self.high), len(self.mean), len(self.std)}
        if len(sizes) != 1 or self.block < 1:
            raise ValueError(f"ActionSpec wants four tuples of one length and block >= 1, was given {self}")
        if self.choices and (self.choices < 2 or self.choices != len(self.low)):
            raise ValueError(f"a discrete ActionSpec wants 2 or more choices, one dimension for each, was given {self}")

    @property
    def env_width(self) -> int:
        """Width of one environment action."""
        return len(self.low)

    @property
    def width(self) -> int:
        """A, the width of one model action: a block of environment actions."""
        return len(self.low) * self.block

    def _tiled(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        assert like.shape[-1] == self.width, f"actions of width {like.shape[-1]} where blocks of {self.width} are due"
        return torch.tensor(values * self.block, dtype=like.dtype, device=like.device)

    def normalise(self, action: Tensor) -> Tensor:
        """Raw ``[...,A]`` to zero mean and unit standard deviation."""
        return (action - self._tiled(self.mean, action)) / self._tiled(self.std, action)

    def denormalise(self, action: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return action * self._tiled(self.std, action) + self._tiled(self.mean, action)

    def clip(self, action: Tensor) -> Tensor:
        """Raw ``[...,A]`` to what the environment takes: clipped to the raw bounds; or, where there are choices, the
        one-hot vector of what is greatest in each environment action."""
        if self.choices:
            best = action.unflatten(-1, (self.block, self.choices)).argmax(-1, keepdim=True)
            return (best == torch.arange(self.choices, device=action.device)).to(action.dtype).flatten(-2)
        return torch.minimum(torch.maximum(action, self._tiled(self.low, action)), self._tiled(self.high, action))


@dataclass(frozen=True)
class ObservationSpec:
    """What one frame holds. Widths of zero mean that the column does not exist."""

    height: int
    width: int
    channels: int = 3
    proprio_mean: tuple[float, ...] = ()
    proprio_std: tuple[float, ...] = ()
    state_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalSpec:
    """How the episodes were made, and so how a model that learned from them must be used."""

    env: str = ""  # gymnasium id, "" where no simulator exists
    env_options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of jepa.envs.make
    history: int = 1  # frames of context, in model steps, that the model was trained to start from
    protocol: str = ""  # the evaluation that this dataset is meant for, e.g. "two_rooms/v1"


@dataclass(frozen=True)
class Specs:
    """Everything a checkpoint must carry to be used as it was trained."""

    action: ActionSpec
    observation: ObservationSpec
    evaluation: EvalSpec = EvalSpec()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: safe for JSON and for ``weights_only`` checkpoints."""
        return plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Specs:
        def build(kind: type, values: Mapping[str, Any]) -> Any:
            known = {item.name for item in fields(kind)}
            if unknown := set(values) - known:
                raise ValueError(f"{kind.__name__} knows {sorted(known)}, was given also {sorted(unknown)}")
            return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

        return cls(
            action=build(ActionSpec, data["action"]),
            observation=build(ObservationSpec, data["observation"]),
            evaluation=build(EvalSpec, data.get("evaluation", {})),
        )

    def differences(self, other: Specs) -> list[str]:
        """Lines ``name: mine != theirs`` for every entry that differs; statistics count from 1e-5 on."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{key}: {mine.get(key)} != {theirs.get(key)}"
            for key in sorted(mine.keys() | theirs.keys())
            if not _same(mine.get(key), theirs.get(key))
        ]


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples and arrays as lists, all the way down: what JSON and safe checkpoints hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)
    return a == b


@dataclass
class Plan:
    """A plan for every environment of a batch."""

    action: Tensor  # [B,H,A] raw units, within the bounds
    cost: Tensor  # [B] what the planner believes the plan costs
    trace: dict[str, Tensor] = field(default_factory=dict)  # per-iteration diagnostics, e.g. best cost [I,B]


@dataclass(frozen=True)
class Dynamics:
    """What planners that look inside of a rollout are given: three functions, never a network.

    ``Problem.cost(action)`` is ``score(rollout(action), action)``, and a rollout is what ``forecast`` repeats:
    ``forecast(rollout(action), action) == rollout(action)``.
    """

    rollout: Callable[[Tensor], Tensor]  # raw actions [B,S,H,A] -> z [B,S,H,N,D], where z[:, :, h] follows action h
    # z [B,S,H,N,D] and actions -> [B,S,H,N,D]: step h is z[:, :, h] from the present, what is before and its action
    forecast: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]  # z [B,S,H,N,D] and actions [B,S,H,A] -> [B,S]


@dataclass(frozen=True)
class Problem:
    """What a planner is asked: it sees a cost and a space, never a network."""

    cost: Callable[[Tensor], Tensor]  # raw actions [B,S,H,A] -> [B,S]
    space: ActionSpec
    horizon: int  # H, in model steps
    batch: int  # B
    device: torch.device | str = "cpu"
    generator: torch.Generator | None = None  # the only source of randomness
    dynamics: Dynamics | None = None  # for collocation; None where a world has no one-step forecasts


@runtime_checkable
class Episodes(Protocol):
    """Storage: a sequence of episodes that decodes only the frames it is asked for."""

    specs: Specs  # block = 1: raw environment steps

    def __len__(self) -> int: ...

    def length(self, episode: int) -> int:
        """Number of frames; an episode of n frames has n-1 actions."""

    def read(self, episode: int, frames: Any, columns: tuple[str, ...] | None = None) -> Sample:
        """Rows ``frames`` (int64 array, any order) of an episode, unbatched: video [T,C,H,W], action [T,a], ...

        Every column has one row per frame; the action, reward and terminated of an episode's last frame are
        padding, which no window contains. ``columns`` limits what is read (all by default).
        """


@runtime_checkable
class World(Protocol):
    """A model of P(z' | z, a): what planners' costs, imagination and diagnostics build on."""

    specs: Specs

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] -> z [B,T,N,D]"""

    def rollout(self, z: Tensor, action: Tensor, past: Tensor | None = None) -> Tensor:
        """z [B,T,N,D], raw plans [B,S,H,A] and the T-1 past actions [B,T-1,A] -> forecasts [B,S,H,N,D]"""


@runtime_checkable
class Planner(Protocol):
    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """``warm``: raw actions [B,H,A] to start from, already shifted to the present; or [B,W,H,A], where the first
        is the plan to start from and the others are candidates beside it."""


@runtime_checkable
class Proposal(Protocol):
    """What guesses plans at once, for a planner to start from."""

    def propose(self, z: Tensor, goal: Tensor, horizon: int) -> Tensor:
        """Latents of the present and of the goal [B,N,D] -> raw plans [B,W,H,A] within the bounds, the best first."""


@runtime_checkable
class Policy(Protocol):
    """Everything that acts: MPC, an actor, a linear controller, a script, chance."""

    def act(self, sample: Sample) -> Tensor:
        """The present (T=1, with its goal) of B environments -> raw environment actions [B,a]."""

    def reset(self, done: Tensor) -> None:
        """Forget the past of the environments where ``done [B]`` is true."""


@dataclass
class Outcome:
    """What one step of B environments gave."""

    sample: Sample  # the new present: T=1, with goal and state
    reward: Tensor  # float32 [B]
    terminated: Tensor  # bool [B]: the environment says that the episode is over
    success: Tensor  # bool [B]: the goal is reached now


@runtime_checkable
class Task(Protocol):
    """B environments with goals that are reset and stepped together and speak in samples.

    An environment that ended does nothing until it is reset.
    """

    specs: Specs  # block = 1; action mean 0 and std 1 when no statistics are known
    num: int  # B

    def reset(
        self,
        seed: int | None = None,
        state: Tensor | None = None,
        goal: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Sample:
        """Begin episodes where ``mask [B]`` is true (all by default). Environment i is seeded with seed + i.

        ``state``, ``goal [B,X]`` put the start and the goal at these privileged states; where they are None, the
        environment draws its own. Returns the present of all B, T=1, with ``goal`` (video, state) and ``state``.
        """

    def success(self, state: Tensor, goal: Tensor) -> Tensor:
        """Privileged states and goals [B,X] -> bool [B]."""

    def idle(self, sample: Sample) -> Tensor:
        """The present -> the raw actions [B,a] that leave the environments as they are."""

    def step(self, action: Tensor) -> Outcome:
        """Raw environment actions [B,a]."""

    def close(self) -> None: ...
