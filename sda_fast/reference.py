r"""The operators in pure PyTorch: the oracle that the native kernels are tested against.

Each function has the name, the arguments and the meaning of the native operator in
:mod:`sda_fast.ops`. They run on any device and in any floating-point type, are differentiable, and
favour clarity: in float64 they say what the numbers should be. Of bfloat16 and float16 they compute
in float32 and round the result once.

Windows and compositions are described by two integer tensors, the rows of a
:class:`sda_fast.composition.Plan`:

* ``start`` (N,), int64, ascending: the first state of each window;
* ``weight`` (N, w), int8: with which weight (0, +1 or -1) each of its w rows takes part.
"""

__all__ = [
    "activation_pad",
    "activation_pad_vjp",
    "block_mean",
    "block_mean_adjoint",
    "compose",
    "compose_denoise",
    "denoise",
    "gather",
    "guide",
    "guide_",
    "guide_langevin_",
    "guide_predictor_",
    "langevin",
    "langevin_",
    "multistep",
    "multistep_",
    "norm_pad",
    "norm_pad_vjp",
    "philox",
    "philox_normal_",
    "predictor",
    "predictor_",
    "residual",
    "sparse_map",
    "subsample",
    "subsample_adjoint",
    "widen",
    "winograd",
    "winograd_",
    "winograd_kernel",
]

import math
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

MASK32 = 0xFFFFFFFF


def widen(x: Tensor) -> Tensor:
    """Returns a tensor of a half type in float32, in which its arithmetic is done."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _rows(start: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lists the rows of non-zero weight: their window, their place in it and their state."""
    n, j = weight.nonzero(as_tuple=True)
    return n, j, start[n] + j


def gather(x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    r"""Gathers the windows of a trajectory.

    .. math:: w_{n, j} = \text{weight}_{n, j} \, x_{\text{start}_n + j}

    Arguments:
        x: The trajectories, with shape :math:`(B, L, C, *)`.
        start: The first state of each window, with shape :math:`(N)`, ascending.
        weight: The weights of the windows' rows, with shape :math:`(N, w)`.

    Returns:
        The windows, with shape :math:`(B, N, w C, *)`.
    """
    n, j, i = _rows(start, weight)
    scale = weight[n, j].to(x.dtype).reshape(-1, *(1,) * (x.ndim - 2))

    windows = x.new_zeros(x.shape[0], *weight.shape, *x.shape[2:])
    windows = windows.index_put(
        (torch.arange(x.shape[0], device=x.device)[:, None], n, j), scale * x[:, i]
    )

    return windows.flatten(2, 3)


def compose(windows: Tensor, start: Tensor, weight: Tensor, length: int) -> Tensor:
    r"""Composes what was estimated for windows into the trajectory's, the adjoint of `gather`.

    .. math:: x_i = \sum_{\text{start}_n + j = i} \text{weight}_{n, j} \, w_{n, j}

    Arguments:
        windows: The windows, with shape :math:`(B, N, w C, *)`.
        start: The first state of each window, with shape :math:`(N)`, ascending.
        weight: The weights of the windows' rows, with shape :math:`(N, w)`.
        length: The length :math:`L` of the trajectory.

    Returns:
        The trajectories, with shape :math:`(B, L, C, *)`.
    """
    n, j, i = _rows(start, weight)
    dtype = windows.dtype
    windows = widen(windows).unflatten(2, (weight.shape[1], -1))
    scale = weight[n, j].to(windows.dtype).reshape(-1, *(1,) * (windows.ndim - 3))

    x = windows.new_zeros(windows.shape[0], length, *windows.shape[3:])

    return x.index_add(1, i, scale * windows[:, n, j]).to(dtype)


def predictor(x: Tensor, eps: Tensor, r: float, b: float) -> Tensor:
    r"""Takes a step of the exponential integrator, :math:`r x + b \epsilon`.

    Arguments:
        x: The state :math:`x(t)`.
        eps: The noise estimate :math:`\epsilon(x(t), t)`, of the same shape.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The difference :math:`\sigma(t') - r \sigma(t)`.
    """
    return (r * widen(x) + b * widen(eps)).to(x.dtype)


def predictor_(x: Tensor, eps: Tensor, r: float, b: float) -> None:
    """Takes the step of :func:`predictor` in place."""
    x.copy_(predictor(x, eps, r, b))


def multistep(x: Tensor, eps: list[Tensor], r: float, b: list[float]) -> Tensor:
    r"""Takes a step of an exponential Adams-Bashforth predictor.

    .. math:: r x + \sum_j b_j \epsilon_j

    Arguments:
        x: The state :math:`x(t)`.
        eps: The last noise estimates, each of the same shape.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The estimates' weights.
    """
    out = r * widen(x)
    for e, weight in zip(eps, b, strict=True):
        out = out + weight * widen(e)

    return out.to(x.dtype)


def multistep_(x: Tensor, eps: list[Tensor], r: float, b: list[float]) -> None:
    """Takes the step of :func:`multistep` in place."""
    x.copy_(multistep(x, eps, r, b))


def denoise(x: Tensor, eps: Tensor, mu: float | Tensor, sigma: float | Tensor) -> Tensor:
    r"""Predicts the state without its noise, :math:`(x - \sigma \epsilon) / \mu`.

    Arguments:
        x: The state :math:`x(t)`.
        eps: The noise estimate :math:`\epsilon(x(t), t)`, of the same shape.
        mu: The signal level :math:`\mu(t)`.
        sigma: The noise level :math:`\sigma(t)`.
    """
    return ((widen(x) - sigma * widen(eps)) / mu).to(x.dtype)


def compose_denoise(
    windows: Tensor, start: Tensor, weight: Tensor, x: Tensor, mu: float, sigma: float
) -> tuple[Tensor, Tensor]:
    r"""Composes the windows' noise estimates and denoises with the result.

    Arguments:
        windows: The noise estimates of the windows, as for :func:`compose`.
        start: The first state of each window, with shape :math:`(N)`, ascending.
        weight: The weights of the windows' rows, with shape :math:`(N, w)`.
        x: The trajectories :math:`x(t)`, with shape :math:`(B, L, C, *)`.
        mu: The signal level :math:`\mu(t)`.
        sigma: The noise level :math:`\sigma(t)`.

    Returns:
        The noise estimate and the denoised trajectories, both with the shape of `x`.
    """
    eps = compose(windows, start, weight, x.shape[1])

    return eps, denoise(x, eps, mu, sigma)


def guide(eps: Tensor, direct: Tensor, through: Tensor | None, mu: float, sigma: float) -> Tensor:
    r"""Makes a noise estimate the posterior's.

    .. math:: \epsilon - \frac{\sigma}{\mu} (g - \sigma J^\top g)

    Arguments:
        eps: The prior's noise estimate.
        direct: The gradient :math:`g` of the log-likelihood with respect to the denoised state.
        through: The product :math:`J^\top g` with the Jacobian of the estimate, or None to leave it
            out.
        mu: The signal level :math:`\mu(t)`.
        sigma: The noise level :math:`\sigma(t)`.
    """
    gradient = widen(direct)
    if through is not None:
        gradient = gradient - sigma * widen(through)

    return (widen(eps) - sigma / mu * gradient).to(eps.dtype)


def guide_(eps: Tensor, direct: Tensor, through: Tensor | None, mu: float, sigma: float) -> None:
    """Makes the posterior's estimate of :func:`guide` in place."""
    eps.copy_(guide(eps, direct, through, mu, sigma))


def guide_predictor_(
    x: Tensor,
    eps: Tensor,
    direct: Tensor,
    through: Tensor | None,
    mu: float,
    sigma: float,
    r: float,
    b: float,
    past: list[Tensor],
    past_b: list[float],
) -> None:
    """Makes `eps` the posterior's, :func:`guide`, and steps `x` with it, :func:`multistep`."""
    guided = guide(eps, direct, through, mu, sigma)
    stepped = multistep(x, [guided, *past], r, [b, *past_b])
    eps.copy_(guided)
    x.copy_(stepped)


def langevin(
    x: Tensor,
    eps: Tensor,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
) -> Tensor:
    r"""Takes a Langevin correction.

    .. math::
        \delta & = \tau / \operatorname{mean}(\epsilon^2) \\
        x' & = x - \sigma \, (\delta \epsilon + \sqrt{2 \delta} \, z)

    with one :math:`\delta` per sample and :math:`z` from :func:`philox_normal_`. A sample whose
    :math:`\epsilon` is zero everywhere is left as it is.

    Arguments:
        x: The states, with shape :math:`(B, *)`.
        eps: The noise estimates :math:`\epsilon(x, t)`, of the same shape.
        sigma: The noise level :math:`\sigma(t)`.
        tau: The amplitude :math:`\tau` of the correction.
        seed: The key of the random numbers.
        step: The number of the predictor step before this correction.
        correction: The number of this correction among those of its step.
        first_sample: The number of the first sample of the batch.
    """
    dtype, x, eps = x.dtype, widen(x), widen(eps)
    z = torch.empty_like(x)
    philox_normal_(z, seed=seed, step=step, correction=correction, first_sample=first_sample)

    each = eps.reshape(len(eps), math.prod(eps.shape[1:]))
    mean = each.square().mean(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
    delta = torch.where(mean == 0, 0.0, tau / torch.where(mean == 0, 1.0, mean))

    return (x - sigma * (delta * eps + torch.sqrt(2 * delta) * z)).to(dtype)


def langevin_(
    x: Tensor,
    eps: Tensor,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
) -> None:
    """Takes the correction of :func:`langevin` in place."""
    x.copy_(
        langevin(
            x,
            eps,
            sigma,
            tau,
            seed=seed,
            step=step,
            correction=correction,
            first_sample=first_sample,
        )
    )


def guide_langevin_(
    x: Tensor,
    eps: Tensor,
    direct: Tensor,
    through: Tensor | None,
    mu: float,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
) -> None:
    """Makes `eps` the posterior's, :func:`guide`, and corrects `x` with it, :func:`langevin`."""
    stream = {"seed": seed, "step": step, "correction": correction, "first_sample": first_sample}
    guided = guide(eps, direct, through, mu, sigma)
    corrected = langevin(x, guided, sigma, tau, **stream)
    eps.copy_(guided)
    x.copy_(corrected)


def _multiply32(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the high and the low word of a 32 by 32 bit product, held in int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle << 16) | (low & 0xFFFF)) & MASK32


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Applies Philox4x32-10, the counter-based generator.

    References:
        | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
        | https://doi.org/10.1145/2063384.2063405

    Arguments:
        counter: Four tensors of 32-bit words, held in int64.
        key: Two 32-bit words.

    Returns:
        Four tensors of 32-bit words, held in int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key

    for _ in range(10):
        high0, low0 = _multiply32(0xD2511F53, c0)
        high1, low1 = _multiply32(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32

    return c0, c1, c2, c3


def philox_normal_(
    out: Tensor, *, seed: int, step: int, correction: int = 0, first_sample: int = 0
) -> None:
    r"""Fills a tensor with standard normal numbers that are a function of their place alone.

    Element :math:`e` of sample :math:`s` at a step and correction comes from word
    :math:`e \bmod 4` of Philox at the counter :math:`(\lfloor e/4 \rfloor, s, \text{step},
    \text{correction})` under the key `seed`, by the Box-Muller transform, whatever the batch, the
    device or the type.

    Arguments:
        out: The tensor to fill, with shape :math:`(B, *)`.
        seed: The key, a 64-bit integer.
        step: The step, below :math:`2^{32}`.
        correction: The correction, below :math:`2^{16}`.
        first_sample: The number of the first sample of the batch, below :math:`2^{32}`.
    """
    if out.numel() == 0:
        return

    size = out[0].numel()
    q = torch.arange((size + 3) // 4, device=out.device)
    sample = torch.arange(first_sample, first_sample + len(out), device=out.device)[:, None]
    counter = (q & MASK32, sample, torch.full_like(q, step), correction | (q >> 32 << 16))
    counter = tuple(torch.broadcast_tensors(*counter))

    words = philox(counter, (seed & MASK32, seed >> 32 & MASK32))
    r0, r1, r2, r3 = (word.double() for word in words)

    normals = []
    for a, b in ((r0, r1), (r2, r3)):
        radius = torch.sqrt(-2 * torch.log((a + 0.5) / 2**32))
        angle = 2 * math.pi * b / 2**32
        normals += [radius * angle.cos(), radius * angle.sin()]

    out.copy_(torch.stack(normals, dim=-1).flatten(1)[:, :size].reshape(out.shape))


# Observations


def _slices(
    start: list[int], step: list[int], size: list[int], shape: list[int] | torch.Size
) -> tuple[EllipsisType | slice, ...]:
    """Slices the trailing dimensions. They are checked, as a slice beyond them would be cut."""
    for i, s, n, m in zip(start, step, size, shape, strict=True):
        if i < 0 or s < 1 or n < 0 or (n > 0 and i + s * (n - 1) >= m):
            raise RuntimeError(
                f"size {n} from start {i} in steps of {s} must lie in a dimension of {m}, "
                "but does not"
            )
    places = zip(start, step, size, strict=True)
    return ..., *(slice(i, i + s * n, s) if n > 0 else slice(0, 0) for i, s, n in places)


def subsample(x: Tensor, start: list[int], step: list[int], size: list[int]) -> Tensor:
    r"""Takes every step-th element of the trailing dimensions.

    Arguments:
        x: The states, with shape :math:`(*, n_1, \dots, n_d)`.
        start: The first place in each of the last :math:`d` dimensions.
        step: The distance between places.
        size: The number of places.

    Returns:
        The observations, with shape :math:`(*, \text{size}_1, \dots, \text{size}_d)`.
    """
    return x[_slices(start, step, size, x.shape[x.ndim - len(start) :])].clone()


def subsample_adjoint(y: Tensor, start: list[int], step: list[int], shape: list[int]) -> Tensor:
    """Puts observations back to where `subsample` took them from, zero elsewhere: its adjoint."""
    leading = y.ndim - len(start)
    size = list(y.shape[leading:])
    x = y.new_zeros(*y.shape[:leading], *shape)
    x[_slices(start, step, size, shape)] = y
    return x


def sparse_map(x: Tensor, row: Tensor, column: Tensor, value: Tensor | None = None) -> Tensor:
    r"""Maps states by a sparse matrix, in compressed rows.

    .. math:: y_{b, m} = \sum_{\text{row}_m \leq j < \text{row}_{m + 1}}
        \text{value}_j \, x_{b, \, \text{column}_j}

    Arguments:
        x: The states, with shape :math:`(B, *)`.
        row: Where the rows begin and the last one ends, with shape :math:`(M + 1)`.
        column: The places in a flattened state, with shape :math:`(J)`.
        value: The values, with shape :math:`(J)`; 1 if there are none.
    """
    of_row = torch.repeat_interleave(row.diff(), output_size=len(column))
    elements = widen(x).reshape(len(x), x.shape[1:].numel())[:, column]
    if value is not None:
        elements = value.to(elements.dtype) * elements
    y = elements.new_zeros(len(x), len(row) - 1)
    return y.index_add(1, of_row, elements).to(x.dtype)


def block_mean(x: Tensor, block: list[int]) -> Tensor:
    """Averages over blocks of the trailing dimensions (*, n), whose sizes the blocks divide."""
    leading = x.ndim - len(block)
    blocks = widen(x)
    for d, k in enumerate(block):
        blocks = blocks.unflatten(leading + 2 * d, (x.shape[leading + d] // k, k))
    return blocks.mean(dim=tuple(range(leading + 1, blocks.ndim, 2))).to(x.dtype)


def block_mean_adjoint(y: Tensor, block: list[int]) -> Tensor:
    """Spreads means over their blocks, divided by the size of a block: the adjoint."""
    leading = y.ndim - len(block)
    x = widen(y) / math.prod(block)
    for d, k in enumerate(block):
        x = x.repeat_interleave(k, dim=leading + d)
    return x.to(y.dtype)


def residual(
    y: Tensor, prediction: Tensor, std: Tensor, gamma: Tensor, ratio: float | Tensor
) -> Tensor:
    r"""Returns the residual of a Gaussian likelihood over its variance,
    :math:`(y - A(\hat x)) / (\Sigma_y + (\sigma / \mu)^2 \Gamma)`, 0 where :math:`y` is NaN.

    Arguments:
        y: The observation, broadcastable to `prediction`.
        prediction: What is predicted of it, :math:`A(\hat x)`.
        std: The standard deviation of the observation noise, broadcastable to `y`.
        gamma: The number or the diagonal :math:`\Gamma`, broadcastable to `y`.
        ratio: The ratio :math:`\sigma / \mu`.
    """
    wide = widen(prediction)
    y, std, gamma = y.to(wide.dtype), std.to(wide.dtype), gamma.to(wide.dtype)
    observed = ~y.isnan()
    error = torch.where(observed, y, 0.0) - torch.where(observed, wide, 0.0)
    variance = std**2 + gamma * ratio**2
    return torch.where(observed, error / variance, 0.0).to(prediction.dtype)


# The activations of networks, by the native operators' numbers.
ACTIVATIONS = (F.relu, F.elu, F.selu, F.silu, F.gelu)


def _circular(x: Tensor, padding: list[int]) -> Tensor:
    """Pads fields circularly, by p rows and q columns on either side."""
    p, q = padding
    return F.pad(x, (q, q, p, p), mode="circular")


def norm_pad(
    x: Tensor, shift: Tensor | None, padding: list[int], upsample: list[int], eps: float
) -> tuple[Tensor, Tensor]:
    r"""Standardises modulated fields over their channels, :math:`(a - E[a]) / \sqrt{V[a] +
    \epsilon}` with :math:`a = x + \text{shift}`, and pads them circularly.

    Arguments:
        x: The fields, with shape :math:`(B, C, H, W)`.
        shift: The shift of each channel, with shape (1 or B, C).
        padding: How many rows and columns to pad with on either side.
        upsample: How many times each row and column is repeated before.
        eps: The numerical stability term.

    Returns:
        The padded fields, and :math:`1 / \sqrt{V[a] + \epsilon}` with shape :math:`(B, H, W)`.
    """
    a = widen(x) if shift is None else widen(x) + shift[:, :, None, None]
    variance, mean = torch.var_mean(a, dim=1, unbiased=True, keepdim=True)
    scale = 1 / torch.sqrt(variance + eps)
    normed = (a - mean) * scale
    for dim, times in enumerate(upsample, start=2):
        normed = normed.repeat_interleave(times, dim)
    return _circular(normed, padding).to(x.dtype), scale.squeeze(1)


def norm_pad_vjp(
    cotangent: Tensor,
    normed: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    padding: list[int],
    upsample: list[int],
) -> Tensor:
    """Returns the vector-Jacobian product of `norm_pad` before its padding, plus a residual, all
    of it padded circularly.

    Arguments:
        cotangent: The cotangent, with shape :math:`(B, C, u H, v W)`.
        normed: The standardised fields, with shape :math:`(B, C, H, W)`.
        scale: What `norm_pad` returned beside them, with shape :math:`(B, H, W)`.
        residual: What is added, with shape :math:`(B, C, H, W)`.
        padding: How many rows and columns to pad with on either side.
        upsample: How many times each row and column was repeated.
    """
    (u, v), channels = upsample, normed.shape[1]
    g, n = widen(cotangent), widen(normed)
    g = g.unflatten(3, (-1, v)).unflatten(2, (-1, u)).sum((3, 5))
    along = (g * n).sum(1, keepdim=True) / (channels - 1)
    product = scale.unsqueeze(1) * (g - g.mean(1, keepdim=True) - along * n)
    if residual is not None:
        product = product + widen(residual)
    return _circular(product, padding).to(normed.dtype)


def activation_pad(
    x: Tensor, activation: int | None, padding: list[int], bias: Tensor | None = None
) -> Tensor:
    """Applies an activation to fields (B, C, H, W) plus a bias (C), by its number, and pads them
    circularly."""
    y = widen(x) if bias is None else widen(x) + bias[:, None, None]
    y = y if activation is None else ACTIVATIONS[activation](y)
    return _circular(y, padding).to(x.dtype)


def activation_pad_vjp(
    cotangent: Tensor,
    x: Tensor,
    activation: int | None,
    padding: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    """Returns the vector-Jacobian product of `activation_pad` before its padding, itself padded
    circularly."""
    g = widen(cotangent)
    if activation is not None:
        y = widen(x) if bias is None else widen(x) + bias[:, None, None]
        vjp = torch.func.vjp(ACTIVATIONS[activation], y)[1]
        (g,) = vjp(g)
    return _circular(g, padding).to(x.dtype)


def winograd_maps(a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the maps of the minimal filtering F(4, 3) of Winograd by the points 0, a, -a, b, -b
    and infinity, in float64: A^T (4, 6), G (6, 3) and B^T (6, 6), with which a filter g of three
    points gives A^T [(G g) * (B^T d)], four points, of six points d."""
    points = (0.0, a, -a, b, -b)
    powers = torch.tensor(points, dtype=torch.float64)[:, None] ** torch.arange(4)
    result = torch.cat((powers, torch.eye(4)[-1:]))

    # B^T has the polynomials that are zero at all points but one, and last at all
    kernel, source = torch.zeros(6, 3).double(), torch.zeros(6, 6).double()
    for row in range(6):
        others = [p for i, p in enumerate(points) if i != row]
        polynomial = torch.ones(1, dtype=torch.float64)
        for p in others:
            polynomial = F.pad(polynomial, (1, 0)) - p * F.pad(polynomial, (0, 1))
        source[row, : len(polynomial)] = polynomial
        if row < 5:
            kernel[row] = result[row, :3] / math.prod(points[row] - p for p in others)
    kernel[5, 2] = 1
    return result.T, kernel, source


_RESULT_MAP, _KERNEL_MAP, _SOURCE_MAP = winograd_maps(5 / 8, 3 / 2)


def winograd_kernel(weight: Tensor) -> Tensor:
    """Maps kernels (out, in, 3, 3), `out` a multiple of 16, to what `winograd` multiplies by, with
    shape (36, out / 16, in, 16): G g G^T, computed in float64; or kernels (out, in, 1, 3) to G g,
    with shape (6, ...)."""
    g = _KERNEL_MAP if weight.shape[2] == 1 else torch.kron(_KERNEL_MAP, _KERNEL_MAP)
    products = weight.double().flatten(2) @ g.T.to(weight.device)  # (out, in, 36 or 6)
    return products.unflatten(0, (-1, 16)).permute(3, 0, 2, 1).to(weight.dtype).contiguous()


def winograd(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    """Convolves fields (B, in, H, W), padded with p rows and q columns of zeros on either side,
    with kernels of 3 x 3 or 1 x 3 points.

    Arguments:
        x: The fields.
        kernel: What `winograd_kernel` makes of the kernels.
        bias: What is added to each channel, with shape (out), or None.
        padding: The numbers p and q.
    """
    lines = len(kernel) == 6
    height, step, size = (1, 1, 1) if lines else (3, 4, 6)  # of a kernel, a tile, its source
    rows, columns = x.shape[2] + 2 * padding[0] - height + 1, x.shape[3] + 2 * padding[1] - 2
    (p, q), down, across = padding, -(-rows // step), -(-columns // 4)
    x = F.pad(x, (q, q + 4 * across - columns, p, p + step * down - rows))
    d = x.unfold(2, size, step).unfold(3, 6, 4)  # (B, in, down, across, 6 or 1, 6)

    a, b = (m.to(x) for m in (_RESULT_MAP, _SOURCE_MAP))
    above, below = (m.new_ones(1, 1) if lines else m for m in (a, b))
    v = (below @ d @ b.T).flatten(4)
    sums = torch.einsum("bcyxp,pnco->bnoyxp", v, kernel).flatten(1, 2).unflatten(-1, (-1, 6))
    y = (above @ sums @ a.T).transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]
    return y if bias is None else y + bias[:, None, None]


def winograd_(
    onto: Tensor, x: Tensor, kernel: Tensor, bias: Tensor | None, padding: list[int]
) -> None:
    """Adds what `winograd` returns to fields of its shape."""
    onto.add_(winograd(x, kernel, bias, padding))
