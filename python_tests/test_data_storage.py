"""Data sets on disk: what is written, resumed and refused."""

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sda_fast import Lorenz63, MarkovChain
from sda_fast.cli import main
from sda_fast.data import Recipe, Trajectories, generate, simulate_block
from sda_fast.data.storage import ATTRIBUTES, SIMULATION, PartFile
from sda_fast.systems import CATALOGUE

h5py = pytest.importorskip("h5py")

SMALL = {"trajectories": 7, "length": 5, "burn_in": 2, "block": 3, "seed": 4}


def recipe(system: str = "lorenz96", parameters: dict | None = None, **options) -> Recipe:
    return Recipe(system, parameters or {}, **{**SMALL, **options})


def make(path: Path, *arguments, **options) -> Path:
    return generate(recipe(*arguments, **options), path, progress=False, report=lambda _: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "data.h5")


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(data, tmp_path / "copy.h5"))


# What is written


def test_file(data: Path):
    with h5py.File(data) as file:
        array = file["trajectories"]
        assert array.shape == (7, 5, 40)
        assert array.dtype == np.float32
        assert array.chunks == (1, 5, 40)
        assert [dim.label for dim in array.dims] == ["trajectory", "time", "channel"]
        assert set(file.attrs) == set(ATTRIBUTES) | set(SIMULATION)
        assert file.attrs["system"] == "lorenz96"
        parameters = {"n": 40, "F": 8.0, "dt": 0.05, "steps": 1}
        assert json.loads(file.attrs["parameters"]) == parameters
        assert file.attrs["dt"] == 0.05
        assert (file.attrs["seed"], file.attrs["burn_in"], file.attrs["block"]) == (4, 2, 3)
        expected = array[:].astype(np.float64)
        np.testing.assert_allclose(file.attrs["mean"], expected.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(file.attrs["std"], expected.std((0, 1)), rtol=1e-5)
    assert os.listdir(data.parent) == [data.name]


def test_states_are_the_systems(data: Path):
    """Each follows the one before."""
    x = Trajectories(data)[:]
    torch.testing.assert_close(
        recipe().build().transition(x[:, :-1]), x[:, 1:], rtol=1e-5, atol=1e-5
    )
    assert (x[:, 0].std(dim=0) > 0).all()  # no two are alike, in no block


def test_blocks_are_functions_of_seed_and_index(data: Path):
    """In whatever order, and whatever else there is."""
    x = Trajectories(data)[:].numpy()
    assert np.array_equal(simulate_block(recipe(), 2), x[6:])
    assert np.array_equal(simulate_block(recipe(), 1), x[3:6])
    assert np.array_equal(simulate_block(recipe(trajectories=4), 0), x[:3])
    assert not np.array_equal(simulate_block(recipe(seed=5), 0), x[:3])


@pytest.mark.parametrize("system", [n for n, entry in CATALOGUE.items() if len(entry.dims) == 1])
def test_systems(system: str, tmp_path: Path):
    data = Trajectories(make(tmp_path / "data.h5", system), system=system)
    assert len(data) == 7
    assert data.shape[:2] == (7, 5)
    assert data.dt == CATALOGUE[system].parameters["dt"]
    assert data.recipe == recipe(system)
    x = data[2:4]
    assert x.shape == (2, *data.shape[1:])
    torch.testing.assert_close(data.postprocess(data.preprocess(x)), x)


def test_own_standardisation(tmp_path: Path):
    """Lorenz-63 comes with one, which trained priors have in them."""
    data = Trajectories(make(tmp_path / "data.h5", "lorenz63"))
    assert data.mean.tolist() == [0, 0, 25]
    torch.testing.assert_close(data.preprocess(data[:]), Lorenz63.preprocess(data[:]))


def test_measured_standardisation(data: Path):
    x = Trajectories(data).preprocess(Trajectories(data)[:])
    assert x.mean(dim=(0, 1)).abs().max() < 1e-5
    torch.testing.assert_close(x.std(dim=(0, 1), correction=0), torch.ones(40))


def test_hidden_variables(tmp_path: Path):
    shown = Trajectories(make(tmp_path / "all.h5", "lorenz96_two_scale"))
    hidden = Trajectories(make(tmp_path / "slow.h5", "lorenz96_two_scale", {"hidden": True}))
    assert shown.shape == (7, 5, 396)
    assert hidden.shape == (7, 5, 36)
    assert torch.equal(hidden[:], shown[:][..., :36])


def test_kolmogorov(tmp_path: Path):
    """Coarsened fields, of two channels with one mean and deviation each."""
    pytest.importorskip("jax_cfd")
    options = {"trajectories": 3, "length": 2, "block": 2, "coarsen": 4}
    settings = recipe("kolmogorov", {"size": 32, "dt": 0.05}, **options)
    generate(settings, tmp_path / "data.h5", progress=False, report=lambda _: None)
    data = Trajectories(tmp_path / "data.h5")
    assert data.shape == (3, 2, 2, 8, 8)
    assert data.dims == ("trajectory", "time", "channel", "x", "y")
    assert data.recipe == settings

    fine = simulate_block(
        recipe("kolmogorov", {"size": 32, "dt": 0.05}, **options | {"coarsen": 1}), 1
    )
    coarse = settings.build().coarsen(torch.from_numpy(fine), 4)
    torch.testing.assert_close(data[2:], coarse)
    x = data.preprocess(data[:])
    assert x.mean(dim=(0, 1, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(x.std(dim=(0, 1, 3, 4), correction=0), torch.ones(2))

    with pytest.raises(ValueError, match="r must divide the last two dimensions of x, got 5"):
        make(tmp_path / "bad.h5", "kolmogorov", {"size": 32}, coarsen=5)
    assert os.listdir(tmp_path) == ["data.h5"]


@pytest.mark.parametrize(
    ("system", "parameters", "options", "message"),
    [
        ("lorenz64", {}, {}, "system must be one of lorenz63, .*, got 'lorenz64'"),
        ("lorenz63", {"F": 8.0}, {}, "parameter of NoisyLorenz63 must be one of sigma.*, got 'F'"),
        ("lorenz63", {}, {"coarsen": 2}, "coarsen must be 1 for lorenz63, got 2"),
        ("lorenz63", {}, {"trajectories": 0}, "trajectories must be at least 1, got 0"),
        ("lorenz63", {}, {"length": 0}, "length must be at least 1, got 0"),
        ("lorenz63", {}, {"block": 0}, "block must be at least 1, got 0"),
        ("lorenz63", {}, {"burn_in": -1}, "burn_in must not be negative, got -1"),
        ("lorenz63", {}, {"seed": -1}, r"seed must be between 0 and 2\^63 - 1, got -1"),
    ],
)
def test_bad_recipe(system: str, parameters: dict, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        recipe(system, parameters, **options)


def test_default_recipe():
    """What the catalogue says."""
    for name, entry in CATALOGUE.items():
        made = Recipe(name, {})
        assert (made.length, made.burn_in, made.block) == (entry.length, entry.burn_in, entry.block)
        assert made.parameters == entry.parameters


# Interruptions


def killed(out: Path, count: int) -> None:
    """Starts to make a data set in a process that dies before the count-th of: a name is taken,
    states or a mark are written, a file is flushed, or a mean is written."""
    child = os.fork()
    if child == 0:

        def dying(function):
            def call(*arguments):
                nonlocal count
                count -= 1
                if count == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)

            return call

        os.replace = dying(os.replace)
        h5py.Dataset.__setitem__ = dying(h5py.Dataset.__setitem__)
        h5py.File.flush = dying(h5py.File.flush)
        h5py.AttributeManager.modify = dying(h5py.AttributeManager.modify)
        try:
            make(out)
        finally:
            os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_killed_and_resumed(data: Path, tmp_path: Path):
    """At every moment of a block and at both ends: at last the file is the same, byte for byte."""
    out, part = tmp_path / "data.h5", tmp_path / "data.h5.part"
    # a name; states, flush, mark and flush of each of 3 blocks; two means and a name
    killed(out, 1)
    assert not out.exists()
    assert not part.exists()

    for count, done in ((2, 0), (2, 0), (3, 0), (4, 1), (5, 2), (5, 3), (2, 3), (3, 3)):
        killed(out, count)
        assert not out.exists()
        with PartFile(out, recipe()) as file:
            assert 3 - len(file.pending) == done

    assert make(out).read_bytes() == data.read_bytes()


@pytest.mark.slow
def test_workers(data: Path, tmp_path: Path):
    """As many as there are make the same file."""
    out = tmp_path / "data.h5"
    generate(recipe(), out, workers=2, progress=False, report=lambda _: None)
    assert out.read_bytes() == data.read_bytes()


LONG = """
import sys
from sda_fast.data import Recipe, generate

recipe = Recipe("lorenz96", {}, trajectories=10**5, length=100, burn_in=10**4, block=100, seed=0)
generate(recipe, sys.argv[1], workers=2, progress=False)
"""


def workers_of(process: int) -> set[str]:
    """Returns what works for a process: on Linux only."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in listed}
    return {child for child, command in commands.items() if b"spawn_main" in command}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_end_with_who_they_work_for(tmp_path: Path):
    script = tmp_path / "long.py"
    script.write_text(f"if __name__ == '__main__':{LONG.replace(chr(10), chr(10) + '    ')}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path / "data.h5")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as parent:
        end = time.monotonic() + 60
        while len(workers := workers_of(parent.pid)) < 2:
            assert time.monotonic() < end, "no workers"
            time.sleep(0.1)
        time.sleep(3)  # they have begun to work
        parent.kill()

    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end, "they go on"
        time.sleep(0.1)


def test_resuming_says_what_differs(tmp_path: Path):
    out = tmp_path / "data.h5"
    with PartFile(out, recipe()) as file:
        file.write(1, simulate_block(recipe(), 1))
    before = out.with_name("data.h5.part").read_bytes()

    message = r"data\.h5\.part is of another command: F is 8\.0, now 9\.0; seed is 4, now 5$"
    with pytest.raises(ValueError, match=message):
        make(out, "lorenz96", {"F": 9.0}, seed=5)
    assert out.with_name("data.h5.part").read_bytes() == before

    lines: list[str] = []
    generate(recipe(), out, progress=False, report=lines.append)
    assert lines[0] == "lorenz96: 7 trajectories of 5 states (40,), 0.0 MB"
    assert lines[1] == "going on from 1 of 3 blocks"
    assert lines[2].startswith("about ")

    generate(recipe(), out, progress=False, report=lines.append)
    assert lines[-1] == f"{out} is complete already"
    with pytest.raises(ValueError, match=r"data\.h5 is of another command: length is 5, now 6"):
        make(out, length=6)


def test_disk_full_while_writing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sentence, and nothing lost: the same command goes on."""
    out, write = tmp_path / "data.h5", h5py.Dataset.__setitem__

    def full(self, key, value):
        if self.name == "/trajectories" and key.start == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", full)
        message = r"block 1 could not be .* \(.*No space left on device\): the 1 before it are kept"
        with pytest.raises(OSError, match=message):
            make(out)
    assert os.listdir(tmp_path) == ["data.h5.part"]
    make(out)
    assert out.read_bytes() == data.read_bytes()


def test_file_that_cannot_grow(tmp_path: Path):
    """The system itself refuses to write beyond a place in the file."""
    out, settings = tmp_path / "data.h5", recipe("lorenz96", {"n": 4096}, trajectories=3, block=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PartFile(out, settings) as file:
        file.write(0, simulate_block(settings, 0))
        states = simulate_block(settings, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, before[1]))
        try:
            with pytest.raises(OSError, match=r"block 2 could not be written to .*the 1 before it"):
                file.write(2, states)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    make(out, "lorenz96", {"n": 4096}, trajectories=3, block=1)
    other = make(tmp_path / "other.h5", "lorenz96", {"n": 4096}, trajectories=3, block=1)
    assert out.read_bytes() == other.read_bytes()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"data\.h5 needs 6 MB, but its disk has 0 free"):
        make(tmp_path / "data.h5", trajectories=1000, length=40)
    assert not os.listdir(tmp_path)


def test_two_writers(tmp_path: Path):
    out = tmp_path / "data.h5"
    with PartFile(out, recipe()):
        pass
    with out.with_name("data.h5.part").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does
        with pytest.raises(ValueError, match=r"data\.h5\.part is being written by another process"):
            make(out)
    assert make(out) == out


def test_blocks_are_checked(tmp_path: Path):
    with PartFile(tmp_path / "data.h5", recipe()) as file:
        states = simulate_block(recipe(), 0)
        with pytest.raises(
            ValueError, match=r"block 0 must have shape \(3, 5, 40\), got \(2, 5, 40"
        ):
            file.write(0, states[:2])
        states[1, 2, 3] = np.nan
        with pytest.raises(ValueError, match="block 0 is not finite"):
            file.write(0, states)
        assert file.pending == [0, 1, 2]


def test_simulation_that_explodes(tmp_path: Path):
    """What was simulated before is kept."""
    message = "simulation of lorenz96 is not finite in block 0: choose a smaller dt"
    with pytest.raises(RuntimeError, match=message):
        make(tmp_path / "data.h5", "lorenz96", {"dt": 2.0}, burn_in=64)


# What is refused


def test_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no data set '.*nothing\.h5'"):
        Trajectories(tmp_path / "nothing.h5")
    with pytest.raises(FileNotFoundError, match=r"no directory '.*nowhere' to write data\.h5 into"):
        make(tmp_path / "nowhere" / "data.h5")


@pytest.mark.parametrize("size", [0, 100, 4000, -1])
def test_truncated(copy: Path, size: int):
    content = copy.read_bytes()
    copy.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"copy\.h5 is not a whole HDF5 file: "):
        Trajectories(copy)


def test_not_complete(tmp_path: Path):
    with PartFile(tmp_path / "data.h5", recipe()) as file:
        file.write(1, simulate_block(recipe(), 1))
    with pytest.raises(ValueError, match=r"data\.h5\.part is not complete: 1 of 3 blocks"):
        Trajectories(tmp_path / "data.h5.part")


def test_threads_that_read_first(data: Path, monkeypatch: pytest.MonkeyPatch):
    class Slow(h5py.File):
        def __getitem__(self, name):
            time.sleep(0.05)
            return super().__getitem__(name)

    expected, trajectories = Trajectories(data)[:], Trajectories(data)
    monkeypatch.setattr(h5py, "File", Slow)
    with ThreadPoolExecutor(4) as pool:
        for i, x in enumerate(pool.map(trajectories.__getitem__, range(4))):
            assert torch.equal(x, expected[i])


def test_progress_without_a_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    generate(recipe(), tmp_path / "data.h5", progress=True, report=lambda _: None)


def test_another_system(data: Path):
    with pytest.raises(ValueError, match=r"data\.h5 must be of 'lorenz63', but is of 'lorenz96'"):
        Trajectories(data, system="lorenz63")


@pytest.mark.parametrize("name", [*ATTRIBUTES, *SIMULATION])
def test_missing_attribute(copy: Path, name: str):
    with h5py.File(copy, "r+") as file:
        del file.attrs[name]
    message = "its format is None" if name == "format" else rf"copy\.h5 has no attribute '{name}'"
    with pytest.raises(ValueError, match=message):
        Trajectories(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "sda_fast trajectories 2"},
            "its format is 'sda_fast trajectories 2', expected",
        ),
        ({"system": "lorenz64"}, "is of an unknown system, 'lorenz64'"),
        ({"parameters": '{"G": 1}'}, "a parameter of Lorenz96 must be one of n, F, .*, got 'G'"),
        ({"parameters": "{"}, r"parameters of .*copy\.h5 are not JSON"),
        ({"mean": np.zeros(3, np.float32)}, r"mean of .* must be finite, of shape \(40,\)"),
        ({"std": np.full(40, np.nan, np.float32)}, "std of .* must be finite"),
        ({"block": 2}, r"blocks of .* must have shape \(4,\), got \(3,\)"),
    ],
)
def test_wrong_attribute(copy: Path, change: dict, message: str):
    with h5py.File(copy, "r+") as file:
        for name, value in change.items():
            file.attrs[name] = value
    with pytest.raises(ValueError, match=message):
        Trajectories(copy)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((7, 5, 40), ("time", "trajectory", "channel"), "must have dimensions"),
        ((7, 5), ("trajectory", "time"), r"got \('trajectory', 'time'\)"),
        ((7, 0, 40), ("trajectory", "time", "channel"), r"shape \(7, 0, 40\)"),
        (None, (), "has no dataset 'trajectories'"),
    ],
)
def test_wrong_dimensions(copy: Path, shape, labels: tuple[str, ...], message: str):
    with h5py.File(copy, "r+") as file:
        del file["trajectories"]
        if shape is not None:
            file["trajectories"] = np.zeros(shape, np.float32)
            for dim, label in zip(file["trajectories"].dims, labels, strict=True):
                dim.label = label
    with pytest.raises(ValueError, match=message):
        Trajectories(copy)


def test_wrong_type(copy: Path):
    with h5py.File(copy, "r+") as file:
        array = file["trajectories"]
        labels, x = [dim.label for dim in array.dims], array[:]
        del file["trajectories"]
        file["trajectories"] = x.astype(np.float64)
        for dim, label in zip(file["trajectories"].dims, labels, strict=True):
            dim.label = label
    with pytest.raises(ValueError, match="must be float32, got float64"):
        Trajectories(copy)


def test_not_finite(copy: Path):
    with h5py.File(copy, "r+") as file:
        file["trajectories"][3, 2, 1] = np.inf
    data = Trajectories(copy)
    assert data[:3].shape == (3, 5, 40)
    with pytest.raises(ValueError, match=r"trajectories 3 of .*copy\.h5 are not finite"):
        data[3]


def test_another_kind_of_file(tmp_path: Path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"other\.h5 is not a data set: its format is None"):
        Trajectories(tmp_path / "other.h5")


def test_without_h5py(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"need h5py: pip install 'sda-fast\[data\]'"):
        Trajectories(data)


# Splits


@pytest.mark.parametrize("n", [10, 13, 1024])
def test_splits(data: Path, n: int, monkeypatch: pytest.MonkeyPatch):
    """They make up the data set, and none is in another."""
    trajectories = Trajectories(data)
    monkeypatch.setattr(trajectories, "shape", (n, 5, 40))
    parts = [list(trajectories.split(name)) for name in ("train", "valid", "test")]
    assert [i for part in parts for i in part] == list(range(n))
    assert trajectories.split("all") == range(n)
    for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert len(part) == pytest.approx(fraction * n, abs=1)
    assert (
        list(trajectories.split("valid", (0.5, 0.5, 0.0)))
        == list(range(n // 2, n))[-n + round(n / 2) :]
    )


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (4, (3, 1, 0)),
        (5, (3, 1, 1)),
        (6, (4, 1, 1)),
        (7, (5, 1, 1)),
        (8, (6, 1, 1)),
        (9, (7, 1, 1)),
    ],
)
def test_splits_of_a_few(
    data: Path, n: int, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    """None is empty for want of rounding: some validate where some test."""
    trajectories = Trajectories(data)
    monkeypatch.setattr(trajectories, "shape", (n, 5, 40))
    start = 0
    for name, count in zip(("train", "valid", "test"), expected, strict=True):
        if count:
            assert trajectories.split(name) == range(start, start + count)
        else:
            with pytest.raises(ValueError, match=f"the split '{name}' of {n} .* is empty"):
                trajectories.split(name)
        start += count
    with pytest.raises(ValueError, match="the split 'valid'"):
        trajectories.split("valid", (0.8, 0.0, 0.2))


def test_splits_of_many(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Their bounds are the rounded ones."""
    trajectories = Trajectories(data)
    for n in range(8, 200):
        monkeypatch.setattr(trajectories, "shape", (n, 5, 40))
        ends = (0, round(n * 0.8), round(n * (0.8 + 0.1)), n)
        for name, start, stop in zip(("train", "valid", "test"), ends, ends[1:], strict=False):
            assert trajectories.split(name) == range(start, stop)


@pytest.mark.parametrize(
    ("name", "fractions", "message"),
    [
        ("training", (0.8, 0.1, 0.1), "split must be one of train, valid, test or all"),
        ("train", (0.8, 0.1, 0.2), "fractions must be three numbers, none negative, of sum 1"),
        ("train", (1.2, -0.1, -0.1), "fractions must be three numbers"),
        ("train", (0.5, 0.5), "fractions must be three numbers"),
        ("test", (0.9, 0.1, 0.0), "the split 'test' of 7 trajectories by .* is empty"),
    ],
)
def test_bad_splits(data: Path, name: str, fractions: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Trajectories(data).split(name, fractions)


# The command line


def test_command(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("XLA_FLAGS", "")  # which the command would set
    out = tmp_path / "data.h5"
    words = ["simulate", "lorenz96", "--out", str(out)]
    for name, value in SMALL.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    assert main(words) == 0
    assert out.read_bytes() == data.read_bytes()
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()[:2]
    assert first == "lorenz96: 7 trajectories of 5 states (40,), 0.0 MB"
    assert re.fullmatch(r"about \d+ s with 1 worker", second)
    assert captured.out.splitlines()[-1] == f"wrote {out}"
    assert "7/7" in captured.err

    assert main([*words, "--F", "9", "--seed", "5"]) == 1
    assert "of another command: F is 8.0, now 9.0; seed is 4, now 5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--sigma", "9"])


def test_every_system_has_an_own_preprocess_or_none():
    """What the standardisation of a data set relies on."""
    for entry in CATALOGUE.values():
        own = entry.system.postprocess is not MarkovChain.postprocess
        assert own == (entry.system.preprocess is not MarkovChain.preprocess)
