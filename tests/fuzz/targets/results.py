"""Folders of finished runs: evaluation.json, scores.csv, config.json, train.jsonl."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from bigan_jax.commands import compare
from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import read_run, read_scores
from tests.fuzz.mutations import changes, corrupt, replace_tokens, replacements
from tests.helpers.datasets import write_run

FILES = ("evaluation.json", "scores.csv", "config.json", "train.jsonl")


def _seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as home:
        workdir = Path(home) / "run"
        write_run(workdir, ablations=("no_se",), native=0.7)
        return {name: (workdir / name).read_bytes() for name in FILES}


SEEDS = _seeds()
cases = st.tuples(st.sampled_from(FILES), st.just("bytes"), changes) | st.tuples(
    st.sampled_from(FILES), st.just("tokens"), replacements
)
warm = [(name, "bytes", []) for name in FILES]


def attempt(case, folder: Path) -> Iterator[str]:
    name, level, changed = case
    content = SEEDS[name]
    if level == "bytes":
        content = corrupt(content, changed, SEEDS["evaluation.json"])
    else:
        content = replace_tokens(content.decode(), changed).encode("utf-8", "surrogatepass")
    workdir = folder / "runs" / "corrupt"
    workdir.mkdir(parents=True)
    for file, valid in SEEDS.items():
        (workdir / file).write_bytes(content if file == name else valid)
    write_run(folder / "runs" / "valid", seed=1)
    try:
        run = read_run(workdir)
        for score in run.result.scores:
            read_scores(run, score)
    except UserError as error:
        yield str(error)
    with contextlib.redirect_stdout(stdout := io.StringIO()):
        compare.compare([str(folder / "runs" / "*")], folder / "out")
    assert stdout.getvalue().replace("\n", "").isprintable(), stdout.getvalue()
    page = (folder / "out" / "comparison.html").read_text()
    assert "<script" not in page and "\x1b" not in page
    shutil.rmtree(folder / "out")
