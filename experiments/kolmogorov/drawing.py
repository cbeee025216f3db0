"""Figures and animations of flows, by their vorticity."""

__all__ = ["ICEFIRE", "Row", "animate", "draw", "rows"]

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from sda_fast.io import atomic_write
from sda_fast.systems.flow import vorticity

from .scene import Scene

UNSEEN = "#e4e4e4"

#: From ice over black to fire.
ICEFIRE = LinearSegmentedColormap.from_list(
    "icefire",
    ["#d3f3ee", "#63b8d6", "#3a6fc4", "#29336b", "#17181f", "#6b1f33", "#c93a3a", "#f0883f",
     "#fbe3b3"],
).with_extremes(bad=UNSEEN)  # fmt: skip
SPREAD = colormaps["magma"].with_extremes(bad=UNSEEN)


@dataclass(frozen=True, eq=False)
class Row:
    """What is drawn of one trajectory.

    Arguments:
        label: Its name.
        fields: Fields (L, h, w), or velocities (L, 2, h, w) at the points of a grid.
        scale: The value of the brightest colour.
        diverging: Whether values have a sign.
    """

    label: str
    fields: Tensor
    scale: float = 1.0
    diverging: bool = True

    def panel(self, axis: Axes, i: int) -> None:
        """Draws state i: x to the right, y upwards."""
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        field = self.fields[i]
        if field.ndim == 3:
            axis.set_facecolor(UNSEEN)
            h, w = field.shape[1:]
            x, y = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
            axis.quiver(x, y, *field.numpy(), scale=8 * self.scale, width=0.012, color="#2b3c66")
            axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        else:
            axis.imshow(
                field.T.numpy(),
                origin="lower",
                interpolation="nearest",
                cmap=ICEFIRE if self.diverging else SPREAD,
                vmin=-self.scale if self.diverging else 0,
                vmax=self.scale,
            )


def largest(fields: Tensor) -> float:
    """Returns the magnitude that one value in a hundred exceeds."""
    magnitudes = fields[fields.isfinite()].abs()
    return float(np.quantile(magnitudes.numpy(), 0.99))


def rows(scene: Scene, x: Tensor) -> list[Row]:
    """Returns truth, observation, three members, mean and spread of a posterior (B, L, 2, N, N);
    of an ambiguous observation a member of each mode, as far as there are."""
    truth, posterior = vorticity(scene.truth), vorticity(x)
    scale, y = largest(truth), scene.case.picture(scene.y)
    names = [f"member {n + 1}" for n in range(len(x))]
    shown = list(range(len(x)))[:3]
    if scene.case.shifts > 1:
        modes = scene.modes(x).tolist()
        names = [f"shift {mode}" for mode in modes]
        shown = [modes.index(mode) for mode in sorted(set(modes))]

    # of few members: variances averaged over 3 x 3 points
    around = pad(posterior.var(dim=0)[:, None], pad=(1,) * 4, mode="circular")
    spread = avg_pool2d(around, 3, stride=1)[:, 0].sqrt()

    return [
        Row("truth", truth, scale),
        Row("observed", y, largest(y)),
        *(Row(names[n], posterior[n], scale) for n in shown),
        Row("mean", posterior.mean(dim=0), scale),
        Row("spread", spread, largest(spread), diverging=False),
    ]


def panels(rows: int, columns: int, size: float, left: float, top: float) -> tuple[Figure, Any]:
    """Returns a figure and its axes: squares and margins of so many inches."""
    gap = 0.02
    width, height = left + columns * (size + gap), top + rows * (size + gap)
    figure = Figure(figsize=(width, height), dpi=100)
    frame = {
        "left": left / width,
        "right": 1 - gap / width,
        "bottom": gap / height,
        "top": 1 - top / height,
    }
    spaces = {"wspace": gap / size, "hspace": gap / size}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=frame | spaces)


def picture(figure: Any) -> Image.Image:
    """Renders a figure in 255 colours."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return image.quantize(255, dither=Image.Dither.NONE)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    content = io.BytesIO()
    image.save(content, path.suffix[1:], optimize=True, **options)
    atomic_write(path, content.getvalue())


def draw(path: Path, rows: Sequence[Row], dt: float, states: Sequence[int] | None = None) -> None:
    """Draws a row for each trajectory, some states of it from left to right: by default at most
    nine, evenly."""
    length = len(rows[0].fields)
    states = states or range(0, length, -(-length // 9))
    figure, grid = panels(
        len(rows), len(states), size=min(0.96, 9 / len(states)), left=0.22, top=0.2
    )
    for row, axes in zip(rows, grid, strict=True):
        axes[0].set_ylabel(row.label, fontsize=9)
        for axis, i in zip(axes, states, strict=True):
            row.panel(axis, i)
    for axis, i in zip(grid[0], states, strict=True):
        axis.set_title(f"{dt * i:.1f}" if i else "time 0", fontsize=9, pad=3)

    save(path, picture(figure))


def animate(path: Path, rows: Sequence[Row], seconds: float = 0.2) -> None:
    """Writes an animation of the trajectories side by side."""
    frames = []
    for i in range(len(rows[0].fields)):
        figure, grid = panels(1, len(rows), size=0.96, left=0.02, top=0.2)
        for row, axis in zip(rows, grid[0], strict=True):
            row.panel(axis, i)
            axis.set_title(row.label, fontsize=9, pad=3)
        frames.append(picture(figure))

    save(path, frames[0], save_all=True, append_images=frames[1:], loop=0,
         duration=round(1000 * seconds))  # fmt: skip
