"""Every code block of the README runs, and of the pages that need no file of the reader's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(README)


def test_every_block_has_a_test():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python(code: str):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "line",
    [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()],
)
def test_shell(line: str):
    # CI runs `make test` itself, and test_demo the command behind `make demo`
    assert shutil.which("make")
    subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "page", ["evaluation", "front", "guidance", "observation", "sampling", "systems"]
)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From its first block to its last, one after the other, but for those that read a simulation
    of hours."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, code in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text()):
        if language == "python" and "kolmogorov.h5" not in code:
            exec(compile(code, f"{page}.md", "exec"), names)
    assert names


def test_named_files_exist():
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
