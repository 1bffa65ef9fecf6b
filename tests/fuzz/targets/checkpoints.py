"""Folders of trained runs: checkpoints, and the JSON files next to them."""

import atexit
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from bigan_jax.commands.build import build
from bigan_jax.commands.load import load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import fcae
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation.calibrated_score import PixelStatistics, write_statistics
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.runtime.files import write_json
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.saving.train_log import read_train_log
from tests.fuzz.mutations import changes, corrupt, replace_tokens, replacements
from tests.helpers.datasets import evaluation_content

TRAIN_LOG = '{"epoch": 1, "phase": "phase1", "seconds": 1.0, "reconstruction/loss": 0.5}\n'


def _make() -> tuple[Path, list[list[np.ndarray]]]:
    """A folder with two checkpoints of a small detector, and the arrays of both."""
    home = Path(tempfile.mkdtemp(prefix="bigan_jax-fuzz-seed-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (workdir := home / "run").mkdir()
    config = fcae.get_config("phantom")
    with config.unlocked():
        config.model.hidden, config.data.image_size = (4, 2), 16
        config.score.standardize = True
    settings = parse_settings(config)
    built, shape = build(settings, 2, 1), settings.data.image_shape
    state = jax.jit(lambda: init_state(built.detector, built.optimizers, 0, shape))()
    checkpoints, saved = CheckpointManager(workdir), []
    for epoch in 1, 2:
        state = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        checkpoints.save(Progress(epoch, train_log=TRAIN_LOG), state)
        saved.append(_arrays(state))
    checkpoints.close()
    write_json(workdir / "config.json", config.to_dict())
    evaluation = evaluation_content(conditions=["bottle", "leaf"], steps=int(state.step))
    write_json(workdir / "evaluation.json", evaluation)
    write_statistics(workdir, PixelStatistics(*np.full((2, *shape[:2]), 0.5, np.float32)))
    (workdir / "train.jsonl").write_text(TRAIN_LOG)
    return workdir, saved


def _arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


WORKDIR, SAVED = _make()
FILES = sorted(p.relative_to(WORKDIR).as_posix() for p in WORKDIR.rglob("*") if p.is_file())
TEXTS = [name for name in FILES if "/" not in name and not name.endswith(".npy")]
_any, _big = st.sampled_from(FILES), st.integers(0, 2**32 - 1)
cases = st.one_of(
    st.tuples(st.just("corrupt"), st.lists(st.tuples(_any, changes), min_size=1, max_size=3)),
    st.tuples(st.just("tokens"), st.tuples(st.sampled_from(TEXTS), replacements)),
    st.tuples(st.just("copied"), st.tuples(_any, _any)),
    st.tuples(st.just("removed"), st.lists(_any, min_size=1, max_size=4)),
    st.tuples(st.just("linked"), st.tuples(_any, st.booleans())),
)
warm = [("corrupt", []), ("removed", [FILES[0]]), ("corrupt", [(FILES[1], [("bits", 3, 1, 0)])])]


def attempt(case, folder: Path) -> Iterator[str]:
    workdir = folder / "run"
    shutil.copytree(WORKDIR, workdir)
    kind, change = case
    _CHANGES[kind](workdir, change)
    try:
        read_train_log(workdir)
    except UserError as error:
        yield str(error)
    result = require_evaluation(workdir)
    with contextlib.redirect_stderr(stderr := io.StringIO()):
        scorer = load(workdir)
    if stderr.getvalue():
        yield stderr.getvalue()
    if kind != "tokens":  # these may change the config, and with it the networks
        restored = _arrays(scorer._variables[0])
        assert any(all(map(np.array_equal, restored, saved)) for saved in SAVED), "restored a state that was not saved"
    assert set(scorer.conditions) <= set(result.conditions)


def _corrupt_files(workdir, corruptions):
    for name, file_changes in corruptions:
        (workdir / name).write_bytes(corrupt((workdir / name).read_bytes(), file_changes))


def _replace_tokens(workdir, change):
    name, replaced = change
    text = replace_tokens((workdir / name).read_text(), replaced)
    (workdir / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def _copy(workdir, pair):
    if pair[0] != pair[1]:
        shutil.copyfile(workdir / pair[0], workdir / pair[1])


def _remove(workdir, names):
    for name in names:
        (workdir / name).unlink(missing_ok=True)


def _link(workdir, change):
    """Replaces a file, or its folder, by a link to a copy outside."""
    name, link_folder = change
    path = (workdir / name).parent if link_folder and "/" in name else workdir / name
    outside = workdir.parent / "outside"
    path.rename(outside)
    os.symlink(outside, path)


_CHANGES = {"corrupt": _corrupt_files, "tokens": _replace_tokens, "copied": _copy, "removed": _remove, "linked": _link}
