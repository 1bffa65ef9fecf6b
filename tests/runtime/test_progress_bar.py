"""Progress bars: lines in a log file."""

import sys

import pytest
from tqdm import tqdm

from bigan_jax.runtime.progress_bar import progress_bar


@pytest.fixture
def work(monkeypatch, capsys):
    """Does 200 steps of some seconds each, by the clock of tqdm; returns the lines on stderr."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def run(seconds_per_step, **options):
        bar = progress_bar(200, "epoch 1", unit="step", **options)
        for _ in range(200):
            now[0] += seconds_per_step
            bar.update()
        bar.close()
        text = capsys.readouterr().err
        assert "\r" not in text and "\x1b" not in text
        return text.splitlines()

    return run


def test_long_work_prints_a_line_per_tenth(work):
    lines = work(60)
    assert len(lines) == 10
    assert lines[0].startswith("epoch 1: step 20 of 200 (10 %), 20:00 elapsed, 3:00:00 left")


def test_lines_are_at_least_half_a_minute_apart(work):
    counts = [line.partition(" (")[0] for line in work(0.5)]  # 100 seconds
    assert counts == [f"epoch 1: step {n} of 200" for n in (60, 120, 180, 200)]


def test_short_work_that_leaves_no_bar_is_silent(work):
    assert work(0.125, leave=False) == []
    assert work(60, disable=True) == []


def test_a_message_does_not_repeat_the_progress(capsys):
    bar = progress_bar(10, unit="step")
    bar.set_description("epoch 7", refresh=False)
    bar.update()
    bar.write("a warning")
    bar.write("an error", file=sys.stderr)
    bar.close()
    printed = capsys.readouterr()
    assert printed.out == "a warning\n"
    assert printed.err.splitlines()[0] == "an error"
    assert printed.err.count("epoch 7: step 1 of 10") == 1


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(3, "images") as bar:
        assert type(bar) is tqdm
    assert "\r" in capsys.readouterr().err
