"""Every operator with arguments of three sizes and the eager PyTorch that it is measured against:
the formula as one would write it, in place where the operator is, with torch's own random numbers.
"""

__all__ = ["CASES", "DTYPES", "SIZES", "Case"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad, silu

from sda_fast import Centre, Junction, ops, reference
from sda_fast.observation import Vorticity

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = {
    "small": ((1, 65, 3), (1, 4, 2, 8, 8)),
    "medium": ((16, 65, 64), (3, 4, 2, 16, 16)),
    "large": ((128, 1024, 64), (32, 8, 2, 128, 128)),
}  # of states that are trajectories, and of those that are fields
STREAM = {"seed": 1, "step": 2}
MU, SIGMA, TAU = 0.8, 0.01, 0.25
R, B = 0.99, -0.02


@dataclass(frozen=True)
class Case:
    """An operator, how it is called and what it is measured against.

    Arguments:
        operator: Its name, in the schema and in :mod:`sda_fast.ops`.
        make: Makes its arguments, of a shape and a dtype.
        eager: The same in eager PyTorch, called with the same arguments.
        formula: What `eager` computes, for the reader.
        keywords: Its keyword arguments; `eager` has none.
        rule: Which of several cases of the operator it is.
        field: Whether its states are fields.
        changed: How many of its first arguments it changes; it then returns nothing.
        read: How many elements it must read, where that is not all of its arguments.
    """

    operator: str
    make: Callable[..., tuple[Any, ...]]
    eager: Callable[..., Any]
    formula: str
    keywords: dict[str, int] = field(default_factory=dict)
    rule: str = ""
    field: bool = False
    changed: int = 0
    read: Callable[..., int] | None = None

    @property
    def draws(self) -> bool:
        """Whether it draws noise, as `eager` does, whose noise is another."""
        return "seed" in self.keywords

    @property
    def title(self) -> str:
        return f"{self.operator} ({self.rule})" if self.rule else self.operator

    def arguments(self, size: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
        """Makes the arguments of a size."""
        shape = SIZES[size][self.field]
        return tuple(on(device, a) for a in self.make(shape, dtype))

    def native(self, *args: Any) -> Any:
        return getattr(ops, self.operator)(*args, **self.keywords)

    def results(self, run: Callable[..., Any], *args: Any) -> list[Tensor]:
        """Returns what a call returns or changes; `args` are left as they are."""
        args = tuple(a.clone() if j < self.changed else a for j, a in enumerate(args))
        result = run(*args)
        if self.changed:
            return list(args[: self.changed])
        return list(result) if isinstance(result, tuple) else [result]

    def exact(self, *args: Any) -> list[Tensor]:
        """Returns the results of the reference in float64, of the same numbers."""
        run = partial(getattr(reference, self.operator), **self.keywords)
        return self.results(run, *(widened(a) for a in args))

    def moved(self, *args: Any) -> int:
        """Returns how many bytes must be read or written, each once."""
        floating = [a for a in tensors(args) if a.is_floating_point()]
        written = args[: self.changed] or self.results(self.native, *args)
        size = sum(a.numel() * a.element_size() for a in written)
        if self.read:
            return size + self.read(*args) * floating[0].element_size()
        return size + sum(a.numel() * a.element_size() for a in floating)


def tensors(args: Any) -> Iterator[Tensor]:
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, list):
            yield from tensors(a)


def on(device: str, a: Any) -> Any:
    if isinstance(a, list):
        return [on(device, e) for e in a]
    return a.to(device) if isinstance(a, Tensor) else a


def widened(a: Any) -> Any:
    if isinstance(a, list):
        return [widened(e) for e in a]
    return a.double() if isinstance(a, Tensor) and a.is_floating_point() else a


def states(count: int, *rest: Any, estimates: int = 0) -> Callable[..., tuple[Any, ...]]:
    """Makes so many states, the rest, and a list of so many estimates behind the first state."""

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        first = [torch.randn(shape).to(dtype) for _ in range(count)]
        if estimates:
            first.append([torch.randn(shape).to(dtype) for _ in range(estimates)])
        return *first, *rest

    return make


# Windows

ORDER = 2


def gathered(rule: Any, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    plan = rule.plan(shape[1])
    return torch.randn(shape).to(dtype), plan.start, plan.mask


def composed(rule: Any, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    batch, length, features = shape
    plan = rule.plan(length)
    windows = torch.randn(batch, len(plan), plan.window * features).to(dtype)
    return windows, plan.start, plan.weight, length


def composed_denoised(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    *windows, _ = composed(Centre(ORDER), shape, dtype)
    return *windows, torch.randn(shape).to(dtype), MU, SIGMA


def unfold(x: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    return x.unfold(1, mask.shape[1], 1).movedim(-1, 2).flatten(2, 3).contiguous()


def index(x: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    places = start[:, None] + torch.arange(mask.shape[1], device=x.device)
    return (x[:, places.clamp(max=x.shape[1] - 1)] * mask[..., None]).flatten(2, 3)


def slices(windows: Tensor, start: Tensor, weight: Tensor, length: int) -> Tensor:
    rows, k = windows.unflatten(2, (2 * ORDER + 1, -1)), ORDER
    return torch.cat((rows[:, 0, :k], rows[:, :, k], rows[:, -1, k + 1 :]), dim=1)


def slices_denoise(
    windows: Tensor, start: Tensor, weight: Tensor, x: Tensor, mu: float, sigma: float
) -> tuple[Tensor, Tensor]:
    eps = slices(windows, start, weight, x.shape[1])
    return eps, (x - sigma * eps) / mu


def weighed(windows: Tensor, start: Tensor, weight: Tensor, *rest: Any) -> int:
    """How many elements have a weight."""
    features = windows.shape[2] // weight.shape[1]
    return windows.shape[0] * features * int(weight.count_nonzero())


# Steps


def step_(x: Tensor, eps: list[Tensor], r: float, b: list[float]) -> None:
    x.mul_(r)
    for e, weight in zip(eps, b, strict=True):
        x.add_(e, alpha=weight)


def guide_(eps: Tensor, direct: Tensor, through: Tensor, mu: float, sigma: float) -> None:
    eps.add_(direct, alpha=-sigma / mu).add_(through, alpha=sigma**2 / mu)


def guide_predictor_(x, eps, direct, through, mu, sigma, r, b, past, past_b) -> None:
    guide_(eps, direct, through, mu, sigma)
    step_(x, [eps, *past], r, [b, *past_b])


def guide_langevin_(x, eps, direct, through, mu, sigma, tau) -> None:
    guide_(eps, direct, through, mu, sigma)
    x.sub_(drift(eps, sigma, tau))


def drift(eps: Tensor, sigma: float, tau: float) -> Tensor:
    delta = tau / eps.square().mean(dim=(1, 2), keepdim=True)
    return sigma * (delta * eps + torch.sqrt(2 * delta) * torch.randn_like(eps))


def guided_step(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    *four, past = (torch.randn(shape).to(dtype) for _ in range(5))
    return *four, MU, SIGMA, R, B, [past], [0.01]


# Observations

STEP, BLOCK = (2, 1, 1, 4), (4, 4)


def sizes(shape: tuple[int, ...]) -> list[int]:
    return [-(-n // step) for n, step in zip(shape[1:], STEP, strict=True)]


def sampled(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.randn(shape).to(dtype), [0] * 4, list(STEP), sizes(shape)


def samples(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    y = torch.randn(shape[0], *sizes(shape)).to(dtype)
    return y, [0] * 4, list(STEP), list(shape[1:])


def every(x: Tensor, *_: Any) -> Tensor:
    return x[:, ::2, :, :, ::4].contiguous()


def every_adjoint(y: Tensor, start: list[int], step: list[int], shape: list[int]) -> Tensor:
    x = y.new_zeros(y.shape[0], *shape)
    x[:, ::2, :, :, ::4] = y
    return x


def means(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    *leading, n, m = shape
    return torch.randn(*leading, n // BLOCK[0], m // BLOCK[1]).to(dtype), list(BLOCK)


def pooled(x: Tensor, block: list[int]) -> Tensor:
    return avg_pool2d(x.flatten(0, -3), tuple(block)).unflatten(0, x.shape[:-2])


def spread(y: Tensor, block: list[int]) -> Tensor:
    p, q = block
    *leading, n, m = y.shape
    mean = (y / (p * q))[..., :, None, :, None]
    return mean.expand(*leading, n, p, m, q).reshape(*leading, n * p, m * q)


def curl(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    A = Vorticity(shape[1:], 0.1)
    x = torch.randn(shape).to(dtype).flatten(0, 1)  # the matrix is that of one time
    return x, A.row, A.column, A.value.to(dtype)


def rolled(x: Tensor, *_: Any) -> Tensor:
    u, v = x.unbind(dim=1)
    return (v.roll(-1, 1) - v.roll(1, 1) - u.roll(-1, 2) + u.roll(1, 2)) / 0.2


def observed(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    y, prediction, std = (torch.randn(n).to(dtype) for n in (shape[1:], shape, shape[1:]))
    return y, prediction, std.abs() + 0.1, torch.tensor(1e-2).to(dtype), 0.5


# Fields between convolutions, channels last as those leave them

PAD, SILU, EPS = (1, 1), 3, 1e-5


def fields(shape: tuple[int, ...], dtype: torch.dtype, count: int = 1) -> list[Tensor]:
    """Makes fields (B, C, H, W), of the channels of all states."""
    batch, length, features, *cells = shape
    made = (torch.randn(batch, length * features, *cells).to(dtype) for _ in range(count))
    return [x.contiguous(memory_format=torch.channels_last) for x in made]


def wide(x: Tensor) -> Tensor:
    """Widens half types: a shift and a scale are float32 beside them."""
    return x if x.dtype == torch.float64 else x.float()


def shifted(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    (x,) = fields(shape, dtype)
    return x, wide(torch.randn(1, x.shape[1]).to(dtype)), list(PAD), [1, 1], EPS


def standardised(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    cotangent, normed, residual = fields(shape, dtype, 3)
    scale = wide(torch.rand(shape[0], *shape[-2:]).to(dtype) + 0.5)
    return cotangent, normed, scale, residual, list(PAD), [1, 1]


def circular(x: Tensor) -> Tensor:
    return pad(x, (*PAD[1:], *PAD[1:], *PAD[:1], *PAD[:1]), mode="circular")


def norm_pad(x: Tensor, shift: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    a = x + shift[..., None, None].to(x.dtype)
    variance, mean = torch.var_mean(a, dim=1, keepdim=True)
    scale = (variance + EPS).rsqrt()
    return circular((a - mean) * scale), scale.squeeze(1)


def norm_pad_vjp(g: Tensor, n: Tensor, scale: Tensor, residual: Tensor, *_: Any) -> Tensor:
    along = (g * n).sum(1, keepdim=True) / (n.shape[1] - 1)
    scale = scale.to(g.dtype).unsqueeze(1)
    return circular(scale * (g - g.mean(1, keepdim=True) - along * n) + residual)


def activated(count: int) -> Callable[..., tuple[Any, ...]]:
    return lambda shape, dtype: (*fields(shape, dtype, count), SILU, list(PAD))


def activation_pad_vjp(g: Tensor, x: Tensor, *_: Any) -> Tensor:
    s = torch.sigmoid(x)
    return circular(g * s * (1 + x * (1 - s)))


MATRIX = lambda x, *_: x.numel()  # noqa: E731  (the matrix is the same for every sample)
NOTHING = lambda *_: 0  # noqa: E731

CASES = (
    Case("gather", partial(gathered, Centre(ORDER)), unfold, "unfold, made contiguous",
         rule="centre"),
    Case("gather", partial(gathered, Junction(9, 4)), index, "indices times a mask",
         rule="junction"),
    Case("compose", partial(composed, Centre(ORDER)), slices, "cat of three slices",
         rule="centre", read=weighed),
    Case("compose", partial(composed, Junction(9, 4)), reference.compose, "index_add",
         rule="junction", read=weighed),
    Case("compose_denoise", composed_denoised, slices_denoise, "cat, (x - σ * ε) / μ",
         read=lambda w, s, weight, x, *_: weighed(w, s, weight) + x.numel()),
    Case("denoise", states(2, MU, SIGMA), lambda x, eps, mu, sigma: (x - sigma * eps) / mu,
         "(x - σ * ε) / μ"),
    Case("predictor", states(2, R, B), lambda x, eps, r, b: r * x + b * eps, "r * x + b * ε"),
    Case("predictor_", states(2, R, B), lambda x, eps, r, b: step_(x, [eps], r, [b]),
         "x.mul_(r).add_(ε, alpha=b)", changed=1),
    Case("multistep", states(1, R, [-0.03, 0.02, -0.01], estimates=3),
         lambda x, eps, r, b: r * x + b[0] * eps[0] + b[1] * eps[1] + b[2] * eps[2],
         "r * x + b₁ * ε₁ + b₂ * ε₂ + b₃ * ε₃"),
    Case("multistep_", states(1, R, [-0.03, 0.02, -0.01], estimates=3), step_,
         "x.mul_(r).add_(ε₁, alpha=b₁)...", changed=1),
    Case("guide", states(3, MU, SIGMA),
         lambda eps, g, Jg, mu, sigma: eps - sigma / mu * (g - sigma * Jg),
         "ε - σ / μ * (g - σ * Jg)"),
    Case("guide_", states(3, MU, SIGMA), guide_, "ε.add_(g, alpha=...).add_(Jg, alpha=...)",
         changed=1),
    Case("guide_predictor_", guided_step, guide_predictor_, "guide_, then multistep_", changed=2),
    Case("guide_langevin_", states(4, MU, SIGMA, TAU), guide_langevin_,
         "guide_, then x.sub_(σ * (δ * ε + √2δ * randn))", STREAM, changed=2),
    Case("langevin", states(2, SIGMA, TAU),
         lambda x, eps, sigma, tau: x - drift(eps, sigma, tau),
         "x - σ * (δ * ε + √2δ * randn)", STREAM),
    Case("langevin_", states(2, SIGMA, TAU),
         lambda x, eps, sigma, tau: x.sub_(drift(eps, sigma, tau)),
         "x.sub_(σ * (δ * ε + √2δ * randn))", STREAM, changed=1),
    Case("philox_normal_", states(1), lambda x: x.normal_(), "x.normal_()", STREAM, changed=1,
         read=NOTHING),
    Case("subsample", sampled, every, "x[:, ::2, :, :, ::4].contiguous()", field=True,
         read=lambda x, start, step, size: x.shape[0] * torch.Size(size).numel()),
    Case("subsample_adjoint", samples, every_adjoint, "zeros, then a slice assigned", field=True),
    Case("sparse_map", curl, rolled, "vorticity by roll", field=True, read=MATRIX),
    Case("block_mean", states(1, list(BLOCK)), pooled, "avg_pool2d", field=True),
    Case("block_mean_adjoint", means, spread, "y / 16, expanded and reshaped", field=True),
    Case("residual", observed,
         lambda y, p, std, gamma, ratio: (y - p) / (std**2 + ratio**2 * gamma),
         "(y - ŷ) / (std² + (σ / μ)² * γ)", field=True),
    Case("norm_pad", shifted, norm_pad, "var_mean, pad(mode='circular')", field=True),
    Case("norm_pad_vjp", standardised, norm_pad_vjp,
         "s * (g - E[g] - Σgn / (C - 1) * n) + r, pad", field=True),
    Case("activation_pad", activated(1), lambda x, *_: circular(silu(x)),
         "silu, pad(mode='circular')", field=True),
    Case("activation_pad_vjp", activated(2), activation_pad_vjp, "g * silu'(x), pad", field=True),
)  # fmt: skip
