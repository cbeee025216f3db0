"""Random calls of the operators of networks, and of the sampler that makes them: each gives the
reference's numbers, or an error that names an argument. SDA_FAST_FUZZ=nightly makes many more."""

import copy
import re
from functools import lru_cache
from typing import Any

import pytest
import torch
from test_fuzz import (
    DTYPES,
    INTEGERS,
    NATIVE,
    REFUSED,
    SIZES,
    fuzz,
    given,
    hypothesis,
    kept,
    same,
    st,
    tensors,
    unchanged,
)
from torch import Tensor, nn

from sda_fast import (
    VPSDE,
    GaussianScore,
    Junction,
    MCScoreNet,
    _native,
    ops,
    reference,
    sample,
)
from sda_fast.fused import FusedMLP, Packed

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

ACTIVATIONS = (nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU)
FIELD_ARGUMENTS = "x|cotangent|normed|scale|residual|shift|bias|activation|padding|upsample|fields"
NETWORK_ARGUMENTS = "|".join(
    [
        *("x", "start", "mask", "weight", "bias", "weights", "transposed", "widths", "activation"),
        *("bfloat16", "tf32", "kept", "kept_rows", "cotangent"),
    ]
)
CHANNELS = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 33, 64])


# Operators between convolutions


@st.composite
def fields(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draws a field (B, C, H, W) of any layout, the channels first or last."""
    if draw(st.booleans()):
        return draw(tensors(shape, dtype))
    batch, channels, height, width = shape
    return draw(tensors((batch, height, width, channels), dtype)).permute(0, 3, 1, 2)


@st.composite
def paddings(draw: st.DrawFn, shape: tuple[int, ...], upsample: list[int]) -> list[int]:
    return [draw(st.integers(0, u * n)) for u, n in zip(upsample, shape[2:], strict=True)]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def doubled(*args: Any) -> list[Any]:
    return [t.double() if isinstance(t, Tensor) else t for t in args]


def called(name: str, *args: Any) -> tuple[Any, str]:
    """Calls an operator, and returns what it does or why it does not."""
    try:
        return getattr(NATIVE, name)(*args), ""
    except REFUSED as refused:
        return None, str(refused)


def circular(mask: Tensor, padding: list[int]) -> Tensor:
    return reference.activation_pad(mask.double(), None, padding).bool()


def channels_last(x: Tensor, shape: tuple[int, ...]) -> bool:
    return x.shape == shape and x.permute(0, 2, 3, 1).is_contiguous()


def padded(shape: tuple[int, ...], padding: list[int], up: list[int]) -> tuple[int, ...]:
    return (*shape[:2], *(u * n + 2 * p for u, n, p in zip(up, shape[2:], padding, strict=True)))


@pytest.mark.filterwarnings("ignore:var_mean")  # of one channel
@fuzz
@given(st.data())
def test_norm_pad(data: st.DataObject) -> None:
    shape = tuple(data.draw(s) for s in (SIZES, CHANNELS, SIZES, SIZES))
    x = data.draw(fields(shape, dtype := data.draw(DTYPES)))
    rows = data.draw(st.sampled_from([None, 1, shape[0]]))
    shift = None if rows is None else data.draw(tensors((rows, shape[1]), wide(dtype)))
    upsample = [data.draw(st.integers(1, 3)) for _ in range(2)]
    padding = data.draw(paddings(shape, upsample))
    eps = data.draw(st.sampled_from([1e-5, 1e-2, 1.0]))
    inputs = [t for t in (x, shift) if t is not None]
    before = kept(inputs)

    out, scale = NATIVE.norm_pad(x, shift, padding, upsample, eps)
    assert channels_last(out, padded(shape, padding, upsample))
    if x.numel() > 0:
        expected, of = reference.norm_pad(*doubled(x, shift), padding, upsample, eps)
        size = 1 + float(of.nan_to_num(0, 0).max())
        same(out, expected, dtype, scale=size)
        same(scale, of, wide(dtype), scale=size**3)
    unchanged(inputs, before)


@fuzz
@given(st.data())
def test_norm_pad_vjp(data: st.DataObject) -> None:
    shape = tuple(data.draw(s) for s in (SIZES, CHANNELS, SIZES, SIZES))
    dtype, upsample = data.draw(DTYPES), [data.draw(st.integers(1, 3)) for _ in range(2)]
    padding = data.draw(paddings(shape, [1, 1]))
    cotangent = data.draw(fields(padded(shape, [0, 0], upsample), dtype))
    normed = data.draw(fields(shape, dtype))
    scale = data.draw(tensors((shape[0], *shape[2:]), wide(dtype)))
    residual = data.draw(st.none() | fields(shape, dtype))
    args = (cotangent, normed, scale, residual)
    inputs = [t for t in args if t is not None]
    before = kept(inputs)

    out = NATIVE.norm_pad_vjp(*args, padding, upsample)
    assert channels_last(out, padded(shape, padding, [1, 1]))
    if normed.numel() > 0:
        expected = reference.norm_pad_vjp(*doubled(*args), padding, upsample)
        same(out, expected, dtype, scale=100.0)
    unchanged(inputs, before)


@fuzz
@given(st.data())
def test_activation_pad(data: st.DataObject) -> None:
    shape = tuple(data.draw(s) for s in (SIZES, CHANNELS, SIZES, SIZES))
    dtype, activation = data.draw(DTYPES), data.draw(st.none() | st.integers(0, 4))
    padding = data.draw(paddings(shape, [1, 1]))
    x, cotangent = (data.draw(fields(shape, dtype)) for _ in range(2))
    bias = data.draw(st.none() | tensors((shape[1],), wide(dtype)))
    inputs = [t for t in (x, cotangent, bias) if t is not None]
    before = kept(inputs)

    args = (activation, padding, bias)
    out, product = NATIVE.activation_pad(x, *args), NATIVE.activation_pad_vjp(cotangent, x, *args)
    assert channels_last(out, padded(shape, padding, [1, 1]))
    assert channels_last(product, out.shape)
    if x.numel() > 0:
        # where PyTorch itself is of one mind: what an infinite number gives depends on its kernel,
        # derivatives lose NaN, and that of ReLU, 0, an infinite cotangent
        inputs_of = reference.activation_pad(x.double(), None, [0, 0], *doubled(bias))
        also = inputs_of.isfinite() | (activation is None)
        where = also | inputs_of.isnan()
        also &= cotangent.isfinite() | (activation != 0)
        where, also = (circular(mask, padding) for mask in (where, also))
        expected = reference.activation_pad(*doubled(x, *args))
        same(out.where(where, 0), expected.where(where, 0), dtype)
        expected = reference.activation_pad_vjp(*doubled(cotangent, x, *args))
        same(product.where(also, 0), expected.where(also, 0), dtype, scale=4.0)
    unchanged(inputs, before)


@pytest.mark.filterwarnings("ignore:var_mean")
@fuzz
@given(st.data())
def test_any_fields_are_served_or_refused(data: st.DataObject) -> None:
    """Ranks, types, shapes and numbers that fit each other or do not."""
    seldom = st.integers(0, 15).map(lambda n: n == 0)

    def tensor(*shape: int) -> Tensor:
        sizes = list(shape)
        if data.draw(seldom):
            sizes[data.draw(st.integers(0, len(sizes) - 1))] = data.draw(st.integers(0, 5))
        if data.draw(seldom):
            sizes = data.draw(st.sampled_from([sizes[1:], [1, *sizes], []]))
        types = st.sampled_from([torch.float64, torch.bfloat16, torch.int32, torch.bool])
        return torch.ones(sizes, dtype=data.draw(types) if data.draw(seldom) else None)

    def numbers(least: int, most: int) -> list[int]:
        if data.draw(seldom):
            return [min(n, most) for n in data.draw(st.lists(INTEGERS, max_size=3))]
        return [data.draw(st.integers(least, 3)) for _ in range(2)]

    name = data.draw(
        st.sampled_from(["norm_pad", "norm_pad_vjp", "activation_pad", "activation_pad_vjp"])
    )
    padding, x = numbers(0, 2**63 - 1), tensor(2, 3, 4, 5)
    if name.startswith("norm"):
        up = numbers(1, 3)  # what fits would be allocated
        args: tuple[Any, ...] = (x, data.draw(st.none() | st.just(tensor(1, 3))), padding, up, 1e-5)
        if name.endswith("vjp"):
            residual = data.draw(st.none() | st.just(tensor(2, 3, 4, 5)))
            u, v = (*up, 1, 1)[:2]
            cotangent = tensor(2, 3, max(u, 0) * 4, max(v, 0) * 5)
            args = (cotangent, x, tensor(2, 4, 5), residual, padding, up)
    else:
        activation = data.draw(INTEGERS if data.draw(seldom) else st.none() | st.integers(0, 4))
        args = (x, activation, padding, data.draw(st.none() | st.just(tensor(3))))
        args = (tensor(2, 3, 4, 5), *args) if name.endswith("vjp") else args
    result, refusal = called(name, *args)
    if refusal:
        assert re.search(rf"\b({FIELD_ARGUMENTS})\b", refusal)
    else:
        torch.testing.assert_close(result, getattr(reference, name)(*args), equal_nan=True)


# Networks of windows


@st.composite
def networks(draw: st.DrawFn) -> tuple[MCScoreNet, Tensor, Tensor, Tensor | None]:
    """Draws a residual MLP, and trajectories, times and a context for it."""
    features, order = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    rule = draw(st.sampled_from([None, Junction(2 * order + 1, draw(st.integers(1, 2 * order)))]))
    options: dict[str, Any] = {"composition": rule, "length_aware": True} if rule else {}
    context = draw(st.sampled_from([0, 0, 2]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    network = MCScoreNet(
        features,
        context,
        order=order,
        embedding=4,
        hidden_features=draw(st.lists(st.sampled_from([5, 8, 17, 31, 40]), min_size=1, max_size=3)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        **options,
    )
    shortest = 1 if rule else 2 * order + 1
    shape = (draw(SIZES), draw(st.integers(shortest, 2 * order + 12)), features)
    x = draw(tensors(shape, torch.float32))
    t = torch.rand(shape[0], 1) if draw(st.booleans()) else torch.rand(())
    return network.requires_grad_(False), x, t, torch.randn(context) if context else None


def linearised(network: MCScoreNet, g: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    result = network(leaf, *args)
    (gradient,) = torch.autograd.grad(result, leaf, g)
    return result.detach(), gradient


@pytest.mark.filterwarnings("ignore:var_mean")  # of no samples
@fuzz
@given(networks(), st.sampled_from([None, 0, 3, 32]))
def test_mlp_score(case: tuple[Any, ...], kept_windows: int | None) -> None:
    """As near to the module in float64 as the module itself is in float32, or nearly."""
    network, x, t, c = case
    fused, plan = network.fused(x, t, c), network.plan(x.shape[1])
    hypothesis.assume(isinstance(fused, FusedMLP))  # not where no layer need map to the first width
    before = kept([x, t])
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if kept_windows is not None:
            most = 4 * kept_windows * ops.networks.kept_numbers(fused.widths)
            patch.setattr(ops.networks, "KEPT_BYTES", most)
        result, vjp = fused.linearise(x, t, c, plan)
        g = torch.randn(x.shape)
        gradient = vjp(g)
        assert torch.equal(fused(x, t, c, plan).nan_to_num(), result.nan_to_num())
    unchanged([x, t], before)

    exact = linearised(copy.deepcopy(network).double(), *doubled(g, x, t, c))
    with ops.backend("reference"):
        near = linearised(network, g, x, t, c)
    for a, b, expected in zip((result, gradient), near, exact, strict=True):
        assert a.shape == expected.shape
        assert torch.equal(a.isfinite(), expected.isfinite())
        a, b, expected = (y.double()[expected.isfinite()] for y in (a, b, expected))
        assert (a - expected).norm() <= 1e-5 * expected.norm() + 10 * (b - expected).norm()


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[list[Any], int]:
    """Draws the arguments of a network's operator, one of them another, and how many windows are
    kept."""
    torch.manual_seed(0)
    network = MCScoreNet(2, order=1, embedding=4, hidden_features=[8]).requires_grad_(False)
    x = torch.randn(2, draw(st.sampled_from([3, 5])), 2)
    plan = network.plan(x.shape[1])
    arguments = list(FusedMLP(network, Packed())._arguments(x, torch.tensor(0.3), None, plan))
    which = draw(st.integers(0, len(arguments) - 1))
    value, integer = arguments[which], draw(INTEGERS)
    if isinstance(value, bool):
        arguments[which] = not value
    elif isinstance(value, int):
        arguments[which] = integer
    elif isinstance(value, list):
        ways = [[], value[:1], value * 2, [integer, *value], [integer, *value[1:]]]
        arguments[which] = draw(st.sampled_from([*ways, [*value[:-1], integer], [0, *value]]))
    else:
        ways = [value[:0], value[..., :1], value[None], value.flatten(), value.int()]
        ways += [value.double(), value.half(), value.to_sparse(), value.contiguous()[..., ::2]]
        ways += [value.mT] if value.ndim > 1 else []
        if not value.is_floating_point():
            ways += [value - 1, value + 1, value * 100, value.flip(0), value + integer]
        arguments[which] = draw(st.sampled_from(ways))
    return arguments, draw(st.sampled_from([0, 1, 5, 64]) | st.sampled_from([-1, -(2**63)]))


@fuzz
@given(spoilt(), st.sampled_from(["mlp_score", "mlp_score_vjp"]), st.data())
def test_any_network_is_served_or_refused(
    case: tuple[list[Any], int], name: str, data: st.DataObject
) -> None:
    (x, *others), rows = case
    if name == "mlp_score":
        args = (x, *others, rows)
    else:
        shapes = st.sampled_from([(0, 0), (4, 3), (3,), (64, 18), (1, 34)])
        sizes = st.sampled_from([(2, 3, 2), (2, 5, 2), (1, 3, 2), (2, 3), (2, 3, 1)])
        types = st.sampled_from([torch.float32, torch.float32, torch.float64])
        g = torch.ones(data.draw(sizes), dtype=data.draw(types))
        args = (g, x, *others[:6], torch.ones(data.draw(shapes)), *others[6:])
    result, refusal = called(name, *args)
    if not refusal:
        result = result[0] if name == "mlp_score" else result
        assert result.shape == x.shape
    elif not any(isinstance(t, Tensor) and t.is_sparse for t in args):
        assert re.search(rf"\b({NETWORK_ARGUMENTS})\b", refusal)


# Samples


@lru_cache
def process(kind: str, dtype: torch.dtype) -> VPSDE:
    torch.manual_seed(0)
    options: dict[str, Any] = {"embedding": 8, "hidden_features": [16], "activation": nn.SiLU}
    if kind == "junction":
        options |= {"length_aware": True, "composition": Junction(3, 2)}
    network = MCScoreNet(2, order=1, **options).requires_grad_(False).to(dtype)
    if kind == "guided":
        y = torch.randn(4)
        network = GaussianScore(y, lambda x: x[:, ::2, 0], 0.5, VPSDE(network, (7, 2))).to(dtype)
    return VPSDE(network, (7, 2))


@st.composite
def schedules(draw: st.DrawFn, values: st.SearchStrategy[Any], steps: int) -> Any:
    """Draws one number, one for each step, or a function of the time."""
    if draw(st.booleans()):
        return draw(values)
    each = draw(st.lists(values, min_size=steps, max_size=steps))
    return each if draw(st.booleans()) else lambda t: each[round(16 * t) % steps]


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the arguments of `sample`, most of which fit."""
    steps = draw(st.integers(1, 5))
    places = st.lists(
        st.integers(0, 16),
        min_size=steps + 1,
        max_size=steps + 1,
        unique=draw(st.integers(0, 9)) > 0,
    )
    times = [n / 16 for n in sorted(draw(places), reverse=True)]
    grids = [steps, times, tuple(times), torch.tensor(times, dtype=torch.float64)]
    return {
        "shape": tuple(draw(st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=2))),
        "steps": draw(st.sampled_from(grids)),
        "corrections": draw(schedules(st.integers(0, 2), steps)),
        "tau": draw(schedules(st.sampled_from([0.1, 0.25, 0.5]), steps)),
        "order": draw(st.sampled_from([1, 1, 2, 2, 3, 3, 4])),
        "denoise": draw(st.booleans()),
        "clip": draw(st.sampled_from([None, None, 0.5, 2.0, 5.0])),
        "window_batch": draw(st.sampled_from([None, 1, 7, 100])),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@fuzz
@given(
    st.sampled_from(["centre", "junction", "guided"]),
    st.sampled_from([torch.float32, torch.float64]),
    runs(),
)
def test_sample(kind: str, dtype: torch.dtype, run: dict[str, Any]) -> None:
    """The native operators draw what the reference does, in float32 as near to what that draws in
    float64 or nearly; or both refuse for one reason."""
    sde, results = process(kind, dtype), []
    for backend in ("native", "reference"):
        try:
            results.append(sample(sde, backend=backend, **run))
        except ValueError as refused:
            results.append(str(refused))
    native, expected = results
    if isinstance(expected, str):
        assert native == expected
        assert re.match("steps|order", expected)
        return
    exact, tolerance = expected, 1e-11
    if dtype == torch.float32:
        exact, tolerance = sample(process(kind, torch.float64), backend="reference", **run), 1e-5
    near = (expected - exact).norm()
    assert native.dtype == dtype
    assert native.shape == expected.shape
    assert (native - exact).norm() <= tolerance * exact.norm() + 10 * near
