"""Random calls of every native operator: each gives the reference's numbers, or an error that names
an argument. SDA_FAST_FUZZ=nightly makes many more of them, and other ones each time."""

import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from sda_fast import _native, reference

hypothesis = pytest.importorskip("hypothesis")
HealthCheck, given, settings = hypothesis.HealthCheck, hypothesis.given, hypothesis.settings
st = hypothesis.strategies

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

NATIVE = torch.ops.sda_fast
ARGUMENTS = (
    "x|eps|out|windows|start|weight|length|seed|step|correction|first_sample|"
    "mu|b|direct|through|past|past_b"
)
REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError)

settings.register_profile(
    "default",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "nightly", settings.get_profile("default"), max_examples=4000, derandomize=False
)
# not loaded for the whole process: other tests may have a profile of their own
fuzz = settings(
    settings.get_profile("nightly" if os.environ.get("SDA_FAST_FUZZ") == "nightly" else "default")
)

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "sliced", "offset", "expanded", "strided"])
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5])
BIG = st.sampled_from([0, 1, 3, 63, 64, 65, 257, 4095, 4097])


@st.composite
def tensors(
    draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, writable: bool = False
) -> Tensor:
    """Draws a tensor of any layout, that may hold NaN and infinities."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    layout = draw(LAYOUTS)
    special = draw(st.sampled_from([None, None, torch.nan, torch.inf, -torch.inf, 0.0]))
    if special is not None and x.numel() > 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = special

    if layout == "transposed":
        return x.mT.contiguous().mT if x.ndim > 1 else x
    if layout == "sliced" and x.ndim > 0:
        y = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=dtype)[..., ::2]
        return y.copy_(x)
    if layout == "offset":  # not aligned to a vector
        y = torch.full((x.numel() + 1,), torch.nan, dtype=dtype)[1:].view(shape)
        return y.copy_(x)
    if layout == "strided" and x.ndim > 1:  # between the rows of others
        y = torch.full((shape[1], shape[0] + 1, *shape[2:]), torch.nan, dtype=dtype)
        return y[:, 1:].transpose(0, 1).copy_(x)
    if layout == "expanded" and x.ndim > 0 and x.shape[0] > 0 and not writable:
        return x[:1].expand(shape)
    return x


@st.composite
def plans(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Draws the starts and weights of a plan, and the length of a trajectory that it fits."""
    length, count, window = draw(st.integers(0, 12)), draw(st.integers(0, 9)), draw(SIZES)
    # starts before and beyond the trajectory are fine where the rows there have weight 0
    low, high = draw(st.sampled_from([(0, length), (-window, length + window), (-(2**62), 2**62)]))
    start = sorted(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))
    rows = st.lists(st.sampled_from([-1, 0, 1]), min_size=window, max_size=window)
    weight = [draw(rows) for _ in start]
    weight = [
        [w if 0 <= s + j < length else 0 for j, w in enumerate(row)]
        for s, row in zip(start, weight, strict=True)
    ]
    starts = torch.tensor(start, dtype=torch.int64)
    weights = torch.tensor(weight, dtype=torch.int8).reshape(count, window)
    if draw(st.booleans()):
        starts = torch.stack([starts, starts - 99], dim=1)[:, 0]
        weights = weights.mT.contiguous().mT
    return starts, weights, length


@st.composite
def streams(draw: st.DrawFn, batch: int) -> dict[str, int]:
    return {
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "step": draw(st.sampled_from([0, 1, 2**31, 2**32 - 1])),
        "correction": draw(st.sampled_from([0, 1, 65535])),
        "first_sample": draw(st.sampled_from([0, 1, 2**31, 2**32 - batch])) % 2**32,
    }


EVENTS = st.one_of(
    st.lists(SIZES, max_size=3).map(tuple), BIG.map(lambda n: (n,)), st.tuples(SIZES, BIG)
)
MUS = st.sampled_from([0.1, 0.5, 1.0])
SCALARS = st.floats(-2, 2).map(lambda v: round(v, 3))


def same(result: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Checks the shape, the type and the numbers, NaN and infinities included, against float64."""
    assert result.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    rtol = tolerance
    if dtype.itemsize == 2:  # rounded once, where what is too large becomes infinite
        rtol += torch.finfo(dtype).eps / 2
        expected = torch.where(expected.to(dtype).isinf(), expected.to(dtype).double(), expected)
    torch.testing.assert_close(
        result.double(), expected, rtol=rtol, atol=tolerance * scale, equal_nan=True
    )


def kept(tensors: list[Tensor]) -> list[Tensor]:
    """Copies tensors, to see that they were not changed."""
    return [t.clone() for t in tensors]


def unchanged(tensors: list[Tensor], before: list[Tensor]) -> None:
    for a, b in zip(tensors, before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# What fits gives the reference's numbers


@fuzz
@given(st.data())
def test_gather(data: st.DataObject) -> None:
    start, weight, length = data.draw(plans())
    batch, event = data.draw(SIZES), data.draw(st.lists(SIZES, min_size=1, max_size=3))
    x = data.draw(tensors((batch, length, *event), dtype := data.draw(DTYPES)))
    before = kept([x, start, weight])

    result = NATIVE.gather(x, start, weight)
    assert result.is_contiguous()
    same(result, reference.gather(x.double(), start, weight), dtype)
    unchanged([x, start, weight], before)


@fuzz
@given(st.data())
def test_compose(data: st.DataObject) -> None:
    start, weight, length = data.draw(plans())
    count, window = weight.shape
    batch, event = data.draw(SIZES), data.draw(st.lists(SIZES, min_size=1, max_size=3))
    shape = (batch, count, window * event[0], *event[1:])
    windows = data.draw(tensors(shape, dtype := data.draw(DTYPES)))
    if window == 0:
        with pytest.raises(REFUSED, match="weight must have at least one row"):
            NATIVE.compose(windows, start, weight, length)
        return

    before = kept([windows, start, weight])
    result = NATIVE.compose(windows, start, weight, length)
    assert result.is_contiguous()
    if event[0] == 0:  # the reference cannot tell how many channels there are
        expected = torch.zeros(batch, length, *event, dtype=torch.float64)
    else:
        expected = reference.compose(windows.double(), start, weight, length)
    same(result, expected, dtype, scale=10.0)
    unchanged([windows, start, weight], before)


@fuzz
@given(st.data())
def test_predictor(data: st.DataObject) -> None:
    shape = data.draw(st.one_of(st.just(()), EVENTS))
    dtype, r, b = data.draw(DTYPES), data.draw(SCALARS), data.draw(SCALARS)
    x, eps = data.draw(tensors(shape, dtype, writable=True)), data.draw(tensors(shape, dtype))
    before = kept([x, eps])
    expected = reference.predictor(x.double(), eps.double(), r, b)

    result = NATIVE.predictor(x, eps, r, b)
    same(result, expected, dtype, scale=4.0)
    assert result.stride() == torch.empty_like(x).stride()
    unchanged([x, eps], before)

    NATIVE.predictor_(x, eps, r, b)
    unchanged([x, eps], [result, before[1]])


@fuzz
@given(st.data())
def test_langevin(data: st.DataObject) -> None:
    shape = (data.draw(SIZES), *data.draw(EVENTS))
    dtype, sigma = data.draw(DTYPES), data.draw(SCALARS)
    tau = data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    x, eps = data.draw(tensors(shape, dtype, writable=True)), data.draw(tensors(shape, dtype))
    stream = data.draw(streams(shape[0]))
    before = kept([x, eps])

    result = NATIVE.langevin(x, eps, sigma, tau, **stream)
    assert result.shape == shape
    assert result.is_contiguous()
    if x.numel() > 0:
        wide = (t.double().reshape(len(t), -1) for t in (x, eps))
        expected = reference.langevin(*wide, sigma, tau, **stream).reshape(shape)
        # delta is large where all of a sample's noise is small, and what it multiplies cancels
        delta = tau / before[1].double().square().reshape(len(x), -1).mean(dim=1)
        scale = 10 * (1 + delta[delta.isfinite()].sum().item())
        same(result, expected, dtype, scale=scale)
    unchanged([x, eps], before)

    NATIVE.langevin_(x, eps, sigma, tau, **stream)
    unchanged([x, eps], [result, before[1]])


@fuzz
@given(st.data())
def test_compose_denoise(data: st.DataObject) -> None:
    start, weight, length = data.draw(plans())
    count, window = weight.shape
    batch, event = data.draw(SIZES), data.draw(st.lists(SIZES, min_size=1, max_size=3))
    windows = data.draw(
        tensors((batch, count, window * event[0], *event[1:]), dtype := data.draw(DTYPES))
    )
    x, mu, sigma = (
        data.draw(tensors((batch, length, *event), dtype)),
        data.draw(MUS),
        data.draw(SCALARS),
    )
    if window == 0:
        with pytest.raises(REFUSED, match="weight must have at least one row"):
            NATIVE.compose_denoise(windows, start, weight, x, mu, sigma)
        return

    before = kept([windows, start, weight, x])
    eps, denoised = NATIVE.compose_denoise(windows, start, weight, x, mu, sigma)
    unchanged([eps], [NATIVE.compose(windows, start, weight, length)])
    expected = reference.denoise(x.double(), eps.double(), mu, sigma)
    same(denoised, expected, dtype, scale=10 / mu)
    unchanged([windows, start, weight, x], before)


@fuzz
@given(st.data())
def test_denoise_and_multistep_and_guide(data: st.DataObject) -> None:
    shape, dtype = data.draw(st.one_of(st.just(()), EVENTS)), data.draw(DTYPES)
    x = data.draw(tensors(shape, dtype, writable=True))
    others = data.draw(st.lists(tensors(shape, dtype), min_size=1, max_size=4))
    mu, sigma = data.draw(MUS), data.draw(SCALARS)
    b = [data.draw(SCALARS) for _ in others]
    wide, first, *rest = (t.double() for t in (x, *others))
    before = kept([x, *others])

    def each(name: str, args: tuple[Any, ...], expected: Tensor) -> None:
        result = getattr(NATIVE, name)(x, *args)
        same(result, expected, dtype, scale=10 / mu)
        unchanged([x, *others], before)
        if name != "denoise":
            getattr(NATIVE, f"{name}_")(x, *args)
            unchanged([x, *others], [result, *before[1:]])
            x.copy_(before[0])

    through = others[1] if rest else None
    each("denoise", (others[0], mu, sigma), reference.denoise(wide, first, mu, sigma))
    each("multistep", (others, sigma, b), reference.multistep(wide, [first, *rest], sigma, b))
    each(
        "guide",
        (others[0], through, mu, sigma),
        reference.guide(wide, first, rest[0] if rest else None, mu, sigma),
    )


@fuzz
@given(st.data())
def test_guided_steps(data: st.DataObject) -> None:
    """The bits of one operator after the other."""
    shape, dtype = (data.draw(SIZES), *data.draw(EVENTS)), data.draw(DTYPES)
    x, eps = (data.draw(tensors(shape, dtype, writable=True)) for _ in range(2))
    direct, *past = data.draw(st.lists(tensors(shape, dtype), min_size=1, max_size=3))
    through = data.draw(st.none() | tensors(shape, dtype))
    mu, sigma, r, b, *past_b = (data.draw(MUS), *(data.draw(SCALARS) for _ in range(3 + len(past))))
    stream = data.draw(streams(shape[0]))
    before = kept([x, eps, direct, *past])

    guided = NATIVE.guide(eps, direct, through, mu, sigma)
    stepped = NATIVE.multistep(x, [guided, *past], r, [b, *past_b])
    NATIVE.guide_predictor_(x, eps, direct, through, mu, sigma, r, b, past, past_b)
    unchanged([x, eps, direct, *past], [stepped, guided, *before[2:]])

    x.copy_(before[0]), eps.copy_(before[1])
    corrected = NATIVE.langevin(x, guided, sigma, 0.5, **stream)
    NATIVE.guide_langevin_(x, eps, direct, through, mu, sigma, 0.5, **stream)
    unchanged([x, eps, direct, *past], [corrected, guided, *before[2:]])


@fuzz
@given(st.data())
def test_philox_normal(data: st.DataObject) -> None:
    shape = (data.draw(SIZES), *data.draw(EVENTS))
    out = data.draw(tensors(shape, dtype := data.draw(DTYPES), writable=True))
    stream = data.draw(streams(shape[0]))
    expected = torch.zeros(shape, dtype=torch.float64)
    reference.philox_normal_(expected, **stream)

    NATIVE.philox_normal_(out, **stream)
    same(out.contiguous(), expected, dtype)


@fuzz
@given(st.data())
def test_in_place_beside_itself(data: st.DataObject) -> None:
    """What is read and what is written may share memory, however they lie in it."""
    dtype, size = data.draw(DTYPES), data.draw(st.integers(1, 70))
    buffer = torch.randn(4 * size, generator=torch.Generator().manual_seed(size), dtype=dtype)
    steps, firsts = st.sampled_from([1, 2]), st.integers(0, size)
    x, eps = (
        buffer[(first := data.draw(firsts)) : first + step * size : step][:size].view(1, -1)
        for step in (data.draw(steps), data.draw(steps))
    )
    stream = data.draw(streams(1))
    if data.draw(st.booleans()):
        expected = NATIVE.langevin(x.clone(), eps.clone(), 0.3, 0.5, **stream)
        NATIVE.langevin_(x, eps, 0.3, 0.5, **stream)
    else:
        expected = NATIVE.predictor(x.clone(), eps.clone(), 0.9, 0.2)
        NATIVE.predictor_(x, eps, 0.9, 0.2)
    unchanged([x], [expected])


# What does not fit is refused


def valid(name: str) -> dict[str, Any]:
    stream = {"seed": 1, "step": 2, "correction": 3, "first_sample": 4}
    start, weight = torch.tensor([0, 2]), torch.ones(2, 3, dtype=torch.int8)
    x = {"x": torch.ones(2, 5, 3), "eps": torch.ones(2, 5, 3)}
    likelihood = {"direct": torch.ones(2, 5, 3), "through": torch.ones(2, 5, 3)}
    likelihood = {**likelihood, "mu": 0.8, "sigma": 0.6}
    return {
        "gather": {"x": torch.ones(2, 5, 3), "start": start, "weight": weight},
        "compose": {"windows": torch.ones(2, 2, 9), "start": start, "weight": weight, "length": 5},
        "predictor": {**x, "r": 0.9, "b": 0.1},
        "langevin": {**x, "sigma": 0.3, "tau": 0.5, **stream},
        "compose_denoise": {
            **{"windows": torch.ones(2, 2, 9), "start": start, "weight": weight},
            **{"x": torch.ones(2, 5, 3), "mu": 0.8, "sigma": 0.6},
        },
        "denoise": {**x, "mu": 0.8, "sigma": 0.6},
        "multistep": {**x, "eps": [torch.ones(2, 5, 3)] * 2, "r": 0.9, "b": [0.1, 0.2]},
        "guide": {"eps": x["eps"], **likelihood},
        "guide_predictor": {
            **{**x, **likelihood, "r": 0.9, "b": 0.1},
            **{"past": [torch.ones(2, 5, 3)], "past_b": [0.2]},
        },
        "guide_langevin": {**x, **likelihood, "tau": 0.5, **stream},
        "philox_normal_": {"out": torch.ones(2, 5, 3), **stream},
    }[name if name.startswith("philox") else name.rstrip("_")]


@st.composite
def spoilt(draw: st.DrawFn, name: str) -> tuple[dict[str, Any], str]:
    """Draws arguments one of which is wrong, and which."""
    arguments = valid(name)
    free = ("r", "sigma", "tau") if name.startswith("multistep") else ("r", "b", "sigma", "tau")
    which = draw(st.sampled_from([k for k in arguments if k not in free]))
    value = arguments[which]
    if isinstance(value, Tensor):
        floating = value.is_floating_point()
        types = [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn]
        types += [] if floating else [torch.float32, torch.bfloat16, torch.float16]
        ways: list[Any] = [value.to(t) for t in types]
        ways += [1.5, "x", [[0.5]], value.to_sparse()]
        ways += [] if which == "through" else [None]
        if which == "start":
            ways += [value.flip(0), value - 1, value + 1, value[:1], value[:0], value[None]]
            ways += [value + d for d in (2**62, 2**63 - 3, -(2**63))]
        elif which == "weight":
            ways += [2 * value, -128 * value, value[:1], value[0], value[..., None]]
            ways += [value.new_ones(2, 4), value.new_ones(2, 0).new_ones(3, 3)]
        elif which in ("eps", "direct", "through"):
            ways += [value.double(), value.bfloat16(), value[:1], value[0], value[..., None]]
            ways += [value[:, :0], value.mT]
        elif which == "windows":
            ways += [value[0], value[:, :1], value[..., :8], value[:, :, 0]]
        elif which == "x" and name == "gather":
            ways += [value[0], value[:, :4], value[:, :0], value[0, 0, 0]]
        elif which == "x" and name == "compose_denoise":
            ways += [value.double(), value[:1], value[0], value[:, :4], value[..., :2]]
        elif which == "x":
            ways += [value.double(), value.half(), value[:1], value[0, 0, 0], value[:, :, :0]]
        else:
            ways += [value[0, 0, 0]]
        if name.endswith("_") and which in ("x", "out"):
            ways += [value[:1].expand(2, 5, 3), value[:, :1].expand(2, 5, 3)]
    elif isinstance(value, list) and isinstance(value[0], Tensor):
        ways = [[], value * 5, [value[0][:1]], [*value, value[0].double()], [value[0].mT] * 2]
        ways += [None, 1.5, "x", [None], [value[0].int()]]
    elif isinstance(value, list):
        ways = [[], value * 2, value[:-1], None, "x", [[0.5]]]
    elif which == "mu":
        ways = [0.0, -1.0, float("nan"), -float("inf"), None, "x"]
    elif which == "length":
        ways = [-1, -(2**63), 0, 1, 4, None, "5"]
    elif which == "seed":
        ways = [None, "1", 1.5]
    else:
        ways = [-1, 2**32, 2**63 - 1, -(2**63), None, "1"]
        ways += [2**32 - 1] if which == "first_sample" else []
    return {**arguments, which: draw(st.sampled_from(ways))}, which


@pytest.mark.parametrize(
    "name",
    [
        *("gather", "compose", "predictor", "predictor_", "langevin", "langevin_"),
        *("philox_normal_", "compose_denoise", "denoise", "multistep", "multistep_", "guide"),
        *("guide_", "guide_predictor_", "guide_langevin_"),
    ],
)
def test_refusals(name: str) -> None:
    getattr(NATIVE, name)(**valid(name))

    @fuzz
    @given(spoilt(name))
    def check(case: tuple[dict[str, Any], str]) -> None:
        arguments, which = case
        tensors = [v for v in arguments.values() if type(v) is Tensor and not v.is_sparse]
        before = kept(tensors)
        with pytest.raises(REFUSED) as refused:
            getattr(NATIVE, name)(**arguments)
        value = arguments[which]
        if value is not None and not (isinstance(value, Tensor) and value.is_sparse):
            # but for what torch refuses before it comes to the operator
            assert re.search(rf"\b({ARGUMENTS})\b", str(refused.value)), which
            unchanged(tensors, before)

    check()


@fuzz
@given(
    st.sampled_from(
        [
            *("gather", "compose", "predictor", "langevin", "compose_denoise", "denoise"),
            *("multistep", "guide"),
        ]
    )
)
def test_shapes_on_meta(name: str) -> None:
    """On the device meta there are no numbers, only shapes."""
    arguments = valid(name)
    expected = getattr(NATIVE, name)(**arguments)
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[key] = value.to("meta")
        elif key == "eps":
            arguments[key] = [t.to("meta") for t in value]
    result = getattr(NATIVE, name)(**arguments)
    results = (
        zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
    )
    for a, b in results:
        assert a.is_meta
        assert a.shape == b.shape


def test_fused_composition_stays_in_the_trajectory() -> None:
    """A row that is no state of a window, but takes part in the composition, is looked at too."""
    start, rows = torch.tensor([0, 3]), torch.ones(2, 3, dtype=torch.int8)
    mask = rows.clone()
    mask[1, 2] = 0
    weights = [torch.zeros(1, 16), torch.zeros(0), torch.zeros(0)]
    with pytest.raises(RuntimeError, match=r"start\[1\] \+ 2, a row of weight 1, .* but is 5"):
        NATIVE.mlp_score(
            torch.zeros(1, 5, 3), start, mask, rows, *weights, [9], 0, False, False, False, 0
        )


# Observations


@fuzz
@given(st.data())
def test_subsample(data: st.DataObject) -> None:
    leading = tuple(data.draw(st.lists(SIZES, max_size=2)))
    dims = data.draw(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=4))
    start, step, size = [d[0] for d in dims], [d[1] + 1 for d in dims], [d[2] for d in dims]
    rest = data.draw(st.integers(0, 3))
    shape = [i + s * max(0, n - 1) + 1 + rest for i, s, n in zip(start, step, size, strict=True)]
    x = data.draw(tensors((*leading, *shape), dtype := data.draw(DTYPES)))
    before = kept([x])

    y = NATIVE.subsample(x, start, step, size)
    same(y, reference.subsample(x.double(), start, step, size), dtype)
    back = NATIVE.subsample_adjoint(y, start, step, shape)
    same(back, reference.subsample_adjoint(y.double(), start, step, shape), dtype)
    unchanged([x], before)


@fuzz
@given(st.data())
def test_block_mean(data: st.DataObject) -> None:
    leading = tuple(data.draw(st.lists(SIZES, max_size=2)))
    size = data.draw(st.lists(SIZES, min_size=1, max_size=4))
    block = [data.draw(st.integers(1, 4)) for _ in size]
    shape = (*leading, *(n * k for n, k in zip(size, block, strict=True)))
    x = data.draw(tensors(shape, dtype := data.draw(DTYPES)))
    before = kept([x])

    y = NATIVE.block_mean(x, block)
    same(y, reference.block_mean(x.double(), block), dtype)
    back = NATIVE.block_mean_adjoint(y, block)
    same(back, reference.block_mean_adjoint(y.double(), block), dtype)
    unchanged([x], before)


@fuzz
@given(st.data())
def test_sparse_map(data: st.DataObject) -> None:
    batch, event = data.draw(SIZES), tuple(data.draw(st.lists(SIZES, max_size=3)))
    x = data.draw(tensors((batch, *event), dtype := data.draw(DTYPES)))
    columns = torch.Size(event).numel()
    counts = data.draw(st.lists(st.integers(0, 3 if columns > 0 else 0), max_size=6))
    row = torch.tensor([0, *counts]).cumsum(0)
    places = st.integers(0, max(0, columns - 1))
    column = data.draw(st.lists(places, min_size=sum(counts), max_size=sum(counts)))
    matrix = [row, torch.tensor(column, dtype=torch.int64)]
    wide = torch.promote_types(dtype, torch.float32)
    value = data.draw(st.none() | tensors((sum(counts),), wide))
    before = kept([x, *matrix])

    result = NATIVE.sparse_map(x, *matrix, value)
    expected = reference.sparse_map(x.double(), *matrix, None if value is None else value.double())
    same(result, expected, dtype, scale=10.0)
    unchanged([x, *matrix], before)


@fuzz
@given(st.data())
def test_residual(data: st.DataObject) -> None:
    shape = (data.draw(SIZES), *data.draw(EVENTS))
    prediction = data.draw(tensors(shape, dtype := data.draw(DTYPES)))
    wide = torch.promote_types(dtype, torch.float32)

    def broadcastable(to: tuple[int, ...]) -> tuple[int, ...]:
        last = to[len(to) - data.draw(st.integers(0, len(to))) :]
        return tuple(data.draw(st.sampled_from([1, n])) for n in last)

    y = data.draw(tensors(broadcastable(shape), wide))
    std, gamma = (
        data.draw(tensors(broadcastable(shape[len(shape) - y.ndim :]), wide)) for _ in range(2)
    )
    std, gamma = std.abs() + 0.1, gamma.abs()
    ratio = data.draw(SCALARS)
    before = kept([y, prediction, std, gamma])

    result = NATIVE.residual(y, prediction, std, gamma, ratio)
    wider = (t.double() for t in (y, prediction, std, gamma))
    same(result, reference.residual(*wider, ratio), dtype, scale=400.0)
    unchanged([y, prediction, std, gamma], before)


INTEGERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 5, 2**31, 2**62, 2**63 - 1])
LISTS = st.lists(INTEGERS, max_size=9)


@fuzz
@given(st.data())
def test_any_numbers_are_observed_or_refused(data: st.DataObject) -> None:
    x = torch.ones(2, 3, 5)
    lists = st.lists(INTEGERS, min_size=1, max_size=2) | LISTS
    name = data.draw(
        st.sampled_from(["subsample", "subsample_adjoint", "block_mean", "sparse_map"])
    )
    args: list[Any] = [data.draw(lists) for _ in range(3)]
    if name == "sparse_map":
        args = [torch.tensor(numbers, dtype=torch.int64) for numbers in args[:2]] + [None]
    elif name == "block_mean":
        args = args[:1]
    elif name == "subsample_adjoint" and max(args[2], default=0) < 2**63 - 1:
        args[2] = [min(n, 2**20) for n in args[2]]  # what fits would be allocated
    refusal = ""
    try:
        result = getattr(NATIVE, name)(x, *args)
    except RuntimeError as refused:
        refusal = str(refused)
    if refusal:
        assert re.search(r"\b(x|y|start|step|size|shape|block|row|column)\b", refusal)
    else:
        assert torch.equal(result, getattr(reference, name)(x, *args))
