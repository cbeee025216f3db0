"""The CUDA operators, their own sources compiled for the CPU, against the reference.

Where there is a GPU, the same tests run there too. The emulator (csrc/emulate) runs the threads of
a block in a random order, and raises an error where one touches what it may not or waits for what
does not come. Its own tests plant such bugs.
"""

import copy
import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, product, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import Centre, Junction, MCScoreNet, _native, ops, reference
from sda_fast.fused import FusedMLP, Packed
from sda_fast.ops.networks import kept_numbers
from sda_fast.packing import Fragments

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    *("mlp_score", "mlp_score_vjp"),
    *("compose", "compose_denoise", "denoise", "gather", "guide", "guide_", "guide_langevin_"),
    *("guide_predictor_", "langevin", "langevin_", "multistep", "multistep_", "philox_normal_"),
    *("predictor", "predictor_", "subsample", "subsample_adjoint", "sparse_map", "block_mean"),
    *("block_mean_adjoint", "residual", "norm_pad", "norm_pad_vjp", "activation_pad"),
    "activation_pad_vjp",
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STREAM = {"seed": -12345, "step": 7, "correction": 3, "first_sample": 2**20}

pytestmark = [
    pytest.mark.skipif(not _native.available, reason=str(_native.reason)),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="there is no source tree here"),
]


def tool(name: str) -> str | None:
    """Finds a program of this environment or of the system."""
    here = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", "")]))


def build(folder: Path) -> Path:
    """Builds the emulator's library in a folder, or what changed of it since the last time."""

    def run(*command: object) -> None:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(
            *(tool("cmake"), "--fresh", "-S", ROOT, "-B", folder, "-G", "Ninja"),
            *("-DSDA_FAST_EMULATE=ON", "-DSDA_FAST_CUDA=OFF"),
            *(f"-D{d}" for d in os.environ.get("SKBUILD_CMAKE_DEFINE", "").split(";") if d),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"),
        )
        run(tool("cmake"), "--build", folder, "--target", "_C_emulate")
    return folder / "csrc" / "emulate" / "_C_emulate.so"


@pytest.fixture(scope="session")
def emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> torch.library.Library:
    """Loads the emulator's library, with the operators' own schemas under another name."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulator needs Linux")
    for name in ("cmake", "ninja"):
        if tool(name) is None:
            pytest.skip(f"{name} is not installed")
    if find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")

    cache = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("emulate") if cache is None else cache.mkdir("emulate")
    path = build(folder)

    library = torch.library.Library("sda_fast_emulate", "FRAGMENT")
    for name in NAMES:
        schema = str(getattr(torch.ops.sda_fast, name).default._schema)
        library.define(schema.removeprefix("sda_fast::"))
    ctypes.CDLL(str(path))
    return library


Alignment = bool | tuple[bool, ...]  # of all arguments, or of each of the first


def each(aligned: Alignment) -> Iterator[bool]:
    first = () if isinstance(aligned, bool) else aligned
    return chain(first, repeat(aligned if isinstance(aligned, bool) else True))


def written(args: tuple[object, ...], placed: list[object]) -> Tensor:
    """Copies back what an operator in place may have changed, and returns its first argument."""
    for a, b in zip(args[:2], placed[:2], strict=True):
        if isinstance(a, Tensor):
            a.copy_(b)
    return args[0]


def joined(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Stacks the results of an operator, or of those that are not alike takes the first."""
    if not isinstance(result, tuple):
        return result
    alike = all(r.shape == result[0].shape for r in result)
    return torch.stack(result) if alike else result[0]


class Emulated:
    """The operators in the emulator. Their arrays end where nothing may be touched."""

    operators = torch.ops.sda_fast_emulate

    def place(self, x: Tensor, *, aligned: bool = True) -> Tensor:
        return self.operators.guarded(x, not aligned)

    def __call__(self, name: str, *args: object, aligned: Alignment = True) -> Tensor:
        """Calls an operator, contiguous tensors copied to where their ends are guarded."""

        def place(a: object, aligned: bool) -> object:
            if isinstance(a, list):
                return [place(t, aligned) for t in a]
            contiguous = isinstance(a, Tensor) and a.is_contiguous()
            return self.place(a, aligned=aligned) if contiguous else a

        placed = [place(a, b) for a, b in zip(args, each(aligned), strict=False)]
        result = getattr(self.operators, name)(*placed)
        if result is None:
            return written(args, placed)
        return joined(result).clone()


class Device:
    """The operators on a GPU."""

    operators = torch.ops.sda_fast

    def place(self, x: Tensor, *, aligned: bool = True) -> Tensor:
        if aligned:
            return x.cuda()
        flat = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:]
        return flat.copy_(x.flatten()).view(x.shape)

    def __call__(self, name: str, *args: object, aligned: Alignment = True) -> Tensor:
        def place(a: object, aligned: bool) -> object:
            if isinstance(a, list):
                return [place(t, aligned) for t in a]
            return self.place(a, aligned=aligned) if isinstance(a, Tensor) else a

        placed = [place(a, b) for a, b in zip(args, each(aligned), strict=False)]
        result = getattr(torch.ops.sda_fast, name)(*placed)
        torch.cuda.synchronize()
        if result is None:
            return written(args, placed)
        return joined(result).cpu()


GPU = [pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else []


@pytest.fixture(params=["emulated", *GPU])
def call(request: pytest.FixtureRequest) -> Emulated | Device:
    if request.param == "emulated":
        request.getfixturevalue("emulator")
        return Emulated()
    return Device()


@pytest.fixture
def emulated(emulator: torch.library.Library) -> Emulated:
    return Emulated()


def close(a: Tensor, b: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Compares to the rounding of a type, of numbers of a size; of a half type, to its rounding of
    what is as good as float32's."""
    assert a.dtype == dtype
    atol = scale * (1e-13 if dtype == torch.float64 else 2e-6)
    rtol = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol)


def scattered(x: Tensor) -> Tensor:
    """Returns a copy of a tensor that is not contiguous."""
    y = torch.zeros(*reversed(x.shape), 2, dtype=x.dtype)[..., 0]
    y = y.permute(tuple(reversed(range(x.ndim))))
    y.copy_(x)
    return y


# Elementwise

EDGES = [0, 1, 3, 4, 31, 32, 33, 255, 256, 257, 1023, 1025, 4095, 4096, 4097]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
each_alignment = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "odd"])


@each_dtype
@each_alignment
def test_predictor(call: Emulated | Device, dtype: torch.dtype, aligned: bool) -> None:
    for size in EDGES:
        x, eps = torch.randn(2, size, dtype=dtype)
        expected = reference.predictor(x.double(), eps.double(), 0.9, -0.3)
        close(call("predictor", x, eps, 0.9, -0.3, aligned=aligned), expected, dtype)
        close(call("predictor_", x.clone(), eps, 0.9, -0.3, aligned=aligned), expected, dtype)


@each_dtype
@each_alignment
@pytest.mark.parametrize("batch", [1, 3])
def test_langevin(call: Emulated | Device, batch: int, dtype: torch.dtype, aligned: bool) -> None:
    numbers = (0.3, 0.5, *STREAM.values())
    for size in [*EDGES, 3 * 4096 + 5]:
        x, eps = torch.randn(2, batch, size, dtype=dtype)
        if size > 0:
            eps[:, 0] = 1  # delta is large where a sample is small
        expected = reference.langevin(x.double(), eps.double(), 0.3, 0.5, **STREAM)
        close(call("langevin", x, eps, *numbers, aligned=aligned), expected, dtype, 2.0)
        close(call("langevin_", x.clone(), eps, *numbers, aligned=aligned), expected, dtype, 2.0)


@each_dtype
@each_alignment
@pytest.mark.parametrize("batch", [1, 3])
def test_noise_is_the_library_s(
    call: Emulated | Device, batch: int, dtype: torch.dtype, aligned: bool
) -> None:
    for size in EDGES:
        expected = torch.zeros(batch, size, dtype=torch.promote_types(dtype, torch.float32))
        with ops.backend("native"):
            ops.philox_normal_(expected, **STREAM)
        out = torch.zeros(batch, size, dtype=dtype)
        result = call("philox_normal_", out, *STREAM.values(), aligned=aligned)
        close(result, expected, dtype, scale=0.5)


@each_dtype
def test_strides(call: Emulated | Device, dtype: torch.dtype) -> None:
    x, eps = torch.randn(2, 3, 5, 7, dtype=dtype)
    numbers = (0.3, 0.5, *STREAM.values())
    for name, rest in (("predictor", (0.9, -0.3)), ("langevin", numbers)):
        expected = call(name, x, eps, *rest)
        assert torch.equal(call(name, scattered(x), scattered(eps), *rest), expected)
        assert torch.equal(call(f"{name}_", scattered(x), scattered(eps), *rest), expected)
    z = call("philox_normal_", torch.zeros_like(x), *STREAM.values())
    assert torch.equal(call("philox_normal_", scattered(x), *STREAM.values()), z)


def test_in_place_on_itself_and_on_neighbours(emulated: Emulated) -> None:
    operators, numbers = emulated.operators, (0.3, 0.5, *STREAM.values())
    for size in (9, 4100):
        x = torch.randn(4, size)
        for name, rest in (("predictor", (0.9, 0.2)), ("langevin", numbers)):
            expected = emulated(name, x, x.clone(), *rest)
            work = x.clone()
            getattr(operators, f"{name}_")(work, work, *rest)
            assert torch.equal(work, expected)

            buffer = torch.randn(5, size)
            expected = emulated(name, buffer[1:], buffer[:-1], *rest)
            getattr(operators, f"{name}_")(buffer[1:], buffer[:-1], *rest)
            assert torch.equal(buffer[1:], expected)


def test_special_samples(call: Emulated | Device) -> None:
    """A sample whose eps is zero stays; NaN stays in its sample."""
    for size in (70, 4100):
        x, eps = torch.randn(2, 3, size)
        eps[0] = 0
        eps[1, -1] = torch.nan
        result = call("langevin", x, eps, 0.3, 0.5, *STREAM.values())
        assert torch.equal(result[0], x[0])
        assert result[1].isnan().all()
        assert result[2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_half_numbers(call: Emulated | Device, dtype: torch.dtype) -> None:
    """Every number, and every rounding: numbers plus parts of their last place."""
    every = torch.arange(-32768, 32768, dtype=torch.int16)
    numbers, beyond = every.view(dtype), (every.clamp(max=32766) + 1).view(dtype)
    scaled = call("predictor", numbers, torch.zeros_like(numbers), 1.25, 0.0)
    expected = (1.25 * numbers.float()).to(dtype)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=0, equal_nan=True)

    finite = numbers.isfinite() & beyond.isfinite()
    x, eps = numbers[finite], (beyond.double() - numbers.double())[finite].to(dtype)
    for b in (0.5 - 2**-12, 0.5, 0.5 + 2**-12):
        exact = x.double() + b * eps.double()
        assert torch.equal(call("predictor", x, eps, 1.0, b), exact.float().to(dtype))


@each_dtype
def test_dense_layouts(call: Emulated | Device, dtype: torch.dtype) -> None:
    """The step walks memory in x's order, and its result lies in that order too."""
    x, eps = torch.randn(2, 3, 5, 7, dtype=dtype).transpose(1, 3)
    expected = reference.predictor(x.double(), eps.double(), 0.9, -0.3)
    result = call("predictor", x, eps, 0.9, -0.3)
    close(result, expected, dtype)
    assert result.stride() == x.stride()
    assert torch.equal(call("predictor", x, eps.contiguous(), 0.9, -0.3), result)
    assert torch.equal(call("predictor_", x.clone(), eps, 0.9, -0.3), result)


# Fields between convolutions

FIELDS = [
    ((2, 32, 5, 4), (1, 1), (1, 1)),
    ((1, 7, 3, 5), (3, 2), (1, 1)),
    ((3, 65, 2, 2), (0, 1), (2, 3)),
    ((1, 2, 1, 9), (1, 4), (1, 2)),
    ((2, 24, 3, 3), (1, 1), (1, 1)),
    ((1, 264, 2, 1), (1, 0), (1, 1)),
]


def orders(call: Emulated | Device, x: Tensor) -> list[Tensor]:
    """Fields in several orders of memory: channels last, aligned to 16 bytes and not, first, and
    scattered. Of a result the bits are the same."""
    last = x.permute(0, 2, 3, 1).contiguous()
    guarded = [call.place(last, aligned=aligned).permute(0, 3, 1, 2) for aligned in (True, False)]
    return [*guarded, x, scattered(x)]


def same(results: list[Tensor]) -> Tensor:
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


@each_dtype
@pytest.mark.parametrize(("shape", "padding", "up"), FIELDS, ids=str)
def test_norm_pad(
    call: Emulated | Device,
    shape: tuple[int, ...],
    padding: tuple[int, int],
    up: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    x, residual = torch.randn(2, *shape, dtype=dtype)
    for rows in (0, 1, shape[0]):
        shift = torch.randn(rows, shape[1], dtype=wide) if rows else None
        wider = None if shift is None else shift.double()
        expected, scale = reference.norm_pad(x.double(), wider, [*padding], [*up], 1e-5)
        results = [call("norm_pad", y, shift, [*padding], [*up], 1e-5) for y in orders(call, x)]
        result = same(results)
        close(result, expected, dtype, 4.0)
        assert result.is_contiguous(memory_format=torch.channels_last)

    around = [p if p <= n else 0 for p, n in zip(padding, shape[2:], strict=True)]
    g = torch.randn(*shape[:2], up[0] * shape[2], up[1] * shape[3], dtype=dtype)
    for added in (None, residual):
        args = (g, x, scale.to(wide), added)
        wider = [None if a is None else a.double() for a in args]
        expected = reference.norm_pad_vjp(*wider, around, [*up])
        size = 4 * float(expected.abs().max())
        tensors = zip(*(orders(call, a) for a in (g, x)), strict=True)
        close(
            same([call("norm_pad_vjp", *y, *args[2:], around, [*up]) for y in tensors]),
            expected,
            dtype,
            size,
        )


@each_dtype
@pytest.mark.parametrize("activation", [None, 0, 1, 2, 3, 4])
def test_activation_pad(
    call: Emulated | Device, activation: int | None, dtype: torch.dtype
) -> None:
    for shape, (p, q), _ in FIELDS:
        padding = [min(p, shape[2]), min(q, shape[3])]
        x, g = 3 * torch.randn(2, *shape, dtype=torch.float64).to(dtype)
        some = torch.randn(shape[1], dtype=torch.promote_types(dtype, torch.float32))
        for bias in (None, some):
            args = (activation, padding, None if bias is None else bias.double())
            expected = reference.activation_pad(x.double(), *args)
            product = reference.activation_pad_vjp(g.double(), x.double(), *args)
            args, results, products = (activation, padding, bias), [], []
            for a, b in zip(orders(call, x), orders(call, g), strict=True):
                results.append(call("activation_pad", a, *args))
                products.append(call("activation_pad_vjp", b, a, *args))
            close(same(results), expected, dtype, 10.0)
            close(same(products), product, dtype, 10.0)


# A sampling step


def arguments(name: str, *shape: int, dtype: torch.dtype) -> tuple[object, ...]:
    """Returns random arguments of an operator: the longest of them."""
    x, eps, g, Jg, *past = torch.randn(6, *shape, dtype=torch.float64).to(dtype).unbind()
    return {
        "denoise": (x, eps, 0.8, 0.6),
        "multistep": (x, [eps, g, Jg, past[0]], 0.9, [0.5, -0.3, 0.2, -0.1]),
        "guide": (eps, g, Jg, 0.8, 0.6),
        "guide_predictor_": (x, eps, g, Jg, 0.8, 0.6, 0.9, 0.5, past, [-0.3, 0.2]),
        "guide_langevin_": (x, eps, g, Jg, 0.8, 0.6, 0.5, *STREAM.values()),
    }[name.removesuffix("_") if name in ("multistep_", "guide_") else name]


def widened(args: Iterable[object]) -> list[object]:
    """Returns arguments with their tensors in float64."""
    return [
        a.double() if isinstance(a, Tensor) else widened(a) if isinstance(a, list) else a
        for a in args
    ]


def copies(args: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


@each_dtype
@each_alignment
def test_linear_steps(call: Emulated | Device, dtype: torch.dtype, aligned: bool) -> None:
    for size in EDGES:
        for name in ("denoise", "multistep", "guide"):
            args = arguments(name, size, dtype=dtype)
            wide = widened(args)
            result = call(name, *args, aligned=aligned)
            close(result, getattr(reference, name)(*wide), dtype, 2.0)
            if name != "denoise":
                in_place = call(f"{name}_", *copies(args), aligned=aligned)
                assert torch.equal(in_place, result)

        x, eps, g, _, *past = torch.randn(5, size, dtype=torch.float64).to(dtype).unbind()
        for count in (1, 2, 3):
            args = ([eps, g, *past][:count], 0.9, [0.5, -0.3, 0.2][:count])
            expected = reference.multistep(x.double(), [e.double() for e in args[0]], *args[1:])
            close(call("multistep", x, *args, aligned=aligned), expected, dtype, 2.0)
        expected = reference.guide(eps.double(), g.double(), None, 0.8, 0.6)
        close(call("guide", eps, g, None, 0.8, 0.6, aligned=aligned), expected, dtype, 2.0)


@each_dtype
@each_alignment
@pytest.mark.parametrize("through", [True, False], ids=["through", "detach"])
def test_guide_predictor(
    call: Emulated | Device, through: bool, dtype: torch.dtype, aligned: bool
) -> None:
    """The bits of one operator after the other."""
    for size in EDGES[1:]:
        x, eps, g, Jg, *levels, r, b, past, past_b = arguments(
            "guide_predictor_", size, dtype=dtype
        )
        Jg = Jg if through else None
        guided = call("guide", eps, g, Jg, *levels, aligned=aligned)
        for count in range(3):
            ends = past[:count], past_b[:count]
            stepped = call("multistep", x, [guided, *ends[0]], r, [b, *ends[1]], aligned=aligned)
            works = (x.clone(), eps.clone())
            call("guide_predictor_", *works, g, Jg, *levels, r, b, *ends, aligned=aligned)
            assert torch.equal(works[0], stepped)
            assert torch.equal(works[1], guided)


@each_dtype
@each_alignment
@pytest.mark.parametrize("batch", [1, 3])
def test_guide_langevin(
    call: Emulated | Device, batch: int, dtype: torch.dtype, aligned: bool
) -> None:
    for size in [*EDGES[1:], 3 * 4096 + 5]:
        x, eps, g, Jg, mu, sigma, *numbers = arguments("guide_langevin_", batch, size, dtype=dtype)
        for through in (Jg, None):
            guided = call("guide", eps, g, through, mu, sigma, aligned=aligned)
            corrected = call("langevin", x, guided, sigma, *numbers, aligned=aligned)
            works = (x.clone(), eps.clone())
            call("guide_langevin_", *works, g, through, mu, sigma, *numbers, aligned=aligned)
            assert torch.equal(works[0], corrected)
            assert torch.equal(works[1], guided)


@each_dtype
def test_steps_of_any_layout(call: Emulated | Device, dtype: torch.dtype) -> None:
    """Strides, alignments one by one, and nothing at all."""
    names = ("denoise", "multistep", "guide", "guide_", "guide_predictor_", "guide_langevin_")
    for name, shape in product(names, ((3, 5, 7), (2, 8, 128), (0, 3), (2, 0))):
        args = arguments(name, *shape, dtype=dtype)
        works = [copies(args) for _ in range(4)]
        expected = call(name, *works[0])
        for i in range(2):
            aligned = (i == 0, i == 1)
            assert torch.equal(call(name, *works[1 + i], aligned=aligned), expected)
        apart = [scattered(a) if isinstance(a, Tensor) else a for a in works[3]]
        assert torch.equal(call(name, *apart), expected)
        if name.startswith("guide_"):
            assert torch.equal(apart[1], works[0][1])


def test_steps_beside_what_they_read(emulated: Emulated) -> None:
    for size in (9, 4100):
        x, eps = torch.randn(2, 1, size).unbind()
        numbers = (0.8, 0.6, 0.9, 0.5, [eps, x], [0.3, 0.2])
        expected = [x.clone(), eps.clone()]
        emulated("guide_predictor_", *expected, x.clone(), eps.clone(), *numbers)
        works = [x.clone(), eps.clone()]
        numbers = (*numbers[:4], [works[1], works[0]], numbers[5])
        emulated.operators.guide_predictor_(*works, *works, *numbers)
        assert torch.equal(torch.cat(works), torch.cat(expected))

        numbers = (0.8, 0.6, 0.5, *STREAM.values())
        buffer = torch.cat((torch.randn(1), x[0], torch.randn(1)))[None]
        expected = [x.clone(), eps.clone()]
        emulated(
            "guide_langevin_", *expected, buffer[:, 2:].clone(), buffer[:, :-2].clone(), *numbers
        )
        works = [buffer[:, 1:-1], eps.clone()]
        emulated.operators.guide_langevin_(*works, buffer[:, 2:], buffer[:, :-2], *numbers)
        assert torch.equal(torch.cat(works), torch.cat(expected))


@each_dtype
def test_steps_of_many_blocks(call: Emulated | Device, dtype: torch.dtype) -> None:
    for name in ("denoise", "multistep", "guide", "guide_predictor_", "guide_langevin_"):
        args = arguments(name, 2, 40_000, dtype=dtype)
        ours = copies(args)
        with ops.backend("native"):
            numbers = STREAM if name == "guide_langevin_" else {}
            plain = ours[: len(ours) - len(numbers)]
            expected = getattr(ops, name)(*plain, **numbers)
        expected = ours[0] if expected is None else expected
        atol = 1e-6 if dtype == torch.float64 else 1e-5
        rtol = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0
        result = call(name, *copies(args))
        torch.testing.assert_close(result.double(), expected.double(), rtol=rtol, atol=atol)


# Windows


def plan(states: int, window: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns windows in random places, of random weights, that may hang over the end."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, states, (states,), generator=generator).sort().values
    weight = torch.randint(-1, 2, (states, window), generator=generator).to(torch.int8)
    weight[start[:, None] + torch.arange(window) >= states] = 0
    return start, weight


@each_dtype
@each_alignment
@pytest.mark.parametrize("row", [(1,), (3,), (4,), (31,), (2, 3, 4), (33, 8)], ids=str)
def test_gather_and_compose(
    call: Emulated | Device, row: tuple[int, ...], dtype: torch.dtype, aligned: bool
) -> None:
    for batch, states, window in ((0, 5, 3), (1, 1, 1), (1, 7, 3), (3, 33, 5)):
        start, weight = plan(states, window, seed=states)
        x = torch.randn(batch, states, *row, dtype=dtype)
        windows = call("gather", x, start, weight, aligned=aligned)
        assert torch.equal(windows, reference.gather(x, start, weight))

        windows = torch.randn_like(windows)
        windows.unflatten(2, (window, -1))[:, weight == 0] = torch.nan  # not read
        composed = call("compose", windows, start, weight, states, aligned=aligned)
        expected = reference.compose(windows.double(), start, weight, states)
        close(composed, expected, dtype, 4.0)

        levels = (0.8, 0.6)
        both = call("compose_denoise", windows, start, weight, x, *levels, aligned=aligned)
        assert torch.equal(both[0], composed)
        assert torch.equal(both[1], call("denoise", x, composed, *levels))
        apart = (scattered(windows), start, weight, scattered(x))
        assert torch.equal(call("compose_denoise", *apart, *levels), both)

        assert torch.equal(call("compose", scattered(windows), start, weight, states), composed)
        x = scattered(x)
        assert torch.equal(call("gather", x, start, weight), reference.gather(x, start, weight))

        # rows that are contiguous, at any strides: the states of every other trajectory and time
        apart = torch.full((2 * batch + 1, 2 * states, *row), torch.nan, dtype=dtype)
        apart[1::2, ::2] = x
        y = apart[1::2, ::2]
        assert torch.equal(call("gather", y, start, weight), reference.gather(x, start, weight))
        apart = torch.full((len(start), batch, 2, *windows.shape[2:]), torch.nan, dtype=dtype)
        apart[:, :, 1] = windows.transpose(0, 1)
        y = apart[:, :, 1].transpose(0, 1)
        assert torch.equal(call("compose", y, start, weight, states), composed)
        assert torch.equal(call("compose_denoise", y, start, weight, x, *levels), both)


def test_no_windows(call: Emulated | Device) -> None:
    start, weight = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int8)
    assert call("gather", torch.ones(2, 5, 4), start, weight).shape == (2, 0, 12)
    assert torch.equal(
        call("compose", torch.ones(2, 0, 12), start, weight, 5), torch.zeros(2, 5, 4)
    )


@pytest.mark.parametrize("row", [3, 4])
def test_windows_beyond_the_trajectory(call: Emulated | Device, row: int) -> None:
    """A plan cannot be checked without a wait for the device: nothing beyond is touched."""
    start, weight = torch.tensor([-2, 3, 5]), torch.ones(3, 3, dtype=torch.int8)
    x = torch.randn(2, 5, row)
    windows = call("gather", x, start, weight).unflatten(2, (3, row))
    assert windows[:, 0, :2].isnan().all()
    assert torch.equal(windows[:, 0, 2], x[:, 0])
    assert torch.equal(windows[:, 1, :2], x[:, 3:])
    assert windows[:, 1, 2].isnan().all()
    assert windows[:, 2].isnan().all()

    composed = call("compose", torch.ones(2, 3, 3 * row), start, weight, 5)
    assert torch.equal(composed[0, :, 0], torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))

    # not ascending: the numbers are wrong, but nothing beyond is read
    start = torch.tensor([2, 3, 1])
    assert call("compose", torch.ones(2, 3, 3 * row), start, weight, 5).isfinite().all()


@each_dtype
def test_many_blocks(call: Emulated | Device, dtype: torch.dtype) -> None:
    x = torch.randn(2, 40_000, dtype=dtype)
    eps = torch.randn_like(x)
    expected = reference.langevin(x.double(), eps.double(), 0.3, 0.5, **STREAM)
    close(call("langevin", x, eps, 0.3, 0.5, *STREAM.values()), expected, dtype, 2.0)
    expected = reference.predictor(x.double(), eps.double(), 0.9, 0.1)
    close(call("predictor", x, eps, 0.9, 0.1), expected, dtype)


@each_dtype
def test_results_do_not_depend_on_the_alignment(
    call: Emulated | Device, dtype: torch.dtype
) -> None:
    for shape in ((3, 256), (3, 255), (2, 8192)):
        x, eps = torch.randn(2, *shape, dtype=dtype)
        for name, rest in (("predictor", (0.9, 0.1)), ("langevin", (0.3, 0.5, *STREAM.values()))):
            expected = call(name, x, eps, *rest)
            for aligned in product((True, False), repeat=2):
                assert torch.equal(call(name, x, eps, *rest, aligned=aligned), expected)
                result = call(f"{name}_", x.clone(), eps, *rest, aligned=aligned)
                assert torch.equal(result, expected)


@pytest.mark.parametrize("order", range(5))
def test_results_do_not_depend_on_the_order_of_threads(emulated: Emulated, order: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 5000, generator=generator)
    small = (x[:, :300].contiguous(), eps[:, :300].contiguous())
    emulated.operators.seed(order)
    results = [emulated("langevin", *a, 0.3, 0.5, *STREAM.values()) for a in ((x, eps), small)]
    emulated.operators.seed(order + 100)
    for result, a in zip(results, ((x, eps), small), strict=True):
        assert torch.equal(emulated("langevin", *a, 0.3, 0.5, *STREAM.values()), result)


def test_errors_are_the_operators_own(emulated: Emulated) -> None:
    with pytest.raises(RuntimeError, match="eps must have the dtype of x, float32, but has float6"):
        emulated("predictor", torch.ones(2), torch.ones(2).double(), 1.0, 1.0)


# Observations


@each_dtype
@each_alignment
@pytest.mark.parametrize(
    ("shape", "start", "step", "size"),
    [
        ((7,), (2,), (3,), (2,)),
        ((9, 3), (0, 0), (4, 1), (3, 1)),
        ((4, 6, 5), (1, 0, 0), (2, 1, 1), (2, 6, 5)),
        ((4, 8, 12), (0, 1, 3), (2, 3, 4), (2, 3, 3)),
        ((4, 8, 12), (0, 0, 4), (2, 1, 1), (2, 8, 8)),
        ((3, 400), (1, 0), (1, 1), (2, 400)),
        ((3, 401), (1, 0), (1, 1), (2, 401)),
    ],
    ids=str,
)
def test_subsample(
    call: Emulated | Device,
    shape: tuple[int, ...],
    start: tuple[int, ...],
    step: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    aligned: bool,
) -> None:
    places = (list(start), list(step))
    for batch in (0, 1, 3):
        x = torch.randn(batch, *shape).to(dtype)
        y = call("subsample", x, *places, list(size), aligned=aligned)
        assert torch.equal(y, reference.subsample(x, *places, list(size)))
        back = call("subsample_adjoint", y, *places, list(shape), aligned=aligned)
        assert torch.equal(back, reference.subsample_adjoint(y, *places, list(shape)))
        assert torch.equal(call("subsample", scattered(x), *places, list(size)), y)
        assert torch.equal(call("subsample_adjoint", scattered(y), *places, list(shape)), back)


@each_dtype
@each_alignment
@pytest.mark.parametrize(
    ("size", "block"),
    [((3,), (4,)), ((2, 3), (4, 1)), ((3, 2, 5), (2, 3, 4)), ((2, 400), (3, 1)), ((2, 8), (1, 1))],
    ids=str,
)
def test_block_mean(
    call: Emulated | Device,
    size: tuple[int, ...],
    block: tuple[int, ...],
    dtype: torch.dtype,
    aligned: bool,
) -> None:
    blocks = list(block)
    for batch in (0, 1, 3):
        x = torch.randn(batch, *(n * k for n, k in zip(size, block, strict=True))).to(dtype)
        y = call("block_mean", x, blocks, aligned=aligned)
        close(y, reference.block_mean(x.double(), blocks), dtype)
        assert torch.equal(y, torch.ops.sda_fast.block_mean(x, blocks))  # summed in the same order
        back = call("block_mean_adjoint", y, blocks, aligned=aligned)
        close(back, reference.block_mean_adjoint(y.double(), blocks), dtype)
        assert torch.equal(call("block_mean", scattered(x), blocks), y)
        assert torch.equal(call("block_mean_adjoint", scattered(y), blocks), back)


@each_dtype
@each_alignment
@pytest.mark.parametrize("values", [True, False], ids=["values", "ones"])
def test_sparse_map(
    call: Emulated | Device, values: bool, dtype: torch.dtype, aligned: bool
) -> None:
    for batch, rows, columns, entries in ((0, 3, 4, 5), (1, 1, 1, 1), (3, 700, 300, 900)):
        row = torch.randint(rows, (entries,)).bincount(minlength=rows).cumsum(0)
        row = torch.cat([torch.zeros(1, dtype=torch.int64), row])
        column = torch.randint(columns, (entries,))
        value = torch.randn(entries).to(torch.promote_types(dtype, torch.float32))
        matrix = (row, column, value if values else None)
        x = torch.randn(batch, columns).to(dtype)
        y = call("sparse_map", x, *matrix, aligned=aligned)
        close(y, reference.sparse_map(x.double(), *matrix), dtype, 4.0)
        assert torch.equal(call("sparse_map", scattered(x), *matrix), y)


def test_a_sparse_map_beyond_the_state(call: Emulated | Device) -> None:
    """It cannot be checked without a wait for the device: nothing beyond is touched."""
    x, value = torch.randn(2, 4), torch.ones(3)
    row, column = torch.tensor([-5, 1, 2, 9]), torch.tensor([4, 3, -1])
    y = call("sparse_map", x, row, column, value)
    assert y[:, [0, 2]].isnan().all()
    assert torch.equal(y[:, 1], x[:, 3])


@each_dtype
@each_alignment
@pytest.mark.parametrize("each_y", [True, False], ids=["y of each sample", "one y"])
def test_residual(call: Emulated | Device, each_y: bool, dtype: torch.dtype, aligned: bool) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    for size in (1, 4, 31, 256, 1025):
        prediction = torch.randn(3, size).to(dtype)
        y = torch.randn((3, size) if each_y else size, dtype=wide)
        y[..., size // 2] = torch.nan
        prediction[1, size // 2] = torch.inf
        ones, many = torch.rand(2, dtype=wide) + 0.1, torch.rand(2, size, dtype=wide) + 0.1
        for std, gamma in product((ones[0], many[0]), (ones[1], many[1])):
            result = call("residual", y, prediction, std, gamma, 0.7, aligned=aligned)
            numbers = (t.double() for t in (y, prediction, std, gamma))
            close(result, reference.residual(*numbers, 0.7), dtype, 200.0)
            assert (result[:, size // 2] == 0).all()


# Networks, forward and the vector-Jacobian product, against the module in float64

FLOAT32, TF32, BFLOAT16 = Fragments(), Fragments(tf32=True), Fragments(bfloat16=True)
ROUNDING = {FLOAT32: (0.0, 5e-6), TF32: (1e-6, 5e-3), BFLOAT16: (1e-5, 2e-2)}
each_packing = pytest.mark.parametrize(
    "packing", ROUNDING, ids=lambda p: "bfloat16" if p.bfloat16 else "tf32" if p.tf32 else "float32"
)


def score_network(features: int = 3, order: int = 2, **kwargs: Any) -> MCScoreNet:
    kwargs = {"embedding": 8, "hidden_features": [32, 48], "activation": nn.SiLU} | kwargs
    return MCScoreNet(features, order=order, **kwargs).requires_grad_(False)


def evaluate_network(
    call: Emulated | Device,
    network: MCScoreNet,
    packing: Fragments,
    cotangent: Tensor,
    *inputs: Tensor | None,
    kept: int | None = None,
) -> list[Tensor]:
    """Returns the estimate and the product with a cotangent, `kept` windows kept in between."""
    x, t, c = (*inputs, None)[:3]
    plan = network.plan(x.shape[1])
    arguments = FusedMLP(network, Packed(), packing)._arguments(x, t, c, plan)
    tensors = [call.place(a) for a in arguments[:7]]
    rows = len(x) * len(plan) if kept is None else kept
    eps, kept_rows = call.operators.mlp_score(*tensors, *arguments[7:], rows)
    assert kept_rows.shape == (rows, kept_numbers(arguments[7], device=torch.device("cuda")))
    product = call.operators.mlp_score_vjp(
        call.place(cotangent), *tensors, kept_rows, *arguments[7:]
    )
    return [eps.cpu().clone(), product.cpu().clone()]


def check_network(
    call: Emulated | Device,
    network: MCScoreNet,
    packing: Fragments,
    *inputs: Tensor | None,
    cotangent: Tensor | None = None,
) -> list[Tensor]:
    x = inputs[0]
    cotangent = torch.randn_like(x) if cotangent is None else cotangent
    results = evaluate_network(call, network, packing, cotangent, *inputs)

    wide = [None if a is None else a.double() for a in inputs]
    wide[0].requires_grad_(True)
    with ops.backend("reference"):
        eps = copy.deepcopy(network).double()(*wide)
    (product,) = torch.autograd.grad(eps, wide[0], cotangent.double())

    least, most = ROUNDING[packing]
    for result, exact in zip(results, (eps.detach(), product), strict=True):
        assert result.shape == x.shape
        assert least < float((result - exact).norm() / exact.norm()) < most
    return results


@each_packing
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
def test_mlp_activations(
    call: Emulated | Device, activation: type[nn.Module], packing: Fragments
) -> None:
    network = score_network(activation=activation)
    check_network(call, network, packing, 2 * torch.randn(1, 9, 3), torch.tensor(0.3))


@each_packing
@pytest.mark.parametrize(
    ("features", "order", "hidden", "batch", "length"),
    [
        (1, 1, [16], 1, 3),
        (2, 1, [7, 7, 9], 3, 4),
        (3, 2, [256] * 2, 1, 5),
        (4, 2, [512, 320], 1, 6),
        (64, 4, [48], 1, 9),
        (2, 16, [40, 80], 2, 36),
    ],
)
def test_mlp_widths(
    call: Emulated | Device,
    features: int,
    order: int,
    hidden: list[int],
    batch: int,
    length: int,
    packing: Fragments,
) -> None:
    network = score_network(features, order, hidden_features=hidden)
    x = torch.randn(batch, length, features)
    check_network(call, network, packing, x, torch.tensor(0.7))


@each_packing
def test_mlp_inputs(call: Emulated | Device, packing: Fragments) -> None:
    """Times of the samples, context, and windows of several lengths that overlap."""
    network = score_network(context=6)
    x, t, c = torch.randn(3, 7, 3), torch.rand(3, 1), torch.randn(6)
    check_network(call, network, packing, x, t, c)
    for rule, length in ((Junction(9, 4), 14), (Junction(7, 1), 4), (Centre(2), 11)):
        network = score_network(order=4, length_aware=True, composition=rule)
        check_network(call, network, packing, torch.randn(2, length, 3), torch.tensor(0.1))


@pytest.mark.parametrize("packing", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_mlp_batches(call: Emulated | Device, packing: Fragments) -> None:
    """Tiles of every size, and what is kept, give the same bits."""
    network, t = score_network(hidden_features=[16]), torch.tensor(0.5)
    x, cotangent = torch.randn(2, 33, 20, 3)
    whole = check_network(call, network, packing, x, t, cotangent=cotangent)
    for batch, kept in ((1, None), (9, 0), (17, 100)):
        part = evaluate_network(call, network, packing, cotangent[:batch], x[:batch], t, kept=kept)
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[:batch])


def test_mlp_chunks(call: Emulated | Device) -> None:
    """More windows than are composed at once."""
    network = score_network(64, 1, hidden_features=[16])
    check_network(call, network, FLOAT32, torch.randn(1, 100, 64), torch.tensor(0.5))


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.cuda
@on_a_gpu
@each_packing
@pytest.mark.parametrize("batch", [70, 140])
def test_mlp_on_all_processors(batch: int, packing: Fragments) -> None:
    """Windows enough for tiles of 32 and of 64 on 132 processors: the same bits as of one sample,
    whose tiles are of 8."""
    network, t = score_network(hidden_features=[256, 256]), torch.tensor(0.5)
    x, cotangent = torch.randn(2, batch, 65, 3)
    whole = evaluate_network(Device(), network, packing, cotangent, x, t)
    for n in (0, batch // 2, batch - 1):
        part = slice(n, n + 1)
        one = check_network(Device(), network, packing, x[part], t, cotangent=cotangent[part])
        for a, b in zip(one, whole, strict=True):
            assert torch.equal(a, b[part])


@pytest.mark.cuda
@on_a_gpu
def test_mlp_chunks_of_a_gpu() -> None:
    """Results of more than 64 MB, of windows that a chunk's end comes between."""
    network, t = score_network(64, 4, hidden_features=[16]), torch.tensor(0.5)
    x, cotangent = torch.randn(2, 30, 1032, 64)
    windows = len(x) * len(network.plan(x.shape[1]))
    assert 4 * windows * 9 * 64 > 2**26
    whole = evaluate_network(Device(), network, FLOAT32, cotangent, x, t, kept=1000)
    for n in (0, 29):
        part = slice(n, n + 1)
        one = check_network(Device(), network, FLOAT32, x[part], t, cotangent=cotangent[part])
        for a, b in zip(one, whole, strict=True):
            assert torch.equal(a, b[part])


def test_mlp_outside_the_trajectory(call: Emulated | Device) -> None:
    """A plan cannot be checked without a wait for the device: nothing beyond is touched."""
    network, x = score_network(hidden_features=[16]), torch.randn(1, 9, 3)
    arguments = FusedMLP(network, Packed(), FLOAT32)._arguments(
        x, torch.tensor(0.5), None, network.plan(9)
    )
    start = torch.tensor([-1, 1, 2, 3, 6])
    tensors = [call.place(a) for a in (x, start, *arguments[2:7])]
    eps, _ = call.operators.mlp_score(*tensors, *arguments[7:], 0)
    assert eps[0, [0, 1, 8]].isnan().all()
    assert eps[0, 3:6].isfinite().all()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(2, 9, 3).double(), "x must be"),
        (4, torch.randn(3, 32), "bias must have shape"),
        (5, torch.randn(7), "weights must have"),
        (6, torch.randn(7), "transposed must have"),
        (7, [32, 16], "widths must"),
        (8, 9, "activation must be"),
    ],
)
def test_mlp_refuses(emulated: Emulated, place: int, value: Any, message: str) -> None:
    network, x = score_network(), torch.randn(2, 9, 3)
    arguments = list(
        FusedMLP(network, Packed(), FLOAT32)._arguments(x, torch.tensor(0.5), None, network.plan(9))
    )
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        emulated.operators.mlp_score_vjp(
            arguments[0], *arguments[:7], torch.empty(0, 0), *arguments[7:]
        )


# The emulator itself: what CUDA defines


def test_collectives(emulated: Emulated) -> None:
    """Warps of a block of three dimensions, their shuffles and votes, and atomics."""
    x = torch.randint(-100, 100, (6, 64), dtype=torch.int32)
    result, total = emulated.operators.collectives(emulated.place(x))
    lane = torch.arange(32)

    warps = x.reshape(-1, 32)
    wide = warps.long()
    expected = torch.stack(
        [
            warps[:, [3] * 32],
            warps[:, lane // 8 * 8 + 1],
            warps[:, (lane - 1).clamp(min=0)],
            warps[:, torch.where(lane % 16 < 14, lane + 2, lane)],
            warps[:, lane ^ 5],
            ((wide > 0) << lane).sum(1, keepdim=True).to(torch.int32).expand(-1, 32),
            (wide > 90).any(1, keepdim=True).expand(-1, 32),
            (wide > -90).all(1, keepdim=True).expand(-1, 32),
            warps[:, torch.where(lane % 2 == 0, lane ^ 2, lane ^ 4)],
            sum(warps.float().view(torch.int32) >> bit & 1 for bit in range(32)),
            2 * warps[:, [0] * 32] + 1,
            torch.full_like(warps, 6),
        ],
        dim=-1,
    )
    assert torch.equal(result.view(expected.shape), expected.to(torch.int32))
    extremes = [int(x.sum()), max(0, int(x.max())), min(0, int(x.min()))]
    assert total.tolist() == extremes


# Bugs that it must see, of csrc/emulate/selftest.cu

BUGS = {
    "a load beyond an array": (1, "thread 25[23] touches memory 0 bytes after the end of an array"),
    "a store beyond an array": (2, "written after the end of an array|touches memory .* after"),
    "no barrier": (3, None),
    "no second barrier": (4, None),
    "two barriers": (5, r"128 wait at the barrier selftest.cu:\d+, 128 wait at the barrier"),
    "a return before a barrier": (6, r"[34] thread\(s\) have returned, 25[23] wait at the barrier"),
    "shared memory that nobody wrote": (7, None),
    "an index beyond a shared array": (8, "thread 255 does what C.. does not define"),
    "a misaligned access": (9, "does what C.. does not define: a misaligned access"),
    "a lane that is not in its mask": (10, "is not in the mask that it gives at selftest.cu"),
    "a lane that takes no part": (11, "reads lane 16, which takes no part, at selftest.cu"),
    "a store beyond dynamic shared memory": (12, "thread 255 touches memory 0 bytes after the end"),
}


def planted(emulated: Emulated, x: Tensor, bug: int) -> bool:
    """Runs the kernel that turns each run of 256 elements round, and says whether it did."""
    result = emulated.operators.planted(x, bug)
    return torch.equal(result, torch.cat([run.flip(0) for run in x.split(256)]))


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_seen(emulated: Emulated, bug: str, order: int) -> None:
    emulated.operators.seed(order)
    number, says = BUGS[bug]
    for size in (7 * 256 - 4, 7 * 256 - 3):
        x = emulated.place(torch.randn(size), aligned=number != 1 or size % 4 == 0)
        if says is None:
            assert not planted(emulated, x, number)
        else:
            with pytest.raises(RuntimeError, match=rf"planted, block \d of 3: .*({says})"):
                planted(emulated, x, number)
        assert planted(emulated, x, 0)  # and the emulator goes on as before


def test_the_kernel_without_bugs_is_right(emulated: Emulated) -> None:
    for size in EDGES[1:]:
        for aligned in (True, False):
            assert planted(emulated, emulated.place(torch.randn(size), aligned=aligned), 0)
