"""What is recorded of a run: a table of its losses, and a picture of what it has learnt."""

__all__ = ["Metrics", "draw_samples"]

import csv
import io
import math
from pathlib import Path
from typing import Any

from ..io import Standardisation, atomic_write, load_prior, read_record
from ..systems import flow


class Metrics:
    """The rows of a CSV file, which is written anew with each; and, where it is installed,
    TensorBoard's.

    Arguments:
        path: The CSV file.
        board: The directory of TensorBoard's files.
        iteration: The iteration that the run goes on from: later rows are forgotten.
    """

    def __init__(self, path: Path, board: Path, iteration: int = 0):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if iteration and path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if int(row["iteration"]) <= iteration]

        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board: Any = None
        else:
            self.board = SummaryWriter(str(board), purge_step=iteration + 1 if iteration else None)

    def add(self, iteration: int, values: dict[str, float]) -> None:
        """Adds a row.

        Raises:
            OSError: It could not be written. The rows before are kept.
        """
        self.rows.append({"iteration": iteration, **values})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.rows[-1], extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, text.getvalue().encode())

        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, iteration)
            self.board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def draw_samples(
    prior: Path, path: Path, *, samples: int = 3, length: int | None = None, steps: int = 64
) -> None:
    """Draws unconditional samples of a prior: of a flow the vorticity, of other fields in two
    dimensions the first channel, a row a trajectory; of all else the first coordinates.

    Arguments:
        prior: The prior's file.
        path: The image to write.
        samples: The number of trajectories.
        length: The number of states of each, by default 9 of fields, and of vectors the prior's.
        steps: The number of steps, each of which is corrected once.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: pip install 'sda-fast[plot]' ({error})") from (
            error
        )

    record = read_record(prior)
    window, (default, *state) = 2 * record["network"]["order"] + 1, record["shape"]
    length = length or (default if len(state) == 1 else max(9, window))
    sde = load_prior(prior, length=length)
    x = sde.sample((samples,), steps=steps, corrections=1, tau=0.5, seed=0)
    x = Standardisation.load(prior).postprocess(x)

    if x.ndim == 5:
        w = flow.vorticity(x) if record["system"] == "kolmogorov" else x[:, :, 0]
        middle, scale = float(w.mean()), 3 * float(w.std())
        shown = range(0, length, max(1, math.ceil(length / 9)))
        figure = Figure(figsize=(1.4 * len(shown), 1.5 * samples), layout="constrained")
        axes = figure.subplots(samples, len(shown), squeeze=False)
        for row, sample in zip(axes, w, strict=True):
            for axis, i in zip(row, shown, strict=True):
                picture = sample[i].T.numpy()  # x to the right, y upwards
                limits = {"vmin": middle - scale, "vmax": middle + scale}
                axis.imshow(picture, origin="lower", cmap="RdBu_r", **limits)
                axis.set_axis_off()
    else:
        x = x.flatten(2)
        count = min(x.shape[-1], 6)
        figure = Figure(figsize=(7, 1.4 * count), layout="constrained")
        for j, axis in enumerate(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]):
            axis.plot(x[..., j].T.numpy(), linewidth=1)
            axis.set_ylabel(f"$x_{{{j + 1}}}$")
        axis.set_xlabel("state")

    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    atomic_write(path, image.getvalue())
