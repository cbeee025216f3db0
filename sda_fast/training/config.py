"""What a training run is a function of."""

__all__ = ["Config"]

from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, get_type_hints

from ..systems import CATALOGUE
from .options import convert

SCHEDULERS = ("linear", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """What a training run is a function of. The defaults are the paper's.

    The number of processes is not: each takes its share of every batch.

    Arguments:
        system: The name of the system, by default that of the data, or lorenz63.
        data: The data set to learn from, an HDF5 file (see :class:`sda_fast.data.Trajectories`),
            of which 8 tenths train and a tenth validates. By default the system is simulated, which
            it must be one of this package for.
        parameters: The parameters of the simulated system that are not as in the catalogue.
        coarsen: The factor by which simulated fields are coarsened.
        trajectories: The number of trajectories simulated, of which a tenth validates.
        states: The number of states of each, by default the catalogue's.
        order: The half-width k of the windows of 2k + 1 states.
        length_aware: Whether the network learns windows of several lengths.
        lengths: The lengths that are drawn from, uniformly, if it does; a length may be repeated.
            By default the full window as often as all shorter ones together. With consistency,
            those of what is cut out of the windows, by default all shorter ones.
        consistency: Whether every window is learnt together with a shorter one cut out of it, which
            learns what the network estimates of the whole, so that the two agree in the junction
            rule (see :func:`sda_fast.training.loss.consistency_error`). A step then evaluates
            twice batch_size windows.
        composition: How scores of windows are composed where a user does not say: centre, or
            junction for a length-aware network.
        prediction: What the network estimates, noise as in the paper or velocity, from which the
            noise follows (see :class:`sda_fast.kernels.VelocityKernel`). The loss is of the noise.
        embedding: The number of time embedding features, by default 32, of fields 64.
        activation: The name of the activation function.
        width: The width of the hidden layers of an MLP.
        depth: The number of hidden layers of an MLP.
        hidden_channels: The channels at each depth of a U-Net, which is what learns fields. By
            default (96, 192, 384).
        hidden_blocks: The residual blocks at each depth of a U-Net, by default 3.
        kernel_size: The size of the kernels of a U-Net.
        padding_mode: The padding of a U-Net.
        iterations: The number of optimisation steps.
        batch_size: The number of windows of a step, in all processes together, by default 64, of
            fields 32.
        learning_rate: The greatest learning rate, by default 1e-3, of fields 2e-4.
        scheduler: How it falls to zero: linear, cosine, or constant, which does not.
        warmup: The number of steps over which it rises first.
        weight_decay: The weight decay of AdamW.
        clip: The norm that gradients are clipped to, if not 0.
        ema: The decay of the exponential moving average of the weights, which is what is saved.
        precision: The precision of the network's products while it learns, float32 or bfloat16.
            All else is float32.
        channels_last: Whether a U-Net's channels lie side by side in memory while it learns.
        compile: Whether torch.compile compiles the network, which takes a C++ compiler and, at the
            start of a run, up to some minutes.
        validation: The number of windows that validate, by default 4096, of fields 64.
        seed: The seed of the simulation, the initial weights and the order of the data.

    Raises:
        ValueError: An argument is out of its range.
    """

    system: str = None  # type: ignore[assignment]
    data: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    coarsen: int = 1
    trajectories: int = 1024
    states: int = None  # type: ignore[assignment]
    order: int = 2
    length_aware: bool = False
    lengths: tuple[int, ...] = ()
    consistency: bool = False
    composition: str = "centre"
    prediction: str = "noise"
    embedding: int = None  # type: ignore[assignment]
    activation: str = "SiLU"
    width: int = 256
    depth: int = 5
    hidden_channels: tuple[int, ...] = (96, 192, 384)
    hidden_blocks: tuple[int, ...] = ()
    kernel_size: int = 3
    padding_mode: str = "circular"
    iterations: int = 50_000
    batch_size: int = None  # type: ignore[assignment]
    learning_rate: float = None  # type: ignore[assignment]
    scheduler: str = "linear"
    warmup: int = 0
    weight_decay: float = 1e-3
    clip: float = 0.0
    ema: float = 0.999
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    validation: int = None  # type: ignore[assignment]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.system is None:
            system = open_trajectories(self.data).system if self.data else "lorenz63"
            object.__setattr__(self, "system", system)
        entry = CATALOGUE.get(self.system)
        if entry is None and not self.data:
            raise ValueError(f"system must be one of {', '.join(CATALOGUE)}, got {self.system!r}")

        defaults = {
            "states": lambda: 0 if entry is None else entry.length,
            "embedding": lambda: 64 if self.fields else 32,
            "batch_size": lambda: 32 if self.fields else 64,
            "learning_rate": lambda: 2e-4 if self.fields else 1e-3,
            "validation": lambda: 64 if self.fields else 4096,
            "hidden_blocks": lambda: (3,) * len(self.hidden_channels),
        }
        for name, default in defaults.items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, default())

        self._check()
        if self.data and (self.parameters or self.coarsen > 1):
            raise ValueError("parameters and coarsen are of a simulated system, not of data")
        if self.coarsen > 1 and not self.fields:
            raise ValueError(f"coarsen must be 1 for {self.system}, got {self.coarsen}")
        if entry is not None:
            entry.complete(self.parameters)

    def _check(self) -> None:
        """Checks every number and choice by itself."""
        positive = ("order", "width", "depth", "embedding", "iterations", "batch_size")
        for name in (*positive, "learning_rate", "kernel_size", "coarsen", "validation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "clip", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 - 1, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and less than 1, got {self.ema}")
        if self.trajectories < 10:
            raise ValueError(f"trajectories must be at least 10, got {self.trajectories}")
        if not self.data and self.states < self.window:
            raise ValueError(f"states must be at least {self.window}, got {self.states}")

        choices = {
            "scheduler": SCHEDULERS,
            "precision": PRECISIONS,
            "composition": ("centre", "junction"),
            "prediction": ("noise", "velocity"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.composition == "junction" and not self.length_aware:
            raise ValueError("composition 'junction' is only for a length_aware network")
        if self.lengths and not self.length_aware:
            raise ValueError("lengths are only for a length_aware network")
        if self.consistency and not self.length_aware:
            raise ValueError("consistency is only for a length_aware network")
        most = self.window - 1 if self.consistency else self.window
        if any(not 1 <= n <= most for n in self.lengths):
            parts = " with consistency" if self.consistency else ""
            raise ValueError(f"lengths must be between 1 and {most}{parts}, got {self.lengths}")
        if len(self.hidden_blocks) != len(self.hidden_channels):
            raise ValueError(
                f"hidden_blocks must be as many as the {len(self.hidden_channels)} hidden_channels,"
                f" got {self.hidden_blocks}"
            )
        if min((*self.hidden_channels, *self.hidden_blocks), default=0) < 1:
            raise ValueError(
                "hidden_channels and hidden_blocks must be positive, got "
                f"{self.hidden_channels} and {self.hidden_blocks}"
            )

    @property
    def fields(self) -> bool:
        """Whether the states are fields, which a U-Net learns."""
        if self.system in CATALOGUE:
            return len(CATALOGUE[self.system].dims) > 1
        return len(open_trajectories(self.data).shape) > 3

    @property
    def window(self) -> int:
        """The number w of states of a window."""
        return 2 * self.order + 1

    @property
    def mixture(self) -> tuple[int, ...]:
        """The lengths of windows that are drawn from, uniformly."""
        if not self.length_aware or self.consistency:
            return (self.window,)
        shorter = tuple(range(1, self.window))
        return self.lengths or shorter + len(shorter) * (self.window,)

    @property
    def parts(self) -> tuple[int, ...]:
        """The lengths of what is cut out of windows, drawn from uniformly."""
        return (self.lengths or tuple(range(1, self.window))) if self.consistency else ()

    @property
    def learnt(self) -> list[int]:
        """The lengths that the network learns to score, ascending."""
        return sorted({*self.mixture, *self.parts})

    def network(self, state: tuple[int, ...]) -> dict[str, Any]:
        """Returns the arguments of :func:`sda_fast.io.build_network` for states of this shape.

        Raises:
            ValueError: A U-Net cannot halve such fields as often.
        """
        network: dict[str, Any] = {
            "features": state[0],
            "order": self.order,
            "length_aware": self.length_aware,
            "embedding": self.embedding,
        }
        if self.length_aware and len(self.learnt) < self.window:
            network["lengths"] = self.learnt
        if self.prediction == "velocity":
            network["velocity"] = {"alpha": "cos", "eta": 1e-3}
        if len(state) == 1:
            hidden: dict[str, Any] = {"hidden_features": [self.width] * self.depth}
            return network | hidden | {"activation": self.activation}

        factor = 2 ** (len(self.hidden_channels) - 1)
        if any(n % factor for n in state[1:]):
            raise ValueError(
                f"fields must be multiples of {factor} cells wide for a U-Net of "
                f"{len(self.hidden_channels)} depths, got {state}"
            )
        network |= {
            "hidden_channels": list(self.hidden_channels),
            "hidden_blocks": list(self.hidden_blocks),
            "kernel_size": self.kernel_size,
            "padding_mode": self.padding_mode,
            "spatial": len(state) - 1,
            "activation": self.activation,
        }
        if self.system == "kolmogorov":
            network["forcing"] = {"size": state[1], "wavenumber": 4}
        return network

    def differences(self, other: "Config") -> list[str]:
        """Says in which options another configuration differs, the place of the data apart."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{key} {mine[key]!r} (now {theirs[key]!r})"
            for key in mine
            if key != "data" and mine[key] != theirs[key]
        ]

    @classmethod
    def of(cls, values: dict[str, Any], where: str = "the configuration") -> "Config":
        """Makes a configuration of what a file or a command line says.

        Raises:
            ValueError: There is no such option, or its value is of another kind.
        """
        kinds = get_type_hints(cls)
        given: dict[str, Any] = {}

        for key, value in values.items():
            if key not in kinds:
                near = get_close_matches(key, kinds, 1, cutoff=0)[0]
                raise ValueError(f"{where} has no option {key!r}: the nearest is {near!r}")
            if value is not None or getattr(cls, key, 0) is not None:
                given[key] = convert(key, value, kinds[key])

        return cls(**given)


def open_trajectories(data: str) -> Any:
    """Opens a data set."""
    from ..data import Trajectories  # which needs h5py only here

    return Trajectories(data)
