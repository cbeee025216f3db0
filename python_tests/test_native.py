"""The native library: its random numbers against what is published, and what happens without it."""

import math
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch

import sda_fast
from sda_fast import _native, info, ops, reference
from sda_fast._compile import constant
from sda_fast._kept import anew, version

needs_native = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

# Random123's known answers for Philox4x32-10: counter, key, words
KNOWN = [
    ("00000000" * 4, "00000000" * 2, "6627e8d5e169c58dbc57ac4c9b00dbd8"),
    ("ffffffff" * 4, "ffffffff" * 2, "408f276d41c83b0ea20bc7c66d5451fd"),
    ("243f6a8885a308d313198a2e03707344", "a4093822299f31d0", "d16cfe0994fdcceb5001e42024126ea1"),
]


def words(text: str) -> list[int]:
    return [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]


# Random numbers


@needs_native
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    from sda_fast import _C

    assert _C.philox(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_reference_philox_known_answers(counter: str, key: str, expected: str) -> None:
    counters = tuple(torch.tensor([word]) for word in words(counter))
    k0, k1 = words(key)
    assert [int(word) for word in reference.philox(counters, (k0, k1))] == words(expected)


def box_muller(a: int, b: int) -> tuple[float, float]:
    """Box-Muller by the C library, with log1p where the radius is small."""
    if a < 2**31:
        log = math.log((a + 0.5) / 2**32)
    else:
        log = math.log1p(-((2**32 - 1 - a) + 0.5) / 2**32)
    quarter, rest = divmod(b + 2**29, 2**30)
    angle = 2 * math.pi * (rest - 2**29) / 2**32
    c, s = math.cos(angle), math.sin(angle)
    c, s = [(c, s), (-s, c), (-c, -s), (s, -c)][quarter % 4]
    radius = math.sqrt(-2 * log)
    return radius * c, radius * s


EDGES = [0, 1, 2, 2**8, 2**23, 2**24 + 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1]
EDGES += [3037000499, 3037000500, *(2**32 - 1 - edge for edge in EDGES)]


@needs_native
@pytest.mark.parametrize("a", EDGES)
def test_normals_are_accurate_everywhere(a: int) -> None:
    """Small radii keep their relative accuracy, large ones their absolute, at every angle."""
    from sda_fast import _C

    rng = np.random.default_rng(a)
    for b in [*EDGES, *rng.integers(0, 2**32, size=200).tolist()]:
        expected = np.array(box_muller(a, b))
        single0, single1, double0, double1 = _C.normals(a, b)
        radius = math.hypot(*expected)
        assert np.abs(np.array([single0, single1]) - expected).max() <= 4e-7 * max(radius, 1e-3)
        assert np.abs(np.array([double0, double1]) - expected).max() <= 1e-15 * max(radius, 1e-3)
        assert abs(math.hypot(single0, single1) / radius - 1) <= 4e-7


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(dtype: torch.dtype) -> None:
    z = torch.empty(16, 65536, dtype=dtype)
    with ops.backend("native"):
        ops.philox_normal_(z, seed=1, step=2, correction=3)
    n = z.numel()
    z = z.double()

    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    # moments within four standard errors: the k-th's variance is E z^2k - (E z^k)^2
    for k, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**k).mean() - moment) < 4 * math.sqrt(variance / n)
    # neighbours within a quad and beyond are independent
    for lag in (1, 2, 3, 4):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 4 / math.sqrt(n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n)


@needs_native
def test_noise_of_other_streams_is_independent() -> None:
    def noise(**stream: int) -> torch.Tensor:
        z = torch.empty(1, 40000)
        ops.philox_normal_(z, **{"seed": 1, "step": 0, "correction": 0, "first_sample": 0} | stream)
        return z

    z = noise()
    for other in ({"seed": 2}, {"seed": 1 + 2**32}, {"seed": -1}, {"step": 1}, {"step": 2**32 - 1},
                  {"correction": 1}, {"correction": 65535}, {"first_sample": 1}):  # fmt: skip
        assert abs((z * noise(**other)).mean()) < 4 / math.sqrt(z.numel()), other
    assert torch.equal(noise(seed=-1), noise(seed=2**64 - 1))


# Contents


@needs_native
def test_fingerprints_tell_contents_apart() -> None:
    x = torch.randn(300)
    seen = {_native.fingerprint(x[:size]) for size in range(300)}
    assert len(seen) == 300
    assert len({_native.fingerprint(torch.zeros(size)) for size in range(300)}) == 300

    known = _native.fingerprint(x)
    assert known == _native.fingerprint(x.clone())
    assert known == _native.fingerprint(x.repeat_interleave(2)[::2])
    others = [-x, x.flip(0), x.roll(16), x.sort().values, x + 1e-6]
    for i in range(300):  # one number, and one that had its sign changed with one further on
        for changed in ([i], [i, (i + 16) % 300], [i, (i + 1) % 300]):
            others.append(x.clone())
            others[-1][changed] *= -1
    assert len({known, *map(_native.fingerprint, others)}) == 1 + len(others)


@needs_native
def test_fingerprints_of_any_type() -> None:
    for x in (
        torch.randn(5).bfloat16(),
        torch.randn(2, 3).double(),
        torch.arange(7, dtype=torch.int8),
    ):
        assert _native.fingerprint(x) == _native.fingerprint(x.clone())
        assert _native.fingerprint(x) != _native.fingerprint(x + 1)
    assert _native.fingerprint(torch.randn(2, requires_grad=True)) is not None


def test_versions_where_contents_are_not_looked_at() -> None:
    x = torch.empty(3, device="meta")
    known = version(x)
    assert version(x) == known
    with anew():
        assert version(x) != version(x)
    assert version(x) == known
    x.zero_()
    assert version(x) != known
    with torch.inference_mode():
        y = torch.empty(3, device="meta")
    assert version(y) != version(y)


# Loading


def test_the_library_loads() -> None:
    """The tests of native operators are skipped without it: an installed package must have it."""
    assert _native.available, _native.reason


def test_importing_is_light() -> None:
    """What takes long to load is loaded where it is used."""
    heavy = "torch._dynamo", "sympy", "scipy", "h5py", "matplotlib", "ot"
    assert run(f"import sys, sda_fast; print([n for n in {heavy} if n in sys.modules])") == ["[]"]


def test_constants_are_marked_as_torch_marks_them() -> None:
    def ours() -> None: ...
    def theirs() -> None: ...

    constant(ours)
    torch.compiler.assume_constant_result(theirs)
    assert ours.__dict__ == theirs.__dict__ != {}


def test_the_device_is_a_constant_to_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    @cache
    def untraceable(index: int | None) -> str:
        return str(os.stat(os.curdir).st_mode and index)

    monkeypatch.setattr(_native, "_device_reason", untraceable)
    compiled = torch.compile(
        lambda x: x + len(_native.device_reason(10) or ""), fullgraph=True, backend="eager"
    )
    assert compiled(torch.tensor(1)) == 3


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "sda_fast._C":
            raise {error}
sys.meta_path.insert(0, Hide())
"""

USE = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from sda_fast import _native, ops, reference
    assert not caught, [str(w.message) for w in caught]
    x, eps = torch.randn(2, 5), torch.randn(2, 5)
    for _ in range(3):
        assert torch.equal(ops.predictor(x, eps, 0.9, 0.1), reference.predictor(x, eps, 0.9, 0.1))
        ops.philox_normal_(x, seed=1, step=0)
assert not _native.available and _native.reason == ops.unserved(x)
assert [w.category for w in caught] == [UserWarning], [str(w.message) for w in caught]
print(caught[0].message)
try:
    with ops.backend("native"):
        ops.predictor(x, eps, 0.9, 0.1)
except RuntimeError as error:
    print(error)
"""


def run(code: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("ModuleNotFoundError('No module', name=name)", "native library is missing"),
        ("ImportError('undefined symbol: f')", "cannot be loaded: undefined symbol: f"),
    ],
)
def test_without_the_library(error: str, says: str) -> None:
    warning, raised = run(HIDE.format(error=error) + USE)
    assert says in warning
    assert "falling back to the pure PyTorch reference" in warning
    assert raised.startswith("the backend is native, but")
    assert says in raised


STALE = """
import torch
class Operators:
    def __init__(self, built):
        self.built = built
    def __getattr__(self, name):
        name = {{"{replaced}": "{replacing}"}}.get(name, name)
        return getattr(self.built, name)
torch.ops.sda_fast = Operators(torch.ops.sda_fast)
"""


@needs_native
@pytest.mark.parametrize(
    ("replaced", "replacing", "says"),
    [
        ("langevin_", "unknown", "it has no operator langevin_"),
        ("compose", "gather", "its operator is sda_fast::gather(Tensor x, Tensor start"),
    ],
)
def test_stale_library(replaced: str, replacing: str, says: str) -> None:
    """A library of other sources is named as such, and how to have one that fits."""
    warning, raised = run(STALE.format(replaced=replaced, replacing=replacing) + USE)
    assert "was built from other sources" in warning
    assert says in warning
    assert "pip install ." in warning
    assert raised.startswith("the backend is native, but")


OLD = """
import sys, types
sys.modules["sda_fast._C"] = types.ModuleType("sda_fast._C")
"""


def test_library_without_a_function() -> None:
    warning, _ = run(OLD + USE)
    assert "was built from other sources" in warning
    assert "it has no build_info" in warning


@needs_native
@pytest.mark.parametrize("isa", ["sse9", "AVX2"])
def test_unknown_instruction_set(isa: str) -> None:
    warning, _ = run(USE, SDA_FAST_ISA=isa)
    assert (
        f"SDA_FAST_ISA is {isa}, which is none of avx512bf16, avx512, avx2 and baseline" in warning
    )


@needs_native
def test_instruction_set_in_use() -> None:
    from sda_fast import _C

    assert _C.isa() in ("avx512bf16", "avx512", "avx2", "baseline")
    assert run("from sda_fast import _native; print(_native.info()['isa'])",
               SDA_FAST_ISA="baseline") == ["baseline"]  # fmt: skip


@needs_native
def test_build_info() -> None:
    known = _native.info()
    assert known["available"]
    assert known["reason"] is None
    assert sda_fast.__version__ in (known["version"], "unknown")
    assert known["cuda"] == bool(known["cuda_version"]) == bool(known["cuda_architectures"])
    if torch.version.cuda is None:
        assert not known["cuda_available"]


def test_describe() -> None:
    text = info.describe()
    for name in ("sda_fast", "torch", "native library", "threads"):
        assert name in text
    if _native.available:
        assert _native.info()["isa"] in text
        assert _native.info()["compiler"] in text
