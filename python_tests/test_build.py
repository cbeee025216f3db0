"""The build, in scratch environments: what it asks for, what it makes, and where."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).parent
SITE = TORCH.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "backend").is_dir(), reason="there is no source tree beside the tests"
)
needs_builder = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("scikit_build_core", "pybind11", "pip")),
    reason="needs scikit-build-core, pybind11 and pip",
)


# What a build of the tests' own environment was told is not for these.
INHERITED = {name: v for name, v in os.environ.items() if not name.startswith("SDA_FAST_")}


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command and returns all that it wrote."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**INHERITED, "SDA_FAST_CUDA": "OFF", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        | (env or {}),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Environment:
    """A virtual environment, and whether torch is "installed" in it: linked, not copied."""

    def __init__(self, path: Path, *, with_torch: bool, with_pip: bool = False) -> None:
        venv.create(path, with_pip=with_pip, symlinks=True)
        self.python = path / "bin" / "python"
        scheme = {"base": str(path), "platbase": str(path)}
        self.site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
        if with_torch:
            for package in [TORCH, *SITE.glob("torch-*.dist-info")]:
                (self.site / package.name).symlink_to(package)


HOOK = """
import sys, types
build = types.ModuleType("scikit_build_core.build")
for name in ("build_sdist", "build_wheel", "build_editable", "get_requires_for_build_sdist",
             "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel"):
    setattr(build, name, lambda *args: args)
build.get_requires_for_build_wheel = build.get_requires_for_build_editable = lambda s: ["ninja"]
package = types.ModuleType("scikit_build_core")
package.build = build
sys.modules |= {"scikit_build_core": package, "scikit_build_core.build": build}

# an isolated build sees nothing of the environment on sys.path
sys.path = [p for p in sys.path if "site-packages" not in p]
sys.path.insert(0, sys.argv[1])
import sda_fast_backend as backend
print(backend.get_requires_for_build_wheel())
print(backend.get_requires_for_build_editable())
print(backend.build_wheel("out", {"a": "b"})[1])
"""


def hook(environment: Environment, **env: str) -> list[str]:
    """Returns what the backend says there, with scikit-build-core replaced by an echo."""
    return run(environment.python, "-c", HOOK, ROOT / "backend", env=env).splitlines()


def test_torch_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    wheel, editable, settings = hook(Environment(tmp_path, with_torch=False))
    assert wheel == editable == "['ninja', 'torch>=2.11']"
    assert settings == "{'a': 'b', 'cmake.define.SDA_FAST_CUDA': 'OFF'}"


def test_torch_is_not_asked_for_where_it_is(tmp_path: Path) -> None:
    wheel, editable, settings = hook(Environment(tmp_path, with_torch=True))
    assert wheel == editable == "['ninja']"
    assert f"'cmake.define.SDA_FAST_TORCH': '{TORCH}'" in settings


def test_torch_may_be_named(tmp_path: Path) -> None:
    environment = Environment(tmp_path, with_torch=False)
    wheel, _, settings = hook(environment, SDA_FAST_TORCH=str(TORCH))
    assert wheel == "['ninja']"
    assert f"'cmake.define.SDA_FAST_TORCH': '{TORCH}'" in settings
    with pytest.raises(AssertionError, match=r"not the folder of a torch >= 2\.11"):
        hook(environment, SDA_FAST_TORCH=str(tmp_path))


# The builds

USE = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
import sda_fast
from sda_fast import _native, ops
assert _native.available, _native.reason
assert _native.info()["version"] == sda_fast.__version__, (_native.info(), sda_fast.__version__)
assert not _native.info()["cuda"]
x = torch.ones(2, 3)
with ops.backend("native"):
    ops.langevin_(x, torch.ones(2, 3), 0.1, 0.5, seed=0, step=0)
print(sda_fast.__file__)
print(sys.modules["sda_fast._C"].__file__)
"""


def check_wheel(wheel: Path, scratch: Path) -> None:
    """Checks what a wheel holds, and imports it from where it is unpacked."""
    folder = scratch / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(folder)

    assert wheel.stat().st_size < 10e6 + sum(w.stat().st_size for w in weights())
    check_files(name.removeprefix("sda_fast/") for name in names if name.startswith("sda_fast/"))
    assert all(name.startswith(("sda_fast/", "sda_fast-")) for name in names), names
    assert not any("emulate" in name or name.endswith((".cpp", ".cu", ".h")) for name in names)
    assert sum(name.endswith((".so", ".dylib")) for name in names) == 1, names

    # without -S, an editable install of this environment would be found first
    *_, package, library = run(sys.executable, "-S", "-c", USE, folder, SITE, cwd=scratch).split()
    assert Path(package).is_relative_to(folder)
    assert Path(library).is_relative_to(folder)


def weights() -> list[Path]:
    return list((ROOT / "sda_fast" / "weights").glob("*.safetensors"))


def check_files(names: Iterable[str]) -> None:
    """Checks that a list of the package's files has all of its sources, stubs and weights."""
    package = ROOT / "sda_fast"
    expected = [*package.rglob("*.py"), *package.glob("*.pyi"), package / "py.typed", *weights()]
    missing = {str(path.relative_to(package)) for path in expected} - set(names)
    assert not missing


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made by the backend in this environment."""
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; sys.path.insert(0, 'backend'); import sda_fast_backend as b; "
    run(sys.executable, "-c", code + "print(b.build_sdist(sys.argv[1]))", folder, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@needs_builder
def test_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    check_files(name.removeprefix("sda_fast/") for name in names if name.startswith("sda_fast/"))
    for name in ("pyproject.toml", "CMakeLists.txt", "LICENSE", "csrc/library.cpp"):
        assert name in names
    assert "backend/sda_fast_backend.py" in names
    assert not any(name.endswith((".so", ".o")) for name in names)


@pytest.mark.slow
@needs_builder
def test_wheel(sdist: Path, tmp_path: Path) -> None:
    """`pip install` of what is distributed, beside an installed torch: nothing of torch is
    downloaded. The build is isolated where a package index answers."""
    environment = Environment(tmp_path / "env", with_torch=True, with_pip=True)
    pip = ["-m", "pip", "wheel", "-v", "--no-deps", "-w", tmp_path]
    try:
        log = run(environment.python, *pip, sdist, cwd=tmp_path)
    except AssertionError as error:
        if "No matching distribution found for scikit-build-core" not in str(error):
            raise
        log = run(sys.executable, *pip, "--no-build-isolation", sdist, cwd=tmp_path)
    assert "Collecting torch" not in log
    assert "Downloading torch" not in log
    check_wheel(next(tmp_path.glob("*.whl")), tmp_path)


@pytest.mark.slow
@needs_builder
def test_editable(tmp_path: Path) -> None:
    """An install for developers, without isolation, and unoptimised: that compiles in less time."""
    environment = Environment(tmp_path / "env", with_torch=False, with_pip=True)
    (environment.site / "outer.pth").write_text(f"{SITE}\n")
    pip = [environment.python, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    settings = {"build-dir": tmp_path / "build", "cmake.build-type": "Debug"}
    config = [f"--config-settings={name}={value}" for name, value in settings.items()]
    run(*pip, *config, "-e", ROOT, cwd=tmp_path)
    *_, package, library = run(environment.python, "-c", USE, cwd=tmp_path).split()
    assert Path(package) == ROOT / "sda_fast" / "__init__.py"
    assert Path(library).is_relative_to(environment.site)
