"""The report of all studies, and the study of scaling, in small."""

import math
from types import SimpleNamespace

import pytest
import torch

from experiments import scaling, study
from experiments.lorenz import report


def test_page_has_a_place_for_every_study():
    page = report.PAGE.read_text()
    for name in report.STUDIES:
        assert report.replace_block(page, name, "") != ""
        text = page.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
        for line in text.splitlines():
            if line.startswith("!["):
                image = line.rsplit("(", 1)[1].rstrip(")")
                assert (report.PAGE.parent / image).exists()


def test_replace_block():
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    once = report.replace_block(page, "x", "new")
    assert once == "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb"
    assert report.replace_block(once, "x", "new") == once
    for bad in ("", page + page, "<!-- end x --><!-- begin x -->"):
        with pytest.raises(ValueError, match="once each, in this order"):
            report.replace_block(bad, "x", "new")


@pytest.fixture
def one_study(monkeypatch):
    """A report of one study, which says what it was asked."""

    def run(out, profile, device):
        figure, _ = study.panels(1, 1)
        out.mkdir(parents=True, exist_ok=True)
        return study.write(out, "x", f"{profile} on {device}", figure)

    module = SimpleNamespace(run=run, QUICK="quick", FULL="full", __doc__="What it is.\n\nMore.")
    monkeypatch.setattr(report, "STUDIES", {"x": "some.module"})
    monkeypatch.setattr(report, "import_module", {"some.module": module}.get)


def test_report(tmp_path, one_study):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin x --><!-- end x -->\nafter\n")
    report.report(tmp_path / "runs", page, ["x"], full=False)
    text = page.read_text()
    assert "\nquick on cpu\n\n![What it is.](figures/x.png)\n" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert (tmp_path / "figures" / "x.png").stat().st_size > 0


def test_only_full_writes_into_the_page_of_docs(tmp_path, one_study, monkeypatch):
    page = tmp_path / "docs" / "evaluation.md"
    page.parent.mkdir()
    page.write_text("<!-- begin x -->\n<!-- end x -->")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr("sys.argv", ["report", "--quick"])
    report.main()
    assert "on cpu" not in page.read_text()
    text = (tmp_path / "runs" / "quick" / "evaluation.md").read_text()
    assert "## What it is.\n" in text
    assert "\nquick on cpu\n\n![What it is.](figures/x.png)\n" in text
    assert (tmp_path / "runs" / "quick" / "figures" / "x.png").exists()

    monkeypatch.setattr("sys.argv", ["report", "--full"])
    report.main()
    assert "\nfull on cpu\n" in page.read_text()
    assert (tmp_path / "runs" / "x" / "x.png").exists()


def test_blank_page_has_a_place_for_every_study():
    page = report.blank_page()
    for name in report.STUDIES:
        assert report.replace_block(page, name, "found") != page


def test_exponent():
    records = [{"varied": "B", "B": n, "seconds": 2 * n**1.5, "side": 0} for n in (1, 8, 16, 32)]
    assert scaling.exponent(records, "seconds") == pytest.approx(1.5)
    records = [{"varied": "side", "side": n, "seconds": n**2} for n in (8, 16, 32)]
    assert scaling.exponent(records, "seconds") == pytest.approx(1)  # in cells of the field
    records = [{"varied": "C", "C": n, "seconds": 0.0, "side": 0} for n in (0, 1, 3)]
    assert scaling.exponent(records, "seconds") is None


@pytest.mark.parametrize(
    "cell", [scaling.Cell("k", L=9, B=2, k=1), scaling.Cell("side", L=5, B=1, k=1, D=2, side=8)]
)
def test_measure(cell):
    record = scaling.measure(cell)
    assert record["seconds"] > 0
    assert math.isfinite(record["megabytes"])


def test_memory_is_not_the_parents():
    """A process of its own starts from its own memory, however large this one is."""
    large = torch.ones(10**8)
    record = scaling.evaluate(scaling.Cell("k", L=9, B=2, k=1))
    assert len(large) == 10**8
    assert record["megabytes"] > 1


def test_scaling_tables():
    cells = list(scaling.cells(scaling.QUICK))
    records = [vars(cell) | {"seconds": 0.1, "megabytes": 1.0} for cell in cells]
    text = scaling.tables(records)
    for name in scaling.LABELS.values():
        assert f"| {name} |" in text
    scaling.draw_figure(records)
