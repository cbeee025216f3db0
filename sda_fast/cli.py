"""The command line, `python -m sda_fast`."""

__all__ = ["main"]

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

EXPECTED = (ValueError, TypeError, ImportError, RuntimeError, OSError)


def _parser() -> argparse.ArgumentParser:
    """Describes the commands. Their modules are imported only when they run."""
    from .io import PRIORS

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

    _add_train(commands)
    _add_simulate(commands)

    return parser


def _target(word: str) -> str:
    """Says what is trained on: a system's name, a configuration's file or a data set's."""
    from .systems import CATALOGUE

    if word in CATALOGUE or Path(word).suffix in (".toml", ".json", ".h5", ".hdf5"):
        return word
    raise argparse.ArgumentTypeError(
        f"must be one of {', '.join(CATALOGUE)}, or a .toml, .json or .h5 file, got {word!r}"
    )


def _setting(word: str) -> tuple[str, Any]:
    """Reads NAME=VALUE."""
    name, _, value = word.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be NAME=NUMBER, got {word!r}") from error


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes `train`, whose options are those of a configuration."""
    from .training import Config

    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a prior on a system or a data set",
        description="Trains a prior on a simulated system, or on a data set (HDF5). An option "
        "given here overrides that of a configuration file (TOML or JSON).",
    )
    train.add_argument("target", type=_target, help="a system, a configuration or a data set")
    train.add_argument("--out", help="safetensors file to write (default: by the target)")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    train.add_argument(
        "--overwrite", action="store_true", help="replace a prior or a checkpoint that is there"
    )
    train.add_argument("--every", type=int, default=2000, help="iterations between validations")
    train.add_argument(
        "--checkpoint-every", type=int, help="iterations between checkpoints (default: --every)"
    )
    train.add_argument("--half", action="store_true", help="save parameters in half precision")
    train.add_argument("--device", help="where to compute (default: a GPU if there is one)")
    train.add_argument("--threads", type=int, help="threads to compute with")
    train.add_argument("--workers", type=int, default=0, help="processes that read a data set")
    train.add_argument("--no-figure", action="store_true", help="draw no samples at the end")

    texts, kinds = _texts(Config), get_type_hints(Config)
    for name in (field.name for field in fields(Config)):
        kind, default, text = kinds[name], getattr(Config, name, None), texts.get(name, "")
        if default not in (None, "", ()) and "default" not in text:
            text += f" (default: {default})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind == tuple[int, ...]:
            options |= {"type": int, "nargs": "+"}
        elif kind == dict[str, Any]:
            options |= {"type": _setting, "nargs": "+", "metavar": "NAME=NUMBER"}
        else:
            options["type"] = kind
        train.add_argument(_flag(name), **options)


def _add_simulate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes `simulate`, with the parameters of each system as its options."""
    from .systems import CATALOGUE

    simulate = commands.add_parser("simulate", help="simulate a data set of a system")
    systems = simulate.add_subparsers(dest="system", required=True, metavar="SYSTEM")

    for name, entry in CATALOGUE.items():
        system = systems.add_parser(
            name,
            allow_abbrev=False,
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
        texts = _texts(entry.system)
        for option, default in entry.parameters.items():
            told: dict[str, Any] = {"help": texts.get(option, "").replace("%", "%%") or None}
            if isinstance(default, bool):
                system.add_argument(_flag(option), action="store_true", **told)
            else:
                system.add_argument(_flag(option), type=type(default), default=default, **told)


def _texts(kind: type) -> dict[str, str]:
    """Returns what the docstrings of a class and its bases say of its arguments."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        # Python 3.13 keeps docstrings without their indentation, -OO not at all
        lines = inspect.cleandoc(each.__doc__ or "")
        texts |= re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", lines, re.MULTILINE)
    return {
        name: re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(text.split()))
        for name, text in texts.items()
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _info(_: argparse.Namespace) -> None:
    from .info import describe

    print(describe())


def _prior(arguments: argparse.Namespace) -> None:
    from .io import read_record

    record = read_record(arguments.name)
    for part in ("system", "shape", "network", "schedule", "data", "training"):
        if part in record:
            print(f"{part:10}{json.dumps(record[part])}")

    errors = record.get("validation")
    if not errors:  # only training measures them
        return
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

    from .training import Config, draw_samples, read_config, train
    from .training.files import Files

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)

    target, given = arguments.target, vars(arguments)
    kind = Path(target).suffix
    options: dict[str, Any] = {}
    if kind in (".toml", ".json"):
        options = read_config(target)
    elif kind:
        options = {"data": target}
    else:
        options = {"system": target}
    options |= {name: given[name] for name in get_type_hints(Config) if name in given}
    if isinstance(options.get("parameters"), list):
        options["parameters"] = dict(options["parameters"])

    config = Config.of(options, target if kind in (".toml", ".json") else "the command line")
    name = Path(target).name.removesuffix(".config.json").removesuffix(kind)
    out = Path(arguments.out or f"{name}.safetensors")
    if not (arguments.resume or arguments.overwrite):
        for path in (out, Files(out).checkpoint):
            if path.exists():
                raise FileExistsError(
                    f"{path} is there already: --resume goes on with its run, --overwrite replaces "
                    "it, and --out names another"
                )
    record = train(
        config,
        out,
        resume=arguments.resume,
        every=arguments.every,
        checkpoint_every=arguments.checkpoint_every,
        half=arguments.half,
        device=arguments.device,
        workers=arguments.workers,
    )
    if not record:  # another process has written it
        return

    print(json.dumps(record["validation"], indent=1))
    if not arguments.no_figure:
        picture = Files(out).samples
        try:
            draw_samples(out, picture)
        except Exception as error:  # the prior is there: a picture is not worth failing for
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"no picture of samples: {reason}", file=sys.stderr)


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
