"""The messages of a training."""

import pytest

from bigan_jax.runtime.progress_bar import progress_bar
from bigan_jax.runtime.stop_signals import StopRequest
from bigan_jax.training.epoch_logger import CompilationNotice, StepMonitor


@pytest.mark.parametrize(("seconds", "words"), [(0.75, []), (42.0, ["Compiled the training step in 42 s."])])
def test_compilation_ends_with_the_first_step(monkeypatch, capsys, seconds, words):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with progress_bar(5) as bar:
        monitor = StepMonitor(bar, 0, 5, StopRequest(), CompilationNotice(bar))
        assert capsys.readouterr().out == "Compiling the training step ...\n"
        now[0] += seconds
        monitor(1, {})
        assert capsys.readouterr().out.splitlines() == words
        now[0] += 60
        monitor(2, {})
    assert capsys.readouterr().out == ""


def test_other_processes_are_silent(capsys):
    with progress_bar(5, disable=True) as bar:
        CompilationNotice(bar).done()
    assert capsys.readouterr().out == ""
