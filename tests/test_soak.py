"""A short form of benchmarks/soak.py, and that it can lose."""

import jax
import pytest

from benchmarks.soak import Sample, soak, tenths


def test_a_run_holds_no_more_files_and_memory_as_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    samples = soak(120, tmp_path / "run")
    assert len(samples) == 120
    found = tenths(samples, warm_up=40)
    assert found.files[1] <= found.files[0]
    assert found.memory[1] <= 1.05 * found.memory[0]


@pytest.mark.parametrize("leak", [None, "processor", "memory", "files"])
def test_what_grows_is_seen(leak):
    flat = {"processor": 0.01, "memory": 10**8, "files": 20}
    samples = []
    for epoch in range(2000):
        growth = {name: 1 + (name == leak) * epoch * 3.5e-5 for name in flat}  # 6 % from end to end
        files = flat["files"] + (leak == "files") * epoch // 1000
        spent = (samples[-1].processor if samples else 0) + flat["processor"] * growth["processor"]
        samples.append(Sample(spent, epoch * 0.02, flat["memory"] * growth["memory"], files))
    assert tenths(samples).flat() == (leak is None)
