"""The method once more, written as literally as can be, and stand-ins for other people's objects.

Nothing here uses the package, but for the random numbers of `sda_fast.reference`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from sda_fast.reference import philox_normal_

ALPHAS = ("lin", "cos", "exp")
KINDS = ("VPSDE", "SubVPSDE", "SubSubVPSDE")

Estimator = Callable[[Tensor, float], Tensor]


# Schedules


def alpha(name: str, t: float, eta: float = 1e-3) -> float:
    if name == "lin":
        return 1 - (1 - eta) * t
    if name == "cos":
        return math.cos(math.acos(math.sqrt(eta)) * t) ** 2
    return math.exp(math.log(eta) * t**2)


def levels(kind: str, name: str, t: float, eta: float = 1e-3) -> tuple[float, float]:
    """Returns mu(t) and sigma(t)."""
    a = alpha(name, t, eta)
    if kind == "VPSDE":
        return a, math.sqrt(1 - a**2 + eta**2)
    if kind == "SubVPSDE":
        return a, 1 - a**2 + eta
    return a, 1 - a + eta


# Networks, from their weights


def layer_norm(x: Tensor, dim: int) -> Tensor:
    mean = x.mean(dim, keepdim=True)
    variance = (x - mean).square().sum(dim, keepdim=True) / (x.shape[dim] - 1)
    return (x - mean) / (variance + 1e-5).sqrt()


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def time_embedding(weights: dict[str, Tensor], t: Tensor, name: str = "embedding.") -> Tensor:
    phase = torch.stack([math.pi * n * t for n in range(1, 17)], dim=-1)
    x = linear(weights, f"{name}0", torch.cat((phase.cos(), phase.sin()), dim=-1))
    return linear(weights, f"{name}2", x / (1 + (-x).exp()))


def res_mlp(
    weights: dict[str, Tensor],
    x: Tensor,
    widths: Sequence[int],
    activation: Callable[[Tensor], Tensor],
    name: str = "",
) -> Tensor:
    """Applies a residual MLP of widths (in, *hidden, out)."""
    i = 0
    for before, after in pairwise(widths):
        if before != after:
            x = linear(weights, f"{name}{i}", x)
            i += 1
        y = activation(linear(weights, f"{name}{i}.1", layer_norm(x, -1)))
        x = x + linear(weights, f"{name}{i}.3", y)
        i += 1
    return x


def unet(
    weights: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    blocks: Sequence[int],
    activation: Callable[[Tensor], Tensor],
    *,
    stride: int = 2,
    circular: bool = True,
    name: str = "",
) -> Tensor:
    """Applies a U-Net in as many dimensions as x (B, C, *) has beyond the channels."""
    spatial = x.ndim - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]

    def convolution(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        for dim, size in enumerate(weight.shape[2:], start=2):
            if circular:
                before = x.narrow(dim, x.shape[dim] - size // 2, size // 2)
                after = x.narrow(dim, 0, size // 2)
            else:
                before = after = torch.zeros_like(x.narrow(dim, 0, size // 2))
            x = torch.cat((before, x, after), dim)
        return convolve(x, weight, bias, stride=stride)

    def block(name: str, x: Tensor) -> Tensor:
        shift = linear(weights, f"{name}.project.0", y)
        z = layer_norm(x + shift.reshape(*shift.shape, *(1,) * spatial), 1)
        z = activation(convolution(f"{name}.residue.1", z))
        return x + convolution(f"{name}.residue.3", z)

    depth = len(blocks)
    skips = []

    for d in range(depth):
        x = (
            convolution(f"{name}heads.{d}.0", x, stride)
            if d > 0
            else convolution(f"{name}heads.0", x)
        )
        for b in range(blocks[d]):
            x = block(f"{name}descent.{d}.{b}", x)
        skips.append(x)

    for d in range(depth):
        for b in range(blocks[depth - 1 - d]):
            x = block(f"{name}ascent.{d}.{b}", x)
        if d < depth - 1:
            x = layer_norm(x, 1)
            for dim in range(2, x.ndim):
                x = x.repeat_interleave(stride, dim)
            x = convolution(f"{name}tails.{d}.2", x) + skips[depth - 2 - d]
        else:
            x = convolution(f"{name}tails.{d}", x)

    return x


# Composition


def centre(kernel: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Composes trajectories (B, L, C, *) from windows (B, N, (2k + 1) C, *), as published."""
    window = 2 * order + 1
    windows = x.unfold(1, window, 1).movedim(-1, 2).flatten(2, 3)
    eps = kernel(windows).unflatten(2, (window, -1))
    return torch.cat((eps[:, 0, :order], eps[:, :, order], eps[:, -1, order + 1 :]), dim=1)


def junction(kernel: Callable[[Tensor], Tensor], x: Tensor, window: int, stride: int) -> Tensor:
    """Composes trajectories: scores of windows minus those of the overlaps. The kernel takes
    states (B, n, C, *) for any n."""
    length = x.shape[1]
    eps = torch.zeros_like(x)
    starts = []
    start = 0
    while True:
        start = min(start, length - window)
        starts.append(start)
        if start == length - window:
            break
        start += stride
    for start in starts:
        eps[:, start : start + window] += kernel(x[:, start : start + window])
    for first, second in pairwise(starts):
        eps[:, second : first + window] -= kernel(x[:, second : first + window])
    return eps


# Guidance


def gaussian_guidance(
    eps: Estimator,
    y: Tensor,
    A: Callable[[Tensor], Tensor],
    std: float | Tensor,
    gamma: float | Tensor,
    mu: Callable[[float], float],
    sigma: Callable[[float], float],
    detach: bool = False,
) -> Estimator:
    def guided(x: Tensor, t: float) -> Tensor:
        m, s = mu(t), sigma(t)
        fixed = eps(x, t)

        def observe(x: Tensor) -> Tensor:
            return A((x - s * (fixed if detach else eps(x, t))) / m)

        prediction, pullback = torch.func.vjp(observe, x)
        (gradient,) = pullback((y - prediction) / (std**2 + gamma * (s / m) ** 2))

        return fixed - s * gradient

    return guided


def dps_guidance(
    eps: Estimator,
    y: Tensor,
    A: Callable[[Tensor], Tensor],
    zeta: float,
    mu: Callable[[float], float],
    sigma: Callable[[float], float],
) -> Estimator:
    def guided(x: Tensor, t: float) -> Tensor:
        m, s = mu(t), sigma(t)
        prediction, pullback = torch.func.vjp(lambda x: A((x - s * eps(x, t)) / m), x)
        (gradient,) = pullback(2 * (y - prediction))  # of -|y - A(x)|^2

        return eps(x, t) - s * zeta * gradient / (y - prediction).norm()

    return guided


# The sampler


def sample_loop(
    eps: Estimator,
    mu: Callable[[float], float],
    sigma: Callable[[float], float],
    x: Tensor,
    steps: int | Sequence[float],
    corrections: int = 0,
    tau: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Samples from the initial noise x (B, *event), in so many steps or through such times."""
    times = [1 - n / steps for n in range(steps + 1)] if isinstance(steps, int) else steps
    for n, (before, after) in enumerate(pairwise(times), 1):
        r = mu(after) / mu(before)
        x = r * x + (sigma(after) - r * sigma(before)) * eps(x, before)

        for i in range(corrections):
            z = torch.empty_like(x)
            philox_normal_(z, seed=seed, step=n, correction=i)
            e = eps(x, after)
            delta = tau / e.square().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
            x = x - (delta * e + (2 * delta).sqrt() * z) * sigma(after)

    return x


# Stand-ins for the reference package's objects: no more than what the contract says they have


class Process:
    """A noise process with `.shape`, `.eps`, `.mu`, `.sigma` and `.device`, a tensor as there."""

    def __init__(
        self,
        eps: object,
        shape: Sequence[int],
        kind: str = "VPSDE",
        name: str = "cos",
        device: object = None,
    ):
        self.eps, self.shape = eps, Size(shape)
        self.kind, self.name = kind, name
        self.device = torch.empty(()) if device is None else device

    def _alpha(self, t: Tensor) -> Tensor:
        if self.name == "lin":
            return 1 - (1 - 1e-3) * t
        if self.name == "cos":
            return torch.cos(math.acos(math.sqrt(1e-3)) * t) ** 2
        return torch.exp(math.log(1e-3) * t**2)

    def mu(self, t: Tensor) -> Tensor:
        return self._alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        a = self._alpha(t)
        if self.kind == "VPSDE":
            return (1 - a**2 + 1e-6).sqrt()
        if self.kind == "SubVPSDE":
            return 1 - a**2 + 1e-3
        return 1 - a + 1e-3


class WindowedNetwork:
    """A network for trajectories with `.order` and `.kernel`."""

    def __init__(self, kernel: Callable[..., Tensor], order: int):
        self.kernel, self.order = kernel, order

    def __call__(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return centre(lambda windows: self.kernel(windows, t, c), x, self.order)


class Diffusion(torch.nn.Module):
    """A guidance module whose `forward` takes only the state and the time."""

    def __init__(self, y: Tensor, A: Callable[[Tensor], Tensor], sde: Process, zeta: float = 1.0):
        super().__init__()
        self.register_buffer("y", y)
        self.A, self.sde, self.zeta = A, sde, zeta

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            eps = self.sde.eps(x, t)
            error = (self.y - self.A((x - sigma * eps) / mu)).square().sum()
        (gradient,) = torch.autograd.grad(error, x)
        return eps - sigma * (-gradient * self.zeta / error.sqrt())


class Assimilation(torch.nn.Module):
    """A guidance module whose `forward` takes a context as well."""

    def __init__(self, y: Tensor, A: Callable[[Tensor], Tensor], std: float, sde: Process):
        super().__init__()
        self.register_buffer("y", y)
        self.A, self.std, self.sde = A, std, sde

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            eps = self.sde.eps(x, t, c)
            error = self.y - self.A((x - sigma * eps) / mu)
            log_p = -(error**2 / (self.std**2 + 1e-2 * (sigma / mu) ** 2)).sum() / 2
        (gradient,) = torch.autograd.grad(log_p, x)
        return eps - sigma * gradient


# Where the estimate is affine in the state, the predictor is too


def sampled_law(
    E: Callable[[float], tuple[Tensor, Tensor]],
    mu: Callable[[float], float],
    sigma: Callable[[float], float],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Returns the matrix M and the vector a by which predictor steps make M x(1) + a of the
    initial noise, for an estimate E x + e: samples have mean a and covariance M M^T."""
    M, a = None, None
    for n in range(1, steps + 1):
        before, after = 1 - (n - 1) / steps, 1 - n / steps
        r = mu(after) / mu(before)
        matrix, vector = E(before)
        step = r * torch.eye(len(matrix), dtype=matrix.dtype)
        step = step + (sigma(after) - r * sigma(before)) * matrix
        shift = (sigma(after) - r * sigma(before)) * vector
        M, a = (step, shift) if M is None else (step @ M, step @ a + shift)
    return M, a
