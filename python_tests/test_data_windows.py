"""Windows of a data set on disk, alone and through a DataLoader."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sda_fast.data import Recipe, Trajectories, Windows, generate

h5py = pytest.importorskip("h5py")

N, LENGTH = 10, 20

forks = pytest.mark.filterwarnings(
    "ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose states say where they are: 100 times the trajectory, plus the time."""
    path = tmp_path_factory.mktemp("data") / "data.h5"
    recipe = Recipe("lorenz63", {}, trajectories=N, length=LENGTH, burn_in=0)
    generate(recipe, path, progress=False, report=lambda _: None)
    with h5py.File(path, "r+") as file:
        place = 100.0 * np.arange(N)[:, None] + np.arange(LENGTH)
        file["trajectories"][:] = place[..., None] + [0, 0, 25]
        file.attrs["std"] = np.ones(3, np.float32)
    return path


def test_windows(data: Path):
    """Consecutive, standardised states of the trajectories of the split."""
    windows = Windows(data, 5)
    assert len(windows) == 8 * 4
    assert windows.window == 5
    for i in range(len(windows)):
        row, start, length = windows.locate(i)
        x, n = windows[i]
        assert x.shape == (5, 3)
        assert n == length == 5
        assert row < 8
        expected = 100 * row + start + torch.arange(5.0)
        assert torch.equal(x, expected[:, None].expand(5, 3))


def test_every_place_equally_often(data: Path):
    n = 8000
    windows = Windows(data, 17, split="all", size=n)
    places = [windows.locate(i)[:2] for i in range(n)]
    count = np.zeros((N, LENGTH - 17 + 1))
    for place in places:
        count[place] += 1
    p = 1 / count.size
    assert (abs(count - n * p) < 5 * (n * p * (1 - p)) ** 0.5).all()


def test_several_lengths(data: Path):
    """Each as often as it is named, and zero beyond it; short ones at places that others lack."""
    windows = Windows(data, (1, 3, 5, 5), size=2000)
    count = dict.fromkeys((1, 3, 5), 0)
    for i in range(200):
        x, n = windows[i]
        assert x.shape == (5, 3)
        assert not x[n:].any()
        assert (x[:n].diff(dim=0) == 1).all()
    last = 0
    for i in range(2000):
        _, start, length = windows.locate(i)
        count[length] += 1
        last = max(last, start)
    assert last == LENGTH - 1
    for n, share in {1: 0.25, 3: 0.25, 5: 0.5}.items():
        assert abs(count[n] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5


def test_splits_share_no_trajectory(data: Path):
    rows = {}
    for split in ("train", "valid", "test"):
        windows = Windows(data, 4, split=split, size=300)
        rows[split] = {windows.locate(i)[0] for i in range(300)}
    assert rows == {"train": set(range(8)), "valid": {8}, "test": {9}}


def test_order_is_of_seed_epoch_and_index(data: Path):
    """So that training goes on with what it would have seen."""

    def order(windows: Windows, epoch: int) -> list[tuple[int, int, int]]:
        windows.epoch = epoch
        return [windows.locate(i) for i in range(len(windows))]

    one, two = Windows(data, (2, 5), seed=3), Windows(data, (2, 5), seed=3, size=64)
    first = order(one, 0)
    assert order(two, 0)[: len(first)] == first
    assert order(one, 7) == order(two, 7)[: len(first)] != first
    assert order(one, 0) == first
    assert order(Windows(data, (2, 5), seed=4), 0) != first

    state = torch.get_rng_state()
    two.epoch = 0
    assert torch.equal(one[5][0], two[5][0])
    assert torch.equal(torch.get_rng_state(), state)


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_loader(data: Path, workers: int):
    """Processes open the file by themselves, and hear of a new epoch."""
    windows = Windows(data, (3, 5), size=12)
    alone = {}
    for epoch in (0, 1):
        windows.epoch = epoch
        alone[epoch] = [windows[i] for i in range(12)]  # the file is open here when they begin

    loader = DataLoader(windows, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1):
        windows.epoch = epoch
        x, n = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(x, torch.stack([window for window, _ in alone[epoch]]))
        assert torch.equal(n, torch.stack([length for _, length in alone[epoch]]))


def test_pickle(data: Path):
    windows = Windows(data, 5)
    windows.epoch = 2
    x, _ = windows[3]
    again = pickle.loads(pickle.dumps(windows))
    assert again.epoch == 2
    assert torch.equal(again[3][0], x)


def test_only_what_is_asked_for_is_read(data: Path, monkeypatch: pytest.MonkeyPatch):
    read = h5py.Dataset.__getitem__
    keys = []

    def spy(self, key, **options):
        keys.append(key)
        return read(self, key, **options)

    trajectories = Trajectories(data)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    windows = Windows(trajectories, 5)
    assert not keys
    windows[0]
    row, start, _ = windows.locate(0)
    assert keys == [(row, slice(start, start + 5))]


def test_windows_that_are_not_finite(data: Path, tmp_path: Path):
    path = tmp_path / "data.h5"
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as file:
        file["trajectories"][9, 7, 0] = np.nan
    windows = Windows(path, LENGTH, split="test")
    with pytest.raises(
        ValueError, match=r"trajectories \(9, slice\(0, 20, None\)\) of .* not finite"
    ):
        windows[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": 21}, r"lengths must be between 1 and 20, got \(21,\)"),
        ({"lengths": (0, 3)}, r"lengths must be between 1 and 20, got \(0, 3\)"),
        ({"lengths": ()}, r"lengths must be between 1 and 20, got \(\)"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"split": "trian"}, "split must be one of train, valid, test or all, got 'trian'"),
    ],
)
def test_bad_arguments(data: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Windows(data, **{"lengths": 5, **arguments})


def test_bad_index_and_epoch(data: Path):
    windows = Windows(data, 5)
    for index in (-1, 32):
        with pytest.raises(IndexError, match=f"index must be between 0 and 31, got {index}"):
            windows[index]
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        windows.epoch = -1
