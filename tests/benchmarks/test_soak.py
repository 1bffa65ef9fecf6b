"""Tests of benchmarks/soak.py: a short run, and the detection of growth."""

import pytest

from benchmarks.soak import Sample, compare, soak


def test_files_and_memory_do_not_grow():
    ends = soak(120, runs=1, warm_up=4)
    assert 0 < ends.processor[0] < 1
    assert ends.files[1] <= ends.files[0]
    assert ends.memory[1] <= 1.05 * ends.memory[0]


@pytest.mark.parametrize("growing", [None, "processor", "memory", "files"])
def test_growth_is_detected(growing):
    """On a machine that is a fifth slower at the end."""
    young = Sample(0.01, 0.02, 10**8, 20)
    grown = {name: getattr(young, name) * 1.06 for name in [growing] if name}
    old = young._replace(**grown)
    pairs = [
        tuple(x._replace(processor=x.processor * slow) for x in (young, old)) for slow in (1.2, 1.15, 1.2, 1.3, 1.2)
    ]
    assert compare([young] * 5, pairs).is_flat() == (growing is None)
