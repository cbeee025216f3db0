"""Composition plans: which windows, and with which weights their rows enter."""

from itertools import pairwise

import pytest
import torch

from sda_fast import Centre, Junction, Plan

RULES = [Centre(1), Centre(2), Centre(4), Junction(3, 1), Junction(3, 2)]
RULES += [Junction(5, 2), Junction(9, 1), Junction(9, 2), Junction(9, 4), Junction(9, 8)]
LENGTHS = [9, 10, 11, 16, 17, 33, 65]


def rows(plan: Plan) -> list[tuple[int, int, tuple[int, ...]]]:
    return list(
        zip(
            plan.start.tolist(),
            plan.length.tolist(),
            map(tuple, plan.weight.tolist()),
            strict=True,
        )
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_state_counts_once(rule: Centre | Junction, length: int):
    """The weights that a state has in all windows sum to one."""
    plan = rule.plan(length)
    total = [0] * length
    for start, _, weight in rows(plan):
        for j, w in enumerate(weight):
            if w != 0:
                total[start + j] += w

    assert total == [1] * length
    assert plan.states == length
    assert plan.start.dtype == plan.length.dtype == torch.int64
    assert plan.weight.dtype == plan.mask.dtype == torch.int8
    assert plan.start.tolist() == sorted(plan.start.tolist())
    assert plan.mask.tolist() == [
        [int(j < size) for j in range(plan.window)] for size in plan.length.tolist()
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_centre(k: int, length: int):
    """All L - 2k windows; the centre of each, and the ends of the first and the last."""
    w = 2 * k + 1
    expected = []
    for start in range(length - 2 * k):
        weight = [0] * w
        weight[k] = 1
        if start == 0:
            weight[:k] = [1] * k
        if start == length - w:
            weight[k + 1 :] = [1] * k
        expected.append((start, w, tuple(weight)))

    assert rows(Centre(k).plan(length)) == expected


@pytest.mark.parametrize("length", [*LENGTHS, 1, 2, 5, 8])
@pytest.mark.parametrize(("w", "stride"), [(3, 1), (3, 2), (5, 2), (9, 1), (9, 4), (9, 8)])
def test_junction(w: int, stride: int, length: int):
    """Windows a stride apart, the last at the end, minus the overlaps of neighbours."""
    size = min(w, length)
    starts = [s for s in range(0, length - size, stride)] + [length - size]
    expected = [(s, size, (1,) * size + (0,) * (w - size)) for s in starts]
    for before, after in pairwise(starts):
        overlap = before + size - after
        expected.append((after, overlap, (-1,) * overlap + (0,) * (w - overlap)))

    assert sorted(rows(Junction(w, stride).plan(length))) == sorted(expected)


@pytest.mark.parametrize(
    ("rule", "windows"),
    [(Centre(2), 61), (Centre(4), 57), (Junction(9, 4), 29), (Junction(9, 2), 57)],
    ids=str,
)
def test_windows_of_65_states(rule: Centre | Junction, windows: int):
    assert len(rule.plan(65)) == windows


def test_millions_of_states():
    """A plan is one pass over its windows, however many."""
    plan = Junction(9, 4).plan(3_000_002)
    rows = plan.start[:, None] + torch.arange(plan.window)
    total = torch.zeros(plan.states + plan.window, dtype=torch.int64)
    total.index_add_(0, rows.flatten(), plan.weight.long().flatten())
    assert bool((total[: plan.states] == 1).all())
    assert not total[plan.states :].any()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_one_window(k: int):
    """With L = 2k + 1 both rules are one window, taken whole."""
    w = 2 * k + 1
    assert rows(Centre(k).plan(w)) == rows(Junction(w, k).plan(w)) == [(0, w, (1,) * w)]


def test_lengths():
    assert Centre(2).plan(20).lengths == [5]
    assert Junction(9, 4).plan(65).lengths == [5, 9]
    assert Junction(9, 4).plan(64).lengths == [5, 6, 9]
    assert Junction(9, 4).plan(7).lengths == [7]


@pytest.mark.parametrize("most", [1, 2, 7, 29, 64, 1000])
@pytest.mark.parametrize("least", [1, 4, 32])
def test_chunks(most: int, least: int):
    """Chunks are the windows in order, of a size between the two bounds, the lower one first."""
    plan = Junction(9, 4).plan(65)
    starts, masks = zip(*plan.chunks(most, least), strict=True)

    assert torch.equal(torch.cat(starts), plan.start)
    assert torch.equal(torch.cat(masks), plan.mask)
    sizes = [len(start) for start in starts]
    assert min(sizes) >= min(least, len(plan))
    if most >= 2 * least:
        assert max(sizes) <= most


def test_padded():
    plan = Junction(5, 2).plan(12)
    padded = plan.padded(9)

    assert padded.window == 9
    assert torch.equal(padded.weight[:, :5], plan.weight)
    assert not padded.weight[:, 5:].any()
    assert torch.equal(padded.length, plan.length)
    assert plan.padded(5) is plan
    with pytest.raises(ValueError, match="windows have 5 states, the network scores at most 3"):
        plan.padded(3)


def test_to():
    plan = Junction(5, 2).plan(12)
    moved = plan.to(torch.device("cpu", 0))  # not equal to "cpu", so that it is made anew
    assert rows(moved) == rows(plan)
    assert moved.states == plan.states
    assert plan.to(torch.device("cpu")) is plan


def test_rules_are_values():
    """Equal rules are equal, so that what is made from them can be kept."""
    assert {Centre(2): 1}[Centre(2)] == 1
    assert {Junction(9, 4): 1}[Junction(9, 4)] == 1
    assert Junction(9, 4) != Junction(9, 2)


# Refusals


@pytest.mark.parametrize(("k", "length"), [(1, 2), (2, 4), (4, 1), (4, 8)])
def test_centre_needs_a_window(k: int, length: int):
    message = rf"at least 2k \+ 1 = {2 * k + 1} states .* k = {k}, got {length}$"
    with pytest.raises(ValueError, match=message):
        Centre(k).plan(length)


@pytest.mark.parametrize("stride", [5, 6, 0, -1])
def test_junction_needs_an_overlap(stride: int):
    """Windows that do not overlap would be taken as independent of each other."""
    message = rf"stride must be at least 1 and less than the window's 5 states, got {stride}"
    with pytest.raises(ValueError, match=message):
        Junction(5, stride)


def test_junction_needs_a_state():
    with pytest.raises(ValueError, match="at least 1 state, got 0"):
        Junction(5, 2).plan(0)


@pytest.mark.parametrize(
    ("start", "length", "weight", "message"),
    [
        ([0, 1], [3], [[1, 1, 1]], r"shapes \(N\), \(N\) and \(N, w\), got \(2,\), \(1,\) and"),
        ([0], [3], [1, 1, 1], r"shapes \(N\), \(N\) and \(N, w\)"),
        ([2, 0], [3, 3], [[1, 1, 1], [1, 1, 1]], "ascending"),
        ([0], [0], [[1, 1, 1]], "length must be between 1 and the window's 3 rows"),
        ([0], [4], [[1, 1, 1]], "length must be between 1 and the window's 3 rows"),
        ([-1], [3], [[1, 1, 1]], "within the trajectory's 5 states"),
        ([3], [3], [[1, 1, 1]], "within the trajectory's 5 states"),
        ([0], [3], [[2, 1, 1]], r"weight must be 0, \+1 or -1"),
        ([0], [2], [[1, 1, 1]], "0 beyond a window's length"),
    ],
)
def test_bad_plan(start, length, weight, message):
    with pytest.raises(ValueError, match=message):
        Plan(5, torch.tensor(start), torch.tensor(length), torch.tensor(weight, dtype=torch.int8))
