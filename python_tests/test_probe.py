"""The peak rates that benchmarks are held against: no less than what torch reaches, and no more
than a core can do."""

from dataclasses import replace
from time import perf_counter

import pytest
import torch

from benchmarks import probe


@pytest.fixture(scope="module")
def floors():
    found = probe.measure(quick=True)
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


def test_a_matrix_product_stays_below_the_peak(floors):
    a, b = torch.randn(2, 768, 768)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(8):
            began = perf_counter()
            a @ b
            seconds.append(perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    assert 2 * 768**3 / min(seconds) < 1.05 * floors.float32_one


def test_a_core_does_what_its_width_allows(floors):
    """More than a number in a cycle, and products of bfloat16 at half the rate at least."""
    assert 4 <= floors.float32_one / floors.clock <= 64
    if floors.bfloat16_one is not None:
        assert floors.bfloat16_one > 0.5 * floors.float32_one


@pytest.mark.parametrize("name", probe.MOST)
def test_nonsense_is_refused(floors, name):
    """Twelve equal sums that a compiler does once would be counted twelve times."""
    wrong = replace(floors, **{name: 12 * getattr(floors, name) if getattr(floors, name) else 9e99})
    with pytest.raises(ArithmeticError, match=f"{name} must be at most"):
        probe.checked(wrong)


def test_copies_are_no_faster_than_memory_can_be(floors):
    """A core reads and writes less than 64 bytes a cycle beyond its caches."""
    assert 0 < floors.copy_one < 64 * floors.clock
