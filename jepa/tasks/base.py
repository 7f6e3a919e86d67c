"""The Lightning command line: fit, validate, test and predict from one YAML tree."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import MPIEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from jepa.checkpoints.load import read, read_specs
from jepa.errors import InputError
from jepa.files import unfinished
from jepa.runtime import parse_errors
from jepa.schema import Specs
from jepa.tasks.curves import Curves

log = logging.getLogger(__name__)
PARSER = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
logging.getLogger("lightning").handlers.clear()  # it brings a console of its own and would say everything twice


class CommandLine(LightningCLI):
    """``vars`` holds what several parts share; ``ckpt_path`` resumes or evaluates."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--vars", type=dict, default={}, help="values that the files refer to as ${vars.name}")
        parser.add_argument("--ckpt_path", type=str, default=None, help="a checkpoint, or 'last' of this run")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        with parse_errors(parser):
            super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        with parse_errors(self.parser):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, ZeroDivisionError, MisconfigurationException) as error:
            if isinstance(error, InputError):
                raise
            said = " ".join(str(error).split())
            raise InputError(f"the trainer cannot be built: {said}; change that part of trainer") from error


def options(prog: str, args: list[str]) -> dict[str, Any]:
    """What a command line is made from.

    The classes are built from the tree, so that ``run=False``: with Lightning's own sub-commands the tree would be
    rooted at the verb and ``${vars.x}`` could not be resolved across files.
    """
    return {
        "model_class": LightningModule,
        "datamodule_class": LightningDataModule,
        "args": args,
        "run": False,
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,
        "seed_everything_default": 0,
        "save_config_kwargs": {"overwrite": True},
        "parser_kwargs": PARSER | {"prog": prog},
        "trainer_defaults": {"plugins": {"class_path": "jepa.checkpoints.io.AtomicCheckpointIO"}},
    }


def run_trainer(verb: str, args: list[str]) -> None:
    """Build the trainer, model and data of the configuration, and run one verb of the trainer."""
    cli = CommandLine(**options(f"jepa {verb}", args))
    path = checkpoint_path(cli.config.ckpt_path, cli.trainer.checkpoint_callbacks)
    if verb == "fit":
        check_nodes(cli.trainer)
        path = requeued(cli.trainer) or path
    if path is None and verb != "fit":
        raise InputError(f"{verb} was given no checkpoint; name one with --ckpt_path PATH, or 'last' for this run's")
    checkpoint = None if path is None else read(path)
    if checkpoint is not None:
        check_data(path, read_specs(path, checkpoint), cli.datamodule.specs)
    if verb == "fit":
        for curves in (logger for logger in cli.trainer.loggers if isinstance(logger, Curves)):
            curves.begin_after = -1 if checkpoint is None else checkpoint["global_step"]
    getattr(cli.trainer, verb)(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    if verb == "fit":
        save_last(cli.trainer)


def requeued(trainer: Trainer) -> str | None:
    """The checkpoint that Lightning wrote when SLURM took this job off its node, and goes on with, whatever else was
    asked for."""
    saved = {int(p.stem.split("_")[-1]): p for p in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")}
    return str(saved[max(saved)]) if saved else None


def check_nodes(trainer: Trainer) -> None:
    """InputError where a run of several machines was started by hand on one: it would wait for the others for ever."""
    if trainer.num_nodes == 1 or "NODE_RANK" in os.environ:
        return
    if not any(kind.detect() for kind in (TorchElasticEnvironment, SLURMEnvironment, MPIEnvironment)):
        raise InputError(
            f"this run is for {trainer.num_nodes} machines, and nothing tells which of them this is; start it with "
            "torchrun or srun on each, or give one machine: --vars.nodes=1, or --trainer.num_nodes=1 without vars.nodes"
        )


def save_last(trainer: Trainer) -> None:
    """Make last.ckpt the last step: Lightning leaves it at the last multiple of the checkpoint interval."""
    for callback in trainer.checkpoint_callbacks:
        if callback.save_last and callback.dirpath:
            trainer.save_checkpoint(Path(callback.dirpath) / "last.ckpt")


def checkpoint_path(asked: str | None, callbacks: list) -> str | None:
    """The file to resume from. 'last' is the newest checkpoint of the run's folder, or none in a first run."""
    if asked != "last":
        if asked is not None and not Path(asked).is_file():
            raise InputError(f"no checkpoint at {asked}; give an existing file, or 'last' for the newest of this run")
        return asked
    folders = [Path(callback.dirpath) for callback in callbacks if callback.dirpath]
    for partial in (p for folder in folders for p in unfinished(folder, ".ckpt")):
        log.warning("%s is half a checkpoint, of a run that was killed while it wrote: it is removed", partial)
        partial.unlink(missing_ok=True)
    whole = (p for folder in folders for p in folder.glob("[!.]*.ckpt"))
    found = sorted(whole, key=lambda p: p.stat().st_mtime)
    if not found:
        log.info("no checkpoint yet in %s: starting from the beginning", ", ".join(map(str, folders)) or "this run")
        return None
    log.info("resuming from %s", found[-1])
    return str(found[-1])


def check_data(path: str, trained: Specs, data: Specs) -> None:
    """InputError if a checkpoint was trained on frames or actions of another size than the data's."""
    there, here = _sizes(trained), _sizes(data)
    differ = [f"{name} is {there[name]} there and {here[name]} here" for name in there if there[name] != here[name]]
    if differ:
        raise InputError(
            f"{path} was trained on other data than this: {'; '.join(differ)}; give the data that it was trained on, "
            "or leave --ckpt_path out and train anew"
        )


def _sizes(specs: Specs) -> dict[str, object]:
    seen = specs.observation
    frame = f"{seen.channels}x{seen.height}x{seen.width}"
    return {"the frame": frame, "the action width": specs.action.env_width, "the frame skip": specs.action.block}
