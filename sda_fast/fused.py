r"""Networks that run as one native operator.

A :class:`FusedMLP` is made from a :class:`sda_fast.MCScoreNet` whose kernel is a residual MLP. It
evaluates the network on all windows of a trajectory and composes the result without ever writing a
tensor of windows times width, and its vector-Jacobian product likewise. It uses the network's own
parameters: their packed copy is renewed when they change.

Its precision follows :func:`torch.set_float32_matmul_precision`: "highest" is float32 throughout;
"high" rounds the factors of the network's matrix products to TF32 on CUDA, and "medium" to bfloat16
where the processor multiplies such. Sums and all else are float32.
"""

__all__ = ["MIN_ROWS", "FusedMLP", "Packed", "UnfusableError"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _autocast, _native, ops
from ._calls import hooked, replaced
from ._kept import Versions, keeping, version
from ._precision import matmul_precision
from .composition import Plan
from .nn import LayerNorm, ResidualBlock, ResMLP, TimeEmbedding
from .packing import Fragments, Packing, Panels

# Below this many rows a matrix product may sum in another order: what it returns would depend, by
# rounding, on how rows are grouped.
MIN_ROWS = 32

# The native activations in the order of the operator's numbers, and what their arguments must be.
ACTIVATIONS: tuple[tuple[type[nn.Module], dict[str, Any]], ...] = (
    (nn.ReLU, {}),
    (nn.ELU, {"alpha": 1.0}),
    (nn.SELU, {}),
    (nn.SiLU, {}),
    (nn.GELU, {"approximate": "none"}),
)


class UnfusableError(Exception):
    """Says why a network cannot be fused."""


def expect(module: Any, kind: type[nn.Module], name: str) -> Any:
    """Checks that a module is exactly of a type, and that nothing is hooked to it."""
    if type(module) is not kind:
        raise UnfusableError(f"its {name} is of type {type(module).__name__}, not {kind.__name__}")
    return _expect_plain(module, name)


def _expect_plain(module: Any, name: str) -> Any:
    if hooked(module) or replaced(type(module)):
        raise UnfusableError(f"its {name} has hooks, or another forward")
    return module


def _linear(module: Any) -> nn.Linear:
    """Checks a linear layer."""
    linear: nn.Linear = expect(module, nn.Linear, "layer")
    if linear.bias is None:
        raise UnfusableError("a layer has no bias")
    check_weights(linear)
    return linear


def check_weights(layer: Any) -> None:
    """Checks the weights of a layer: numbers in memory, of float32."""
    for x in (layer.weight, layer.bias):
        if x is None:
            continue
        if not _native.is_plain(x):
            raise UnfusableError(f"its weights are of type {type(x).__name__}, {x.layout}")
        if x.dtype != torch.float32:
            raise UnfusableError(f"its weights are {x.dtype}, not torch.float32")


def activation_number(module: nn.Module) -> int:
    """Returns the operator's number of an activation."""
    _expect_plain(module, "activation")
    for number, (kind, arguments) in enumerate(ACTIVATIONS):
        if type(module) is kind and all(getattr(module, k) == v for k, v in arguments.items()):
            return number
    raise UnfusableError(f"its activation {module} is not native")


def _packing(device: torch.device) -> Packing:
    """Returns how weights are packed on a device for the precision that is set."""
    precision = matmul_precision(device)
    if device.type == "cuda":
        return Fragments(bfloat16=precision == "medium", tf32=precision == "high")
    return Panels(bfloat16=precision == "medium" and _native.has_bfloat16())


class Packed:
    """The packed weights of a network and their transposes, packed anew when they change."""

    def __init__(self) -> None:
        # what was packed, and the result: at once, as threads of other precisions pack too
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def __reduce__(self) -> tuple[type["Packed"], tuple[()]]:
        """A copy of a network, or a saved one, packs its own."""
        return Packed, ()

    @keeping()
    def of(
        self, linears: list[nn.Linear], seen: tuple[int, int], packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """Packs linear layers, of the first of which only some columns: up to the first number,
        and from the second on."""
        parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
        versions = (packing, seen, Versions(parameters))

        kept = self._kept
        if kept is None or kept[0] != versions:
            first, *others = linears
            window, mask = first.weight[:, : seen[0]], first.weight[:, seen[1] :]

            forward = [packing.matrix(torch.cat((window, mask), dim=1))]
            for linear in others:
                forward += [packing.matrix(linear.weight), packing.padded(linear.bias)]
            backward = [packing.matrix(linear.weight.T) for linear in reversed(others)]
            backward.append(packing.matrix(window.T))

            kept = self._kept = versions, (torch.cat(forward), torch.cat(backward))

        return kept[1]


class FusedMLP:
    """The residual MLP of a score network, evaluated on windows and composed natively.

    Arguments:
        network: The score network, a :class:`sda_fast.MCScoreNet` with a kernel of type
            :class:`sda_fast.ScoreNet`.
        packed: Where its packed weights are kept.
        packing: How they are packed, by default as the device of its parameters wants them.

    Raises:
        UnfusableError: The network does not have the structure of a residual MLP.
    """

    def __init__(self, network: Any, packed: Packed, packing: Packing | None = None):
        kernel = network.kernel
        _expect_plain(kernel, "kernel")
        self.embedding: TimeEmbedding = expect(kernel.embedding, TimeEmbedding, "embedding")
        self.length_aware: bool = network.length_aware

        layers = list(expect(kernel.network, ResMLP, "network"))
        if not layers or type(layers[0]) is not nn.Linear:
            raise UnfusableError("its first layer is not linear")

        self.linears: list[nn.Linear] = []
        self.widths: list[int] = []
        activations = set()

        for layer in layers:
            if type(layer) is nn.Linear:
                self.linears.append(_linear(layer))
                continue
            block = list(expect(layer, ResidualBlock, "layer"))
            if len(block) != 4:
                raise UnfusableError(f"a block has {len(block)} parts, not 4")
            norm, before, activation, after = block
            norm = expect(norm, LayerNorm, "norm")
            if (norm.dim, norm.eps) != (-1, 1e-5):
                raise UnfusableError(f"its norm is over dimension {norm.dim} with eps {norm.eps}")
            activations.add(activation_number(activation))
            self.linears += [_linear(before), _linear(after)]
            self.widths.append(before.in_features)

        if len(activations) != 1:
            raise UnfusableError("its activations are not all the same")
        if [(p.in_features, p.out_features) for p in self.linears] != self._sizes():
            raise UnfusableError("its layers are not one between widths and two in each block")
        (self.activation,) = activations

        # the columns of the first layer: window, time embedding, context and mask
        window = network.features * network.window
        mask = network.window if self.length_aware else 0
        embedding = _linear(self.embedding[-1] if len(self.embedding) else None).out_features
        self.context = self.linears[0].in_features - window - embedding - mask
        self.columns = (window, window + embedding + self.context)
        if min(self.widths) < 2 or self.widths[-1] != window or self.context < 0:
            raise UnfusableError("its widths are not those of a score network")

        self.device = self.linears[0].weight.device
        self.packing = _packing(self.device) if packing is None else packing
        self.bfloat16, self.tf32 = self.packing.bfloat16, self.packing.tf32
        self.weights, self.transposed = packed.of(self.linears, self.columns, self.packing)
        # biases by time, and the type of times and the context that they are of
        self._biases: tuple[tuple[Any, ...], Tensor | None, dict[float, Tensor]] = ((), None, {})

    def _sizes(self) -> list[tuple[int, int]]:
        """Returns the inputs and outputs of the linear layers that the operator knows."""
        sizes, width = [], self.linears[0].in_features
        for n, block in enumerate(self.widths):
            if n == 0 or block != width:
                sizes.append((width, block))
            sizes += [(block, block)] * 2
            width = block
        return sizes

    def unserved(self, x: Tensor, t: Tensor | None, c: Tensor | None) -> str | None:
        """Returns why the operator cannot serve these arguments, or None if it can."""
        if x.dtype != torch.float32 or x.ndim != 3 or x.device.type not in ("cpu", "cuda"):
            return "the fused network serves vectors of float32 on CPU and CUDA"
        if x.device != self.device:
            return f"its parameters are on {self.device}, and the states on {x.device}"
        if _autocast.is_on(x):
            return "autocast is on"
        if t is not None and t.numel() != 1 and t.shape != (len(x), 1):
            return "the fused network serves one time, or one for each sample"
        if c is not None and c.shape != (self.context,):
            return "the fused network serves one context for all samples"
        if any(s is not None and s.requires_grad for s in (t, c)):
            return "the fused network has no gradient of time and context"
        return self._too_large() if self.device.type == "cuda" else None

    def _too_large(self) -> str | None:
        """Returns why a tile of windows does not fit into a multiprocessor, or None if it does."""
        properties = torch.cuda.get_device_properties(self.device)
        shared = getattr(
            properties, "shared_memory_per_block_optin", properties.shared_memory_per_block
        )
        mask = self.linears[0].in_features - self.columns[1]
        return ops.too_large(self.widths, self.columns[0] + mask, self.bfloat16, shared)

    def __call__(self, x: Tensor, t: Tensor, c: Tensor | None, plan: Plan) -> Tensor:
        """Maps trajectories (B, L, D), a time () or times (B, 1) and context (context) to noise
        (B, L, D)."""
        return ops.mlp_score(*self._arguments(x, t, c, plan))

    def linearise(
        self, x: Tensor, t: Tensor, c: Tensor | None, plan: Plan
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Returns the noise as well as its vector-Jacobian product, from (B, L, D) to (B, L, D)."""
        return ops.mlp_score_linearised(*self._arguments(x, t, c, plan))

    def _arguments(self, x: Tensor, t: Tensor, c: Tensor | None, plan: Plan) -> tuple[Any, ...]:
        """Returns the arguments of the operator."""
        return (
            x,
            plan.start,
            plan.mask,
            plan.weight,
            self._bias_at(t, c),
            self.weights,
            self.transposed,
            self.widths,
            self.activation,
            self.length_aware,
            self.bfloat16,
            self.tf32,
        )

    def bytes(self, windows: int, gradient: bool) -> int:
        """Returns about how much memory it takes for a number of windows beside what it is given
        and returns."""
        packed = self.weights.nbytes + self.transposed.nbytes
        return packed + ops.mlp_bytes(self.widths, windows, gradient, self.bfloat16, self.device)

    def prepare(self, times: Tensor, c: Tensor | None) -> None:
        """Computes the first layer's biases of times (N) at once, where one by one they would take
        a fifth as long as the network of a sample: the same bits in whatever grid."""
        if all(time in self._of(times, c) for time in times.tolist()):
            return
        rows = torch.cat((times, times.new_ones(MIN_ROWS)))[: max(len(times), MIN_ROWS)]
        self._of(times, c).update(zip(rows.tolist(), self._bias(rows, c).split(1), strict=True))

    def _bias_at(self, t: Tensor, c: Tensor | None) -> Tensor:
        """Returns the first layer's bias (1 or B, width), time and context included. On a CPU it is
        kept: chunks of samples share it, and a step's end with its corrections."""
        if t.numel() != 1 or not t.is_cpu:
            return self._bias(t, c)

        biases, time = self._of(t, c), t.item()
        if time not in biases:
            biases[time] = self._bias(t, c)
        return biases[time]

    def _of(self, t: Tensor, c: Tensor | None) -> dict[float, Tensor]:
        """Returns the biases that are known with a context."""
        made_of = t.dtype, None if c is None else version(c)
        if self._biases[:1] != (made_of,) or self._biases[1] is not c:
            self._biases = made_of, c, {}
        return self._biases[2]

    def _bias(self, t: Tensor, c: Tensor | None) -> Tensor:
        """Computes the first layer's bias."""
        first = self.linears[0]
        with torch.no_grad():
            features = self.embedding(t.reshape(-1))
            if c is not None:
                features = torch.cat((features, c.expand(len(features), -1)), dim=1)
            columns = first.weight[:, slice(*self.columns)]
            return self.packing.padded(torch.addmm(first.bias, features, columns.T))
