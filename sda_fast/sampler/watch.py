"""Noticing samples that are not finite, or out of all proportion."""

__all__ = ["Watch"]

import math
import warnings

import torch
from torch import Tensor

# On an accelerator a look at the state waits for the device, so it is taken only this often.
CHECK_EVERY = 16

# A sample is out of proportion if its largest element is this many times that of the median sample
# (and of 1, the noise that samples are drawn from). A sample alone has nothing to be compared with,
# and a network that is not trained sends all of them equally far.
PROPORTION = 100.0

# A bound holds too much if more than this part of all elements lie at it.
HELD = 0.01


class Watch:
    """Notices the first step at which a sample is not finite, without waiting for the device, and
    without memory of its own from step to step."""

    def __init__(self, x: Tensor):
        self.every = 1 if x.device.type == "cpu" else CHECK_EVERY
        wide = torch.promote_types(x.dtype, torch.float32)  # a half type's sum may overflow it
        self.sum = x.new_empty(len(x), dtype=wide)
        self.finite = torch.ones_like(self.sum)  # for samples that have been so until now, else 0
        self.least = self.sum.new_empty(())
        self.steps = torch.zeros_like(self.sum)
        self.seen: list[tuple[int, float, float]] = []

    def __call__(self, x: Tensor, step: int, t: float, sigma: float, last: bool) -> None:
        if x.is_cpu:
            torch.sum(x, dim=(*range(x.ndim),), dtype=self.sum.dtype, out=self.least)
            if math.isfinite(self.least):
                return
        self.seen.append((step, t, sigma))
        # a sum is finite only if its terms are; one that overflows is no better
        torch.sum(x.reshape(len(x), -1), dim=1, dtype=self.sum.dtype, out=self.sum)
        self.sum.sub_(self.sum)  # 0, or else NaN, which is not equal to itself
        self.finite.mul_(self.sum.eq_(self.sum))
        self.steps.add_(self.finite)

        if not (last or step % self.every == 0):
            return
        if torch.amin(self.finite, dim=0, out=self.least).item() < 1:
            first = int(self.steps.argmin())
            step, t, sigma = self.seen[int(self.steps[first])]
            raise FloatingPointError(
                f"the state is not finite since step {step} (t = {t:.4g}, sigma = {sigma:.4g}), "
                f"first in sample {first}, by now in {int((self.finite == 0).sum())} of {len(x)} "
                "samples; more steps or corrections, a smaller tau or a larger gamma may help"
            )

    def report(self, x: Tensor, clip: float | None = None) -> None:
        """Warns of samples that are finite but have run away from the others, or are held by the
        bound of what estimates denoise to."""
        size = x.reshape(len(x), -1).abs()
        share = 0.0 if clip is None else int((size > 0.999 * clip).sum()) / size.numel()
        if share > HELD:
            warnings.warn(
                f"{share:.1%} of all elements lie at the bound clip={clip:g} or beyond: are the "
                "states standardised, and observations as they are?",
                RuntimeWarning,
                stacklevel=3,
            )
        peak = size.amax(dim=1)
        far = (peak > PROPORTION * peak.median().clamp(min=1)).nonzero()[:, 0].tolist()
        if far:
            warnings.warn(
                f"samples {', '.join(map(str, far[:8]))}{', ...' if len(far) > 8 else ''} have run "
                f"away: {len(far)} of {len(x)}, up to {float(peak.max()):.3g} where the median "
                f"sample reaches {float(peak.median()):.3g}; clip=5 (for standardised states) "
                "bounds every step",
                RuntimeWarning,
                stacklevel=3,
            )
