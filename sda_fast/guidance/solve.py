r"""Solving linear systems that are known by their products alone, for a batch at once."""

__all__ = ["conjugate_gradient", "gmres"]

from collections.abc import Callable

import torch
from torch import Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner products of the rows, with shape (B, 1)."""
    return (a * b).sum(dim=1, keepdim=True)


def _size(b: Tensor) -> Tensor:
    """Returns the sums of the rows' sizes, with shape (B, 1), 1 for rows of zeros. Over them, rows
    have squares that neither overflow nor underflow."""
    size = b.abs().sum(dim=1, keepdim=True)
    return torch.where(size == 0, 1.0, size)


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 0.0
) -> Tensor:
    r"""Solves :math:`M x = b` for symmetric, positive definite M (Hestenes & Stiefel, 1952).

    A sample stops where its residual is small enough, or where M turns out not to be positive. One
    with what is not finite gets NaN.

    Arguments:
        apply: The product with M, from (B, m) to (B, m).
        b: The right-hand sides, with shape (B, m).
        iterations: The number of products at most.
        tolerance: The norm of the residual, relative to that of b, at which to stop.
    """
    size = _size(b)
    b = b / size
    x, r, p = torch.zeros_like(b), b, b
    square = _dot(r, r)
    enough = tolerance**2 * square

    for _ in range(iterations):
        goes_on = ~(square <= enough)
        if tolerance > 0 and not bool(goes_on.any()):
            break
        product = apply(p)
        curvature = _dot(p, product)
        goes_on = goes_on & ~(curvature <= 0)  # NaN goes on, and is seen
        step = torch.where(goes_on, square / torch.where(goes_on, curvature, 1.0), 0.0)
        x, r = x + step * p, r - step * product
        before, square = square, torch.where(goes_on, _dot(r, r), 0.0)
        p = r + torch.where(goes_on, square / torch.where(goes_on, before, 1.0), 0.0) * p

    return size * x


def gmres(
    apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 0.0
) -> Tensor:
    r"""Solves :math:`M x = b` for any M in the Krylov space of some products (Saad & Schultz,
    1986): x is where the norm of the residual is least. A sample with what is not finite gets NaN.

    Arguments:
        apply: The product with M, from (B, m) to (B, m).
        b: The right-hand sides, with shape (B, m).
        iterations: The number n of products at most.
        tolerance: The new direction's norm, relative to the product's, below which a sample's
            space is complete.
    """
    iterations = min(iterations, b.shape[1])
    size = _size(b)
    b = b / size
    norm = b.norm(dim=1, keepdim=True)
    basis = [b / torch.where(norm > 0, norm, 1.0)]
    hessenberg = b.new_zeros(len(b), iterations + 1, iterations)

    for n in range(iterations):
        product = apply(basis[n])
        whole = product.norm(dim=1, keepdim=True)
        for i, v in enumerate(basis):
            along = _dot(v, product)
            hessenberg[:, i, n] = along[:, 0]
            product = product - along * v
        left = product.norm(dim=1, keepdim=True)
        more = left > max(tolerance, 8 * torch.finfo(b.dtype).eps) * whole
        hessenberg[:, n + 1, n] = torch.where(more, left, 0.0)[:, 0]
        basis.append(torch.where(more, product / torch.where(more, left, 1.0), 0.0))

    # a pseudo-inverse, since the space of some samples may be complete before that of others
    finite = hessenberg.isfinite().all(dim=2).all(dim=1)[:, None]
    inverse = torch.linalg.pinv(torch.where(finite[:, None], hessenberg, 0.0))
    weights = torch.where(finite, size * norm * inverse[:, :, 0], torch.nan)

    return sum((weights[:, n, None] * v for n, v in enumerate(basis[:-1])), torch.zeros_like(b))
