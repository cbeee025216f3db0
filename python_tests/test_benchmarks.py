"""What benchmarks are reported and compared by, on results made up for it."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from benchmarks import (
    compare,
    end_to_end,
    figures,
    memory,
    profile,
    report,
    results,
    samples,
    targets,
    text,
    turns,
    workloads,
)
from benchmarks.probe import Floors
from sda_fast import VPSDE, GaussianScore, _native, load_prior, ops, sample

needs_native = pytest.mark.skipif(not _native.available, reason=str(_native.reason))


def case(code: str, median: float, spread: float = 0.01, suite: str = "networks", **work):
    times = {"median": median, "q1": median * (1 - spread), "q3": median * (1 + spread)}
    rest = {"min": times["q1"], "max": times["q3"], "rounds": 5, "suite": suite, "threads": 2}
    return {"group": "MLP forward (2 threads)", "code": code, **times, **rest, **work}


def result(*cases):
    machine = {"processor": "P", "threads": 2, "isa": "avx2", "torch": "2", "compiler": "C"}
    return {
        "format": results.TIMINGS,
        "date": "2020-01-01T00:00:00",
        "commit": "0123456789",
        "changed": False,
        "machine": machine,
        "load": [0.1, 2.0],
        "floors": asdict(Floors("cpu", 2, 1e11, 5e10, copy=1e10, copy_one=1e10, clock=2e9)),
        "cases": list(cases),
    }


def lengths(*rows):
    made = [
        {"code": code, "length": n, "seconds": 1e-3 * n**p, "resident": 10**8 + b * n}
        for code, n, p, b in rows
    ]
    return {**result(), "format": results.MEMORY, "rows": made}


def files(tmp_path, *made):
    paths = []
    for n, content in enumerate(made):
        paths.append(str(tmp_path / f"{n}.json"))
        (tmp_path / f"{n}.json").write_text(json.dumps(content))
    return paths


def test_a_regression_is_flagged(tmp_path, capsys):
    paths = files(tmp_path, result(case("native", 1.0)), result(case("native", 1.3)))
    assert compare.main(paths) == 1
    assert "slower   1.30x  MLP forward (2 threads), native: 1.00 s -> 1.30 s" in (
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
    """Ratios are of the medians, the floor is that of the native code's work; columns that would be
    empty are left out."""
    work = {"flops": 1e9, "bytes": 1e6}
    made = result(case("eager", 0.08, **work), case("native", 0.02, **work))
    head, row = report.table(results.groups(made), made["floors"])
    assert head.split("  ")[0] == "case"
    assert "compiled" not in head
    assert "80.0 ms" in row
    assert "20.0 ms" in row
    assert "4.00 (3.92-4.08)" in row
    assert "1.00 GFLOP, 1.00 MB" in row
    assert row.split("  ")[-2:] == ["10.0 ms", "50%"]

    half = case("native bfloat16", 0.02, bfloat16=True, **work)
    made = result(case("sda", 0.09, **work), case("native", 0.02, **work), half)
    made["floors"]["bfloat16"] = 4e11
    _, row = report.table(results.groups(made), made["floors"])
    assert "sda 90.0 ms, native bfloat16 20.0 ms (12%)" in row


def test_floor():
    floors = Floors("cpu", 2, float32=1e11, bfloat16=2e11, copy=1e10, copy_one=5e9)
    assert floors.seconds(flops=1e9, bytes=1e9) == 0.1
    assert floors.seconds(flops=1e9, bfloat16=True) == 0.005
    assert floors.seconds() is None
    kept = asdict(floors)
    assert results.floor({"bytes": 1e9, "threads": 2}, kept) == 0.1
    assert results.floor({"bytes": 1e9, "threads": 1}, kept) == 0.2
    assert results.floor({"flops": 1e9, "threads": 2, "bfloat16": True}, kept) == 0.005
    assert results.floor({}, kept) is None
    # where a rate was not measured, that of float32 and of a copy; else its own
    rounded, changed = {"flops": 1e9, "code": "native tf32"}, {"bytes": 1e9, "in_place": True}
    assert [results.floor(c, kept) for c in (rounded, changed)] == [0.01, 0.1]
    kept |= {"tf32": 4e11, "update": 2e10}
    assert [results.floor(c, kept) for c in (rounded, changed)] == [0.0025, 0.05]


def test_page_and_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "PAGE", tmp_path / "performance.md")
    sample = {"suite": "lorenz63", "threads": 2}
    batches = [
        case(code, batch * s, **sample)
        | {"group": f"Lorenz-63 posterior, B = {batch}, C = 1 (2 threads)"}
        for code, s in (("eager", 0.04), ("native", 0.01))
        for batch in (1, 16)
    ]
    made = result(case("eager", 0.08), case("native", 0.02, flops=1e9))
    growth = [("native", n, 1, 100) for n in (65, 10**3, 10**4, 10**5)]
    step = {"batch": 1, "count": 9, "copies": 0.0, "busy_us": 30.0, "waiting_us": 4.0}
    timed = [
        {"group": "gather, large, float32", "code": "native", "median": 1e-3, "bytes": 9e6},
        {"group": "gather, small, float32", "code": "native", "median": 1e-6, "bytes": 9e3},
        {"group": "gather, large, float32", "code": "eager", "problem": "out of memory"},
    ]
    gpu = {**made, "format": results.GPU, "cases": timed, "profile": [step]}
    gpu["machine"] = {**made["machine"], "device": "G"}
    parts = {"native": 0.5, "products": 0.25, "torch": 0.2, "between": 0.05}
    row = case("native", 0.02, flops=1e9) | {"shares": parts, "operators": 11.4}
    where = {**made, "format": results.PROFILE, "rows": [row]}
    older = result(case("eager", 0.05), case("native", 0.01))
    older["machine"] = {**older["machine"], "processor": "Q"}
    paths = files(tmp_path, made, lengths(*growth), gpu, result(*batches), where, older)
    first, length, device, last, times, other = map(results.Path, paths)
    text = report.page([first, last, other], times, length, device)
    networks, samples = text.index("## Window networks"), text.index("## Samples of L")
    assert text.index("[3.json](../benchmarks/results/3.json)", samples) < networks
    assert text.index("[0.json](../benchmarks/results/0.json)", networks)
    assert "| MLP forward (2 threads) | 80.0 ms | 20.0 ms | 4.00 (3.92-4.08) |" in text
    assert "| MLP forward (2 threads) | 50.0 ms | 10.0 ms | 5.00 (4.90-5.10) |" in text
    assert networks < text.index("### On Q (avx2)") < text.index("5.00 (4.90-5.10)")
    assert "by 100 bytes a state" in " ".join(text.split())
    assert "| gather, large, float32 | 1.00 ms | 9.00 MB | 900 µs | 90% |" in text
    assert "gather, small" not in text
    shares = "native | 20.0 ms | 50% | 25% | 20% | 5% | 11 | 1.00 GFLOP | 50% |"
    assert f"| MLP forward (2 threads) | {shares}" in text
    aim = "native | 4 times eager | 4.00 (3.92-4.08) | yes |"
    assert f"| Lorenz-63 posterior, B = 16, C = 1 (2 threads) | {aim}" in text
    assert "B = 1: 9 kernels, 0.0 copies, 30 us busy, 4 us waiting" in text
    for name in ("networks", "lorenz63", "batches", "length"):
        assert (tmp_path / f"performance-{name}.png").stat().st_size > 5000


def test_targets():
    """What is reached, what the scatter leaves open, and what the floor allows."""
    name = "MLP vjp, width 256, B = 128"
    made = result(
        *(
            case(code, s, 0.1, flops=1e9) | {"group": f"{name} (2 threads)"}
            for code, s in (("eager", 0.03), ("native", 0.012), ("native bfloat16", 0.0055))
        ),
        case("eager", 0.3) | {"group": f"{name}0 (2 threads)"},
    )
    made["floors"]["bfloat16"] = 2e11
    lines = targets.table({"networks": made})[2:]
    assert lines == [
        f"| {name} (2 threads) | native | 4 times eager | 2.50 (2.05-3.06) | no | 3.00 |",
        f"| {name} (2 threads) | native bfloat16 | 6 times eager | 5.45 (4.46-6.67) | "
        "within the scatter | 6.00 |",
        f"| {name} (2 threads) | native | 80% of the floor | 83% | yes |  |",
    ]


def test_every_target_is_measured():
    """The page has a row of each."""
    lines = results.ROOT.joinpath("docs", "performance.md").read_text().splitlines()
    for target in targets.TARGETS:
        share = target.other == "floor"
        aim = f"{target.least:.0%} of the" if share else f"{target.least:g} times"
        aim = f"| {target.code} | {aim} {target.other} |"
        rows = [line for line in lines if line.startswith(f"| {target.case} (") and aim in line]
        assert len(rows) == 1, target


@needs_native
def test_where_the_time_goes():
    """Each operator's time is that of its kind, and all of it is some part's."""
    x, weight = torch.randn(64, 512), torch.randn(512, 512)

    def products() -> None:
        for _ in range(20):
            x @ weight

    def others() -> None:
        for _ in range(200):
            torch.tanh(x)

    def python() -> None:
        sum(range(10**6))

    def native() -> None:
        for _ in range(20):
            ops.philox_normal_(torch.empty(1, 10**5), seed=1, step=0)

    runs = {"products": products, "torch": others, "between": python, "native": native}
    for name, run in runs.items():
        found = profile.attribute(run, 0.02)
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert max(found["shares"], key=found["shares"].__getitem__) == name
    assert profile.attribute(products, 0.02)["operators"] == 20
    work = workloads.time_score(1).work("vjp")
    with work.within():
        shares = profile.attribute(work.runs["native"], 0.01)["shares"]
    assert min(shares["native"], shares["products"]) > 0.02


def test_shared_end():
    """Names lose no part of a word, and one alone is all of it."""
    names = ["MLP, B = 1 (2 threads)", "U-Net, B = 11 (2 threads)"]
    assert figures.shared_end(names) == "(2 threads)"
    assert figures.shared_end(names[:1]) == names[0]
    assert figures.shared_end(["a", "b"]) == ""


def test_exponents():
    """Of power laws they are those that they were made with."""
    n = [10.0, 100.0, 1000.0]
    assert memory.exponent(n, [3 * x**1.5 for x in n]) == pytest.approx(1.5)
    (law,) = memory.laws(lengths(*(("native", m, 2, 8) for m in (65, 100, 1000, 10000))))
    assert "time grows as L^2.00, memory above that of 65 states as L^1.0" in law


def test_table_of_lengths():
    """Of what did not come so far the cell is empty."""
    rows = [("native", n, 1, 100) for n in (65, 1000)] + [("compiled", 65, 1, 200)]
    head, _, *body = memory.table(lengths(*rows))
    assert head == (
        "| states | native, s a step | compiled, s a step | native, peak MB | compiled, peak MB |"
    )
    assert body == ["| 65 | 0.065 | 0.065 | 100 | 100 |", "| 1,000 | 1 |  | 100 |  |"]


def test_results_are_never_overwritten(tmp_path):
    paths = [results.save(result(), tmp_path) for _ in range(3)]
    assert len(set(paths)) == 3
    assert results.load(paths[0]) == result()
    with pytest.raises(ValueError, match="must be a file of format 'sda_fast memory 1'"):
        results.load(paths[0], results.MEMORY)


class Clock:
    """Tells how often it was asked."""

    ticks = 0

    def __call__(self):
        self.ticks += 1
        return self.ticks


@pytest.mark.parametrize("code", ["eager", "native", "native tf32", "native bfloat16"])
def test_precision_of_a_code(code):
    """Of convolutions on CUDA too, which by default are of TF32."""

    def told():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = told()
    with turns.precision(code):
        assert told()[1] is (told()[0] != "highest") is (turns.suffix(code) in turns.PRECISION)
    assert told() == before


def test_codes_take_turns():
    """In each round each code is called once; one that fails or differs is left out, with why."""
    order: list[str] = []
    runs = {c: (lambda c=c: order.append(c)) for c in ("eager", "native", "wrong", "broken")}

    def error(code: str) -> float:
        if code == "broken":
            raise RuntimeError("broken")
        return {"eager": 0.0, "native": 1e-6, "wrong": math.nan}[code]

    measured = turns.take_turns(turns.Work(runs, error), list(runs), Clock(), 0.0, 3)
    assert measured.times == {"eager": [1, 1, 1], "native": [1, 1, 1]}
    assert order[-6:] == ["eager", "native"] * 3
    assert str(measured.problems["broken"]) == "broken"
    assert "the error of wrong must be at most 0.0001, but is nan" in str(
        measured.problems["wrong"]
    )


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 9), (5, 3), (50, 2)])
def test_a_long_call_is_timed_a_few_times(seconds: int, rounds: int):
    clock, order = Clock(), []

    def run(code: str) -> None:
        order.append(code)
        clock.ticks += seconds

    def error(code: str) -> float:
        order.append(f"{code} compared")
        return 0.0

    work = turns.Work({code: partial(run, code) for code in ("eager", "native")}, error)
    measured = turns.take_turns(work, ["eager", "native"], clock, 0.0, 9)
    assert measured.times == {code: [seconds + 1] * rounds for code in ("eager", "native")}
    first = order[: order.index("native compared") + 1]
    assert first == ["eager compared", *["eager"] * (1 + (seconds == 0)), "native compared"]
    # which then is the warm-up
    assert (order[len(first)] == "native") == (seconds == 0)


def test_rounds_are_told_again():
    replay = turns.Replay()
    replay.load([0.5, 0.25])
    assert [-(replay() - replay()) for _ in range(2)] == [0.5, 0.25]


@needs_native
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "problem", [samples.lorenz63(16), samples.kolmogorov(8, (4, 8))], ids=["lorenz63", "flow"]
)
def test_samples_are_compared(problem, guided):
    """All that is timed draws the same samples from the same noise, in as many evaluations."""
    work = samples.sampling_work(problem, 2, 2, 1, guided=guided, compiler="eager", peers=True)
    for code in work.runs.keys() - {"compiled"}:  # what takes seconds
        with turns.precision(code):
            work.check(code)
    assert work.flops > 0


@needs_native
def test_samples_by_moments_are_compared():
    """With the reference's, and azula's where it is there."""
    work = samples.moments_work(samples.lorenz63(16), 2, 2, 1)
    for code in work.runs:
        with turns.precision(code):
            work.check(code)
    assert work.flops > 0


@needs_native
@pytest.mark.parametrize("kind", ["forward", "vjp"])
@pytest.mark.parametrize(
    "score",
    [workloads.mlp_score(2, 16), workloads.unet_score(8, (4, 8)), workloads.time_score(2)],
    ids=["MLP", "U-Net", "over time"],
)
def test_networks_are_compared(score, kind):
    work = score.work(kind, compiler="eager")
    for code in work.runs.keys() - {"compiled"}:  # what takes seconds
        with turns.precision(code):
            work.check(code)
    assert work.flops > 0
    assert work.bytes > work.runs["eager"]().nbytes


@needs_native
def test_suites_run():
    """One case of each suite, called once."""
    chosen = "guide_predictor_-small or training and eager-64 or -256-1-native or prior-1-1-native"
    options = ["-m", "not slow", "-p", "no:cacheprovider", "--benchmark-disable", "-q"]
    command = [sys.executable, "-m", "pytest", str(report.ROOT / "benchmarks"), *options]
    done = subprocess.run(
        [*command, "-k", f"({chosen}) and not bfloat16 and not objects"],
        cwd=report.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "6 passed" in done.stdout


def test_ratio_of_what_was_disturbed():
    """It is no number where the quartiles lie far apart."""
    fast = {"median": 1.0, "q1": 0.9, "q3": 1.1}
    steady, wild = {"median": 2.0, "q1": 1.9, "q3": 2.2}, {"median": 6.0, "q1": 2.0, "q3": 7.2}
    assert text.ratio(steady, fast) == "2.00 (1.73-2.44)"
    assert text.ratio(wild, fast) == "1.82 to 8.00"
    assert not text.disturbed({"eager": steady, "native": fast})
    assert text.disturbed({"eager": steady, "compiled": wild, "native": fast})
    assert not text.disturbed({"eager": steady, "compiled": wild})


def test_pytest_benchmark_s_numbers_are_kept():
    made = result(case("native", 0.5))
    (kept,) = made["cases"]
    ours = {key: value for key, value in made.items() if key != "cases"}
    times = {key: kept[key] for key in ("median", "q1", "q3", "min", "max", "rounds")}
    extra = {"suite": "networks", "code": "native", "threads": 2, "flops": 5, "bytes": 0}
    benchmark = {"group": kept["group"], "stats": {**times, "mean": 1.0}, "extra_info": extra}
    content = {"machine_info": {"sda_fast": ours}, "benchmarks": [benchmark]}
    assert results.convert(content) == {**ours, "cases": [{**kept, "flops": 5}]}


# A posterior from start to end


def test_end_to_end(monkeypatch):
    """Presets are timed whole, the published recipe's time is scaled to all of its steps."""
    ticks = iter(range(100))
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(end_to_end.time, "process_time", lambda: 0.0)
    monkeypatch.setattr(end_to_end, "eager", lambda y, members, steps: lambda: None)
    monkeypatch.setattr(end_to_end, "native", lambda name, y, members: lambda: None)
    times = end_to_end.measure(members=2, steps=2, rounds=1)
    assert times["published, eager"] == [(128, 0)]
    assert times["fast"] == [(1, 0)]

    text = end_to_end.table({"published, eager": [(500.0, 900.0)], "fast": [(4.0, 8.0)]})
    assert "| fast | 4.00 s | 125 | 8.00 s | 112 |" in text


@needs_native
def test_published_recipe_is_the_samplers(monkeypatch):
    """What is timed as the published recipe draws what `sample` draws by the preset."""
    y, x1 = end_to_end.observation(), torch.randn(2, end_to_end.LENGTH, 3)
    monkeypatch.setattr(torch, "randn", lambda *shape: x1)
    monkeypatch.setattr(end_to_end, "PUBLISHED", replace(end_to_end.PUBLISHED, corrections=0))
    x = end_to_end.eager(y, 2, 2)()

    prior = load_prior("lorenz63", length=end_to_end.LENGTH)
    guided = GaussianScore(y, end_to_end.observe, end_to_end.STD, prior, gamma=end_to_end.GAMMA)
    expected = sample(VPSDE(guided, prior.shape), (2,), steps=2, x1=x1)
    assert float((x - expected).abs().max()) < 1e-3 * float(expected.abs().max())
