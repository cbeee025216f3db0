r"""Recognises other people's networks and guidance modules by what they have.

Existing score-based data assimilation code brings objects of the reference package. What has the
structure of a network or a guidance module of this package is served by this package's own, which
runs natively, over the same parameters. Structure is a guess, so the twin is used only after it has
agreed with the original on numbers (:func:`agrees`).
"""

__all__ = ["agrees", "twin"]

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ._calls import hooked
from ._kept import keeping
from ._precision import exact_products
from .guidance import DPSGaussianScore, GaussianScore, Guidance
from .kernels import ForcedScoreUNet
from .nn import ACTIVATIONS
from .score import MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet, sampling

# The twin rounds in other places, no more.
TOLERANCE = 1e-3
# Near both ends too: guidance may be of some times only.
TIMES = (0.02, 0.5, 0.95)

OWN = (MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet, Guidance)


def twin(eps: Any) -> Any | None:
    """Returns this package's equivalent of a network or a guidance module, or None.

    Arguments:
        eps: The object. One of this package's own has no twin.
    """
    if isinstance(eps, OWN):
        return None
    if isinstance(eps, nn.Module) and any(map(hooked, eps.modules())):
        return None
    try:
        return _guidance(eps) if hasattr(eps, "sde") else _network(eps)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # it lacks a part, or a part does not fit: another structure


def _guidance(score: Any) -> Guidance | None:
    """Makes the twin of a guidance module: y, A, sde, and zeta or else std, gamma and detach."""
    network = score.sde.eps
    if not isinstance(network, OWN):
        network = twin(network)
    if network is None:
        return None

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

    # the parameters themselves, not copies of them
    network.load_state_dict(score.state_dict(keep_vars=True), assign=True)

    return network.train(score.training)


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


def agrees(
    eps: Callable[..., Tensor], other: Callable[..., Tensor], x: Tensor, *context: Tensor | None
) -> bool:
    """Says whether two noise estimators agree on the first of some noisy states.

    Arguments:
        eps: The one.
        other: The other.
        x: Pure noise, with shape (B, *event).
        context: The context, if any is passed.
    """
    with exact_products(x.device), sampling():
        return all(_agree_at(t, eps, other, x, *context) for t in TIMES)


def _agree_at(
    time: float,
    eps: Callable[..., Tensor],
    other: Callable[..., Tensor],
    x: Tensor,
    *context: Tensor | None,
) -> bool:
    t = torch.tensor(time, dtype=x.dtype, device=x.device)

    try:
        a, b = eps(x[:1], t, *context), other(x[:1], t, *context)
    except (RuntimeError, ValueError):  # what is observed of each sample may differ
        a = eps(x, t, *context)
        try:
            b = other(x, t, *context)
        except (RuntimeError, ValueError):  # it asks for more than the original
            return False

    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * a.norm())
