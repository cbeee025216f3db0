r"""Recognises other people's networks and guidance modules by what they have.

Existing score-based data assimilation code brings objects of the reference package. What has the
structure of a network or a guidance module of this package is served by this package's own, which
runs natively, over the same parameters. Structure is a guess, so the twin is used only after it has
agreed with the original on numbers (:func:`agrees`).
"""

__all__ = ["agrees", "twin"]

import copy
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import ops
from ._calls import hooked
from ._kept import Versions, identical, keeping, numbers, settled, told
from .guidance import DPSGaussianScore, GaussianScore, Guidance, context_for, in_pieces
from .kernels import ForcedScoreUNet
from .nn import ACTIVATIONS
from .score import MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet, sampling

# The twin may round in other places, no more: guidance may magnify that, as its operator does.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5}  # of networks; of half types, and
ROUGH = 1e-3  # of guidance
# Near both ends too: guidance may be of some times only.
TIMES = (0.005, 0.02, 0.2, 0.5, 0.8, 0.95, 0.99)
FEW_TIMES = (0.02, 0.5, 0.95)  # where the network is evaluated
SAMPLES = 2  # that are compared: they may not be independent of each other

OWN = (MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet, Guidance)


def twin(eps: Any) -> Any | None:
    """Returns this package's equivalent of a network or a guidance module, or None.

    Arguments:
        eps: The object. One of this package's own has none, but for guidance of another's network.
    """
    if isinstance(eps, Guidance) and in_pieces(eps):
        network = twin(eps.sde.eps)
        return None if network is None else _around(eps, network)
    if isinstance(eps, OWN):
        return None
    if isinstance(eps, nn.Module) and any(map(hooked, eps.modules())):
        return None
    try:
        if _changed(eps):
            return None
        if not hasattr(eps, "sde"):
            return _network(eps)
        network = eps.sde.eps
        network = network if isinstance(network, OWN) else twin(network)
        return None if network is None else _guidance(eps, network)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # it lacks a part, or a part does not fit: another structure


def _changed(module: Any) -> bool:
    """Says whether a class derived from somebody's own has another forward than that: it computes
    something else, wherever its numbers may agree. Of such U-Nets that keep a forcing is known what
    they do with it."""
    if hasattr(module, "forcing"):
        return False
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    return sum("forward" in vars(kind) for kind in kinds) > 1


def _guidance(score: Any, network: nn.Module) -> Guidance:
    """Makes the twin of a guidance module, y, A, sde, and zeta or else std, gamma and detach,
    around a network."""
    process = SimpleNamespace(eps=network, mu=score.sde.mu, sigma=score.sde.sigma)

    if hasattr(score, "zeta"):
        return DPSGaussianScore(score.y, score.A, process, score.zeta)
    return GaussianScore(score.y, score.A, score.std, process, score.gamma, score.detach)


# Of each network the twin that was made last, with what it was made of.
_made: "WeakKeyDictionary[nn.Module, tuple[list[Any], nn.Module]]" = WeakKeyDictionary()


def _network(score: Any) -> nn.Module:
    """Returns the twin of a network, the same as before if that has the same parameters and
    modules: its weights need not be packed again."""
    state = score.state_dict(keep_vars=True)
    order = getattr(score, "order", None)
    parts = [order, score.training, *map(type, score.modules()), *map(id, state.values())]
    kept = _made.get(score)
    if kept is None or kept[0] != parts:
        with keeping():
            kept = _made[score] = parts, _build(score)
    if not _same_layers(score, kept[1]):
        raise TypeError
    return kept[1]


def _build(score: Any) -> nn.Module:
    """Makes the twin of a U-Net, of one over time, `score`, or of a composed network: `order`,
    `kernel.embedding`, `kernel.network`."""
    with torch.device("meta"):
        if hasattr(score, "score"):
            network: nn.Module = MCScoreWrapper(_unet(score.score))
        elif not hasattr(score, "kernel"):
            network = _unet(score)
        elif hasattr(score.kernel.network, "heads"):
            network = _windows_of_fields(score)
        else:
            network = _windows_of_vectors(score)

    # the parameters themselves, not copies of them; that tells them whether to require gradients
    state = score.state_dict(keep_vars=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(state[name].requires_grad)
    network.load_state_dict(state, assign=True)

    return network.train(score.training)


def _same_layers(score: nn.Module, network: nn.Module) -> bool:
    """Says whether two networks have the same layers in the same order, as far as parameters do not
    tell: torch's with the same settings, and norms with the same eps."""
    if any(map(_changed, score.modules())):
        return False
    layers, others = ([m for m in n.modules() if not any(m.children())] for n in (score, network))
    return len(layers) == len(others) and all(map(_alike, layers, others))


def _alike(layer: nn.Module, other: nn.Module) -> bool:
    theirs, ours = _settings(layer), _settings(other)
    if type(layer).__module__.startswith("torch.nn"):
        return type(layer) is type(other) and theirs == ours
    return all(theirs.get(name, value) == value for name, value in ours.items())


def _settings(module: nn.Module) -> dict[str, Any]:
    """Returns what a module was told, unless that changes nothing or there are several words for
    it."""
    left_out = ("training", "inplace", "scale_factor", "unflattened_size")
    return {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and name not in left_out
    }


def _windows_of_vectors(score: Any) -> MCScoreNet:
    """Builds the structure of a composed residual MLP."""
    layers = list(score.kernel.network)
    blocks = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    widths = [block[1].in_features for block in blocks]
    (activation,) = {type(block[2]) for block in blocks}

    window = 2 * score.order + 1
    embedding = score.kernel.embedding[-1].out_features
    if activation not in ACTIVATIONS.values():
        raise TypeError

    return MCScoreNet(
        widths[-1] // window,
        context=layers[0].in_features - widths[-1] - embedding,
        order=score.order,
        embedding=embedding,
        hidden_features=widths[:-1],
        activation=activation,
    )


def _windows_of_fields(score: Any) -> MCScoreNet:
    """Builds the structure of a composed U-Net."""
    kernel = _unet(score.kernel)
    unet, window = kernel.network, 2 * score.order + 1
    context = unet.in_channels - unet.out_channels - isinstance(kernel, ForcedScoreUNet)
    if unet.out_channels % window:
        raise ValueError

    network = MCScoreNet(unet.out_channels // window, context, score.order)
    network.kernel = kernel
    return network


def _unet(kernel: Any) -> ScoreUNet:
    """Builds the structure of a U-Net, with a channel for the forcing if it keeps one."""
    heads, (*_, last) = list(kernel.network.heads), kernel.network.tails
    first, downs = heads[0], [head[0] for head in heads[1:]]
    blocks = [block for level in kernel.network.descent for block in level]
    (activation,) = {type(block.residue[2]) for block in blocks}
    if activation not in ACTIVATIONS.values():
        raise TypeError

    forced = hasattr(kernel, "forcing")
    context = first.in_channels - last.out_channels - forced
    structure = {
        "embedding": kernel.embedding[-1].out_features,
        "hidden_channels": [first.out_channels, *(down.out_channels for down in downs)],
        "hidden_blocks": [len(level) for level in kernel.network.descent],
        "kernel_size": first.kernel_size,
        "stride": downs[0].stride if downs else 2,
        "activation": activation,
        "spatial": first.weight.ndim - 2,
        "padding_mode": first.padding_mode,
    }
    if forced:
        forcing = torch.empty(kernel.forcing.shape)
        return ForcedScoreUNet(last.out_channels, context, forcing=forcing, **structure)
    return ScoreUNet(last.out_channels, context, **structure)


def agrees(eps: Any, other: Any, x: Tensor, *context: Tensor | None) -> bool:
    """Says whether a network or guidance module and its twin agree on the first of some noisy
    states. Networks are both evaluated by torch's own operators: these give the same numbers for
    the same work, in whatever precision they multiply. All that shall cost little beside a sample:
    windows are compared on a few of them, and guidance apart from its network, around one that
    costs nothing, where it can be.

    Arguments:
        eps: The one.
        other: Its twin.
        x: Noisy states, with shape (B, *event).
        context: The context, if any is passed.
    """
    with sampling():
        if not hasattr(eps, "sde"):
            return _networks_agree(eps, other, x, *context)

        network, ours = eps.sde.eps, other.sde.eps
        passed = context_for(network, context[0] if context else None)
        if ours is not network and not _networks_agree(network, ours, x, *passed):
            return False
        if type(eps) is type(other):
            return True  # ours, around another's network
        try:
            trial = _Trial()
            around = _around(eps, trial), _guidance(eps, trial)
            return _all_agree(TIMES, ROUGH, *around, x, *context)
        except Exception:
            pass  # it asks for more than a network's estimate, or is not copied by its attributes
        with ops.backend("reference"):
            return _all_agree(FEW_TIMES, ROUGH, eps, other, x, *context)


# Of each network the last comparison: what was compared and how it came out.
_compared: "WeakKeyDictionary[Any, tuple[_Comparison, bool]]" = WeakKeyDictionary()


class _Comparison:
    """What a network and its twin are compared by: what they are made of, their numbers, and the
    shapes of states and context.

    Raises:
        TypeError: The network has what may change unseen, such as lists and functions.
    """

    def __init__(self, eps: nn.Module, other: nn.Module, x: Tensor, *context: Tensor | None):
        modules = list(eps.modules())
        if not settled(modules):
            raise TypeError
        self.things = [other, *told(modules)]
        self.modes = [module.training for module in modules]
        self.state = Versions(other.state_dict(keep_vars=True).values())  # of both
        self.numbers = numbers(modules)
        self.shapes = [
            None if y is None else (len(y[:SAMPLES]), *y.shape[1:], y.dtype, y.device)
            for y in (x, *context)
        ]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Comparison)
            and identical(self.things, other.things)
            and (self.modes, self.state, self.numbers, self.shapes)
            == (other.modes, other.state, other.numbers, other.shapes)
        )


def _networks_agree(eps: Any, other: Any, x: Tensor, *context: Tensor | None) -> bool:
    """Compares, or knows from before."""
    try:
        comparison = _Comparison(eps, other, x, *context)
    except TypeError:
        return _compare(eps, other, x, *context)
    known = _compared.get(eps)
    if known is None or known[0] != comparison:
        known = _compared[eps] = comparison, _compare(eps, other, x, *context)
    return known[1]


def _compare(eps: Any, other: Any, x: Tensor, *context: Tensor | None) -> bool:
    """Compares, if the twin is of windows, on one of them, and at one time on three, the first, one
    within and the last; unless the context is of the whole."""
    tolerance = TOLERANCE.get(x.dtype, 1e-2)
    with ops.backend("reference"):
        if isinstance(other, MCScoreNet):
            one, three = x[:, : other.window], x[:, : other.window + 2]
            try:
                return _all_agree(
                    FEW_TIMES[:1], tolerance, eps, other, three, *context
                ) and _all_agree(FEW_TIMES[1:], tolerance, eps, other, one, *context)
            except Exception:  # of the user's own network
                pass
        return _all_agree(FEW_TIMES, tolerance, eps, other, x, *context)


class _Trial(nn.Module):
    """What guidance is compared around: of state, time and context, with a Jacobian that is neither
    diagonal nor symmetric."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        shift = t if c is None else t + c.to(x.dtype).mean()
        return 0.5 * x.roll(1, -1) + (0.5 + 0.3 * t) * torch.sin(x + shift)


def _around(score: Any, network: nn.Module) -> Any:
    """Returns a copy of a guidance module that guides another network."""
    copied, copied.sde = _shallow(score), _shallow(score.sde)
    copied.sde.eps = network
    return copied


def _shallow(thing: Any) -> Any:
    """Copies an object that shares its attributes, but not the lists of a module's."""
    copied = copy.copy(thing)
    if isinstance(thing, nn.Module):
        for attributes in ("_modules", "_parameters", "_buffers"):
            vars(copied)[attributes] = dict(vars(thing)[attributes])
    return copied


def _all_agree(
    times: tuple[float, ...],
    tolerance: float,
    eps: Any,
    other: Any,
    x: Tensor,
    *context: Tensor | None,
) -> bool:
    return all(_agree_at(t, tolerance, eps, other, x, *context) for t in times)


def _agree_at(
    time: float, tolerance: float, eps: Any, other: Any, x: Tensor, *context: Tensor | None
) -> bool:
    t = torch.tensor(time, dtype=x.dtype, device=x.device)

    few = x[:SAMPLES]
    try:
        a, b = eps(few.clone(), t, *context), other(few.clone(), t, *context)
    except Exception:  # what is observed of each sample may differ
        a = eps(x.clone(), t, *context)
        try:
            b = other(x.clone(), t, *context)
        except Exception:  # it asks for more than the original
            return False

    return a.shape == b.shape and bool((a - b).norm() <= tolerance * a.norm())
