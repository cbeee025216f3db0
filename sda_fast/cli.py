"""The command line, `python -m sda_fast`."""

__all__ = ["main"]

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields

EXPECTED = (ValueError, TypeError, FileNotFoundError, ImportError, RuntimeError, OSError)


def _parser() -> argparse.ArgumentParser:
    """Describes the commands. Their modules are imported only when they run."""
    from .io import PRIORS
    from .training import SYSTEMS, Config

    parser = argparse.ArgumentParser(
        prog="python -m sda_fast", description="Fast score-based data assimilation."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("info", help="say what is installed and what is native")

    prior = commands.add_parser("prior", help="say what a prior is and how it was trained")
    prior.add_argument("name", help=f"a file, or one of {', '.join(PRIORS)}")

    demo = commands.add_parser("demo", help="assimilate a Lorenz-63 trajectory")
    demo.add_argument("--out", default=".", help="directory to write into (default: here)")
    demo.add_argument("--members", type=int, default=64, help="posterior trajectories")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--backend", choices=("auto", "native", "reference"), default="auto")

    train = commands.add_parser(
        "train",
        help="simulate a system and train a prior on it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument("system", choices=tuple(SYSTEMS))
    train.add_argument("--out", default=argparse.SUPPRESS, help="safetensors file to write")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    train.add_argument("--every", type=int, default=2000, help="iterations between checkpoints")
    train.add_argument("--threads", type=int, help="threads to compute with")

    for field in fields(Config):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "system" or field.default is MISSING:
            continue
        if field.name == "lengths":
            train.add_argument(
                flag, type=int, nargs="+", default=(), help="window lengths to draw from"
            )
        elif isinstance(field.default, bool):
            train.add_argument(flag, action="store_true", help=" ")
        else:
            train.add_argument(flag, type=type(field.default), default=field.default, help=" ")

    _add_simulate(commands)

    return parser


def _add_simulate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes `simulate`, with the parameters of each system as its options."""
    from .systems import CATALOGUE

    simulate = commands.add_parser("simulate", help="simulate a data set of a system")
    systems = simulate.add_subparsers(dest="system", required=True, metavar="SYSTEM")

    for name, entry in CATALOGUE.items():
        system = systems.add_parser(
            name,
            help=(entry.system.__doc__ or "").split("\n")[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        options = {
            "trajectories": (1024, "trajectories in all"),
            "length": (entry.length, "states of a trajectory"),
            "burn_in": (entry.burn_in, "transitions before the first state"),
            "seed": (0, "seed of the simulation"),
            "block": (entry.block, "trajectories simulated, and written, together"),
            "workers": (1, "processes that simulate"),
        }
        if len(entry.dims) == 3:
            options["coarsen"] = (1, "factor by which fields are coarsened")

        system.add_argument("--out", default=f"{name}.h5", help="HDF5 file to write")
        for option, (number, text) in options.items():
            system.add_argument(_flag(option), type=int, default=number, help=text)
        for option, default in entry.parameters.items():
            if isinstance(default, bool):
                system.add_argument(_flag(option), action="store_true", help="of the system")
            else:
                system.add_argument(
                    _flag(option), type=type(default), default=default, help="of the system"
                )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _info(_: argparse.Namespace) -> None:
    from .info import describe

    print(describe())


def _prior(arguments: argparse.Namespace) -> None:
    from .io import read_record

    record = read_record(arguments.name)
    errors = record["validation"]

    for part in ("system", "shape", "network", "schedule", "training"):
        print(f"{part:10}{json.dumps(record[part])}")
    print("\ndenoising error by diffusion time, for windows of each length")
    print("  length" + "".join(f"{t:>8}" for t in errors["levels"]))
    for length, values in errors["denoising_error"].items():
        print(f"{length:>8}" + "".join(f"{value:8.3f}" for value in values))


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import demo

    print(
        demo(
            arguments.out,
            members=arguments.members,
            seed=arguments.seed,
            backend=arguments.backend,
        )
    )


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from .training import Config, train

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    values = {field.name: getattr(arguments, field.name) for field in fields(Config)}
    config = Config(**values | {"lengths": tuple(arguments.lengths)})
    out = getattr(arguments, "out", f"{config.system}.safetensors")
    record = train(config, out, resume=arguments.resume, every=arguments.every)

    print(f"wrote {out}")
    print(json.dumps(record["validation"], indent=1))


def _simulate(arguments: argparse.Namespace) -> None:
    # jax, if it is used: one core a process is faster, and on several they wait for each other
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_thunk_runtime=false"
    )
    from .data import Recipe, generate
    from .systems import CATALOGUE

    values = vars(arguments)
    options = ("trajectories", "length", "burn_in", "block", "coarsen", "seed")
    recipe = Recipe(
        arguments.system,
        {name: values[name] for name in CATALOGUE[arguments.system].parameters},
        **{name: values[name] for name in options if name in values},
    )
    print(f"wrote {generate(recipe, arguments.out, workers=arguments.workers)}")


COMMANDS = {
    "info": _info,
    "prior": _prior,
    "demo": _demo,
    "train": _train,
    "simulate": _simulate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Arguments:
        arguments: The words of the command line, by default those of the process.

    Returns:
        The exit status: 0, or 1 if the command failed, after one line that says why.
    """
    parsed = _parser().parse_args(arguments)

    try:
        COMMANDS[parsed.command](parsed)
    except EXPECTED as error:
        print(f"sda_fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sda_fast: interrupted", file=sys.stderr)
        return 130

    return 0
