"""The files of a training run."""

__all__ = ["Files"]

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """The files of a run.

    Arguments:
        out: The prior.
    """

    out: Path

    def _beside(self, suffix: str) -> Path:
        name = self.out.name.removesuffix(".safetensors")
        return self.out.with_name(name + suffix)

    @property
    def checkpoint(self) -> Path:
        """What the run goes on from."""
        return self.out.with_name(self.out.name + ".checkpoint")

    @property
    def best(self) -> Path:
        """The prior of the least validation error so far."""
        return self._beside(".best.safetensors")

    @property
    def config(self) -> Path:
        """All options of the run, as JSON."""
        return self._beside(".config.json")

    @property
    def metrics(self) -> Path:
        """The losses and validation errors, as CSV."""
        return self._beside(".metrics.csv")

    @property
    def board(self) -> Path:
        """TensorBoard's files."""
        return self._beside(".tensorboard")

    @property
    def samples(self) -> Path:
        """The picture of samples."""
        return self._beside(".samples.png")

    def forget(self) -> None:
        """Removes what an older run has recorded."""
        for path in (self.best, self.metrics):
            path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes what a killed run had not finished writing."""
        for path in (self.out, self.checkpoint, self.best, self.config, self.metrics):
            for part in path.parent.glob(f".{path.name}.*.part"):
                part.unlink(missing_ok=True)
