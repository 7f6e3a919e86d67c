"""The front door: the verbs of the command line. Everything they do lives elsewhere."""

from __future__ import annotations

import sys
from importlib import import_module

from jepa import __version__
from jepa.errors import DISK_FULL, InputError, did_you_mean

HELP = f"""jepa {__version__}: joint-embedding predictive world models

usage: jepa VERB [-c CONFIG] [--key.path=value ...]

  demo      collect, pretrain, probe, plan and report on Two Rooms, in minutes on two CPU cores
  collect   record episodes of any environment into an HDF5 file
  fit       pretrain a model                (also: validate, test, predict)
  embed     write the frozen latents of a dataset into a feature cache
  probe     fit a linear, attentive, k-NN or policy probe on a feature cache
  plan      evaluate latent planning under a named protocol
            plan --compare A B: the paired test of two of its reports
  propose   fit a guess of plans on recorded episodes, for planners to start from
  act       evaluate a fitted policy probe under the same protocols
  inspect   say what a dataset, checkpoint or feature cache holds
            inspect video: index a folder of videos; inspect cost: what a configuration would cost to train;
            inspect features: ranks, spectrum and nearest neighbours of cached latents, CKA between two caches
            inspect world: errors by horizon, ranking of actions, surprise, energy and plans of a world model
  export    write a checkpoint's weights under their published names

CONFIG is a path, or a name in configs/ such as pretrain/two_rooms. Flags override the file.
jepa VERB --help lists the flags of a verb, and jepa VERB -c CONFIG --print_config the whole configuration."""

TRAINER_VERBS = ("fit", "validate", "test", "predict")
FUNCTIONS = {
    "demo": "tools.demo:demo",
    "collect": "jepa.tasks.collect:collect",
    "embed": "jepa.tasks.embed:embed",
    "probe": "probes.task:probe",
    "plan": "jepa.tasks.plan:plan",
    "plan --compare": "jepa.tasks.plan:plan_compare",
    "act": "probes.acting:act",
    "propose": "jepa.tasks.propose:propose",
    "inspect": "jepa.tasks.inspect:inspect",
    "inspect video": "jepa.tasks.inspect_video:inspect_video",
    "inspect cost": "jepa.tasks.cost:inspect_cost",
    "inspect features": "probes.inspect_features:inspect_features",
    "inspect world": "jepa.tasks.inspect_world:inspect_world",
    "export": "jepa.tasks.export:export",
}
OF_A_FIT = ("inspect cost",)  # these read the configuration of a fit


def main(args: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for wrong input, or whatever an unexpected error makes it."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    try:
        return run(args[0], args[1:])
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        message = f"no room on the disk to write {error.filename or 'a file'}; make some and run the command again"
    print(f"jepa: {message}", file=sys.stderr)
    return 2


def run(verb: str, args: list[str]) -> int:
    """Dispatch one verb; modules are named by strings so that only its own are imported."""
    verbs = (*TRAINER_VERBS, *(name for name in FUNCTIONS if " " not in name))
    if verb not in verbs:
        raise InputError(f"unknown verb {verb!r}{did_you_mean(verb, verbs)}; the verbs are {', '.join(verbs)}")
    # a second here, spent only when there is work to do
    from jepa.runtime import call, prepare, resolve_configs

    prepare()
    if args and f"{verb} {args[0]}" in FUNCTIONS:
        verb, args = f"{verb} {args[0]}", args[1:]
    args = resolve_configs(args)
    if verb in TRAINER_VERBS:
        from jepa.tasks.base import run_trainer

        run_trainer(verb, args)
        return 0
    if verb in OF_A_FIT:
        from jepa.tasks.configuration import call
    module, name = FUNCTIONS[verb].split(":")
    if (result := call(getattr(import_module(module), name), args, verb)) is not None:
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
