"""What benchmarks are reported and compared by, on results made up for it."""

import json

import pytest

from benchmarks import compare, report, results
from benchmarks.probe import Floors


def case(code: str, median: float, spread: float = 0.01, **work):
    times = {"median": median, "q1": median * (1 - spread), "q3": median * (1 + spread)}
    rest = {"min": times["q1"], "max": times["q3"], "rounds": 5}
    return {"group": "mlp forward (2 threads)", "code": code, **times, **rest, **work}


def result(*cases):
    return {
        "format": results.FORMAT,
        "date": "2020-01-01T00:00:00",
        "commit": "0123456789",
        "changed": False,
        "machine": {"processor": "P", "threads": 2, "isa": "avx2", "torch": "2", "compiler": "C"},
        "load": [0.1, 2.0],
        "floors": {
            "float32": 1e11, "float32_one": 5e10, "bfloat16": None, "bfloat16_one": None,
            "copy": 1e10, "copy_one": 1e10,
        },
        "cases": list(cases),
    }  # fmt: skip


def files(tmp_path, *made):
    paths = []
    for n, content in enumerate(made):
        paths.append(str(tmp_path / f"{n}.json"))
        (tmp_path / f"{n}.json").write_text(json.dumps(content))
    return paths


def test_a_regression_is_flagged(tmp_path, capsys):
    paths = files(tmp_path, result(case("native", 1.0)), result(case("native", 1.3)))
    assert compare.main(paths) == 1
    assert "slower   1.30x  mlp forward (2 threads), native: 1.00 s -> 1.30 s" in (
        capsys.readouterr().out
    )
    assert compare.main(paths[::-1]) == 0
    assert compare.main([*paths, "--tolerance", "0.5"]) == 0


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_noise_is_not_flagged(tmp_path, spread):
    """The quartiles overlap, though the median is 30 % more."""
    noisy = result(case("native", 1.0, spread)), result(case("native", 1.3, spread))
    assert compare.main(files(tmp_path, *noisy)) == 0


def test_nothing_in_common(tmp_path):
    paths = files(tmp_path, result(case("native", 1.0)), result(case("eager", 1.0)))
    assert compare.main(paths) == 2


def test_only_results_are_read(tmp_path):
    (path,) = files(tmp_path, {"benchmarks": []})
    with pytest.raises(ValueError, match="must be a file of format"):
        compare.main([path, path])


def test_table():
    """Ratios are of the medians, the floor is that of the faster code's work."""
    work = {"flops": 1e9}
    text = report.table(result(case("eager", 0.08, **work), case("native", 0.02, **work)))
    head, row = text.splitlines()
    assert head.split()[:4] == ["case", "eager", "compiled", "native"]
    assert "80.0 ms" in row
    assert "20.0 ms" in row
    assert "4.00 (3.92-4.08)" in row
    assert row.endswith("50%")


def test_floor():
    floors = Floors("cpu", 2, float32=1e11, bfloat16=2e11, copy=1e10)
    assert floors.seconds(flops=1e9, bytes=1e9) == 0.1
    assert floors.seconds(flops=1e9, bfloat16=True) == 0.005
    assert floors.seconds() is None


def test_page_and_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "PAGE", tmp_path / "performance.md")
    (path,) = files(tmp_path, result(case("eager", 0.08), case("native", 0.02, flops=1e9)))
    text = report.page(results.Path(path))
    assert "0.json](../benchmarks/results/0.json)" in text
    assert "| mlp forward (2 threads) | 80.0 ms |  | 20.0 ms |" in text
    assert (tmp_path / "performance-score-networks.png").stat().st_size > 5000


def test_results_are_never_overwritten(tmp_path):
    paths = [results.save(result(), tmp_path) for _ in range(3)]
    assert len(set(paths)) == 3
    assert results.load(paths[0]) == result()
