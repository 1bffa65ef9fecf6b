"""The benchmark of waiting times: instrumented commands, and limits."""

import json
import sys

import pytest

from benchmarks import waiting


@pytest.mark.parametrize("arguments", [("--help",), ("train", "cae:folder", "--data.dirr=x")])
def test_command_without_jax_is_reported(tmp_path, arguments):
    row = waiting.measure_case("case", arguments, tmp_path, tmp_path / "cache")
    assert json.loads((tmp_path / "report").read_text())["compiled"] == row["compiled"] == 0
    assert "import" not in row and row["processor"] > 0
    assert ("output" in row) == (arguments == ("--help",))  # an error is not output


def test_failure_of_command_raises(tmp_path):
    report = tmp_path / "report"
    program = f"import sys; open({str(report)!r}, 'w').write('{{\"import\": 1}}'); sys.exit('no such run')"
    with pytest.raises(RuntimeError, match="no such run"):
        waiting.measure([sys.executable, "-c", program], {}, report)


def test_excess_is_over_the_limit_by_more_than_the_margin():
    rows = [{"name": name, "ratio": ratio} for name, ratio in (("a", 1.1), ("b", 1.2), ("c", 3.0))]
    messages = waiting.excesses(rows, {"a": 1.0, "b": 1.0}, margin=0.15)
    assert [message.partition(":")[0] for message in messages] == ["b", "c"]
    assert waiting.table_row(rows[0]).startswith("| a |") and waiting.table_row(rows[0]).endswith(" 1.10 |")
