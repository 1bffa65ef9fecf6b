"""A short form of benchmarks/soak.py, and that it can lose."""

import pytest

from benchmarks.soak import Sample, compare, soak


def test_a_run_holds_no_more_files_and_memory_as_it_goes_on():
    found = soak(120, runs=1, warm_up=4)
    assert 0 < found.processor[0] < 1
    assert found.files[1] <= found.files[0]
    assert found.memory[1] <= 1.05 * found.memory[0]


@pytest.mark.parametrize("grown", [None, "processor", "memory", "files"])
def test_what_grows_is_seen(grown):
    """On a machine that is slower by a fifth in the end."""
    young = Sample(0.01, 0.02, 10**8, 20)
    more = {name: getattr(young, name) * 1.06 for name in [grown] if name}
    old = young._replace(**more)
    turns = [
        tuple(x._replace(processor=x.processor * slow) for x in (young, old))
        for slow in (1.2, 1.15, 1.2, 1.3, 1.2)
    ]
    assert compare([young] * 5, turns).flat() == (grown is None)
