"""The configuration of a fit, read and not built: what a verb needs that only wants to know what a fit would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from jepa.runtime import parse_errors
from jepa.tasks.base import CommandLine, options


class Reading(CommandLine):
    """The command line of a fit, and beside it the arguments of a function, of which nothing is built."""

    def __init__(self, function: Callable[..., Any], prog: str, args: list[str]) -> None:
        self.function = function
        super().__init__(**options(prog, args) | {"seed_everything_default": False})  # nothing is drawn

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        self.own = parser.add_function_arguments(self.function, skip={"fit"})

    def instantiate_classes(self) -> None:
        """Nothing is opened, nothing is allocated."""


class Configuration:
    """What a fit would be given."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        config = reading.config.as_dict()
        self.trainer: dict[str, Any] = config["trainer"]
        self.data_class: str = config["data"]["class_path"]
        self.data: dict[str, Any] = config["data"].get("init_args", {})

    def model(self, device: torch.device) -> LightningModule:
        """Build the model alone, on a device."""
        with parse_errors(self._reading.parser), device:
            return self._reading.parser.instantiate(Namespace(model=self._reading.config.model)).model


def call(function: Callable[..., Any], args: list[str], verb: str) -> Any:
    """Parse the configuration of a fit and the function's own arguments, and call it with both.

    Args:
        function: its first argument, ``fit``, is a :class:`Configuration`
        args: the command line behind the verb
        verb: as it is typed
    """
    reading = Reading(function, f"jepa {verb}", args)
    return function(Configuration(reading), **{name: reading.config[name] for name in reading.own})
