"""Every code block of the README runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


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


def test_named_files_exist():
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
