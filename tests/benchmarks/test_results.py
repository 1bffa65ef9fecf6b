"""The committed results: the page is what the runs say."""

import importlib
import json
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import results
from bigan_jax.runtime.run_config import read_config


def test_the_page_is_what_the_runs_give():
    """Every number in RESULTS.md: after a change `python -m benchmarks.results` makes it anew."""
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


@pytest.mark.parametrize("folder", results.runs(), ids=lambda folder: folder.name)
def test_a_runs_command_gives_its_config(folder, monkeypatch):
    """As launch.py reads it, but for the folders of pictures and weights."""
    monkeypatch.chdir(results.ROOT)
    config = json.loads(json.dumps(read_config(folder).to_dict()))
    words = shlex.split(results.command(config))[1:]
    monkeypatch.setattr("sys.argv", words)  # where config_flags looks for the fields
    known = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=known)
    known(words)
    given = json.loads(json.dumps(known.config.to_dict()))
    given["data"]["dir"] = ""
    for group in config.keys() & given.keys():
        if isinstance(config[group], dict):  # a field that is newer than the run says nothing of it
            given[group] = {name: given[group][name] for name in config[group]}
    assert {name: given[name] for name in config} == config


def quoted(folder):
    """A run that its config's docstring tells of: bottle by each model, all by the paper's own."""
    name, *rest = folder.name.split("-")
    own = rest[-3:-1] == ["quick", "no_perceptual"]
    return own if name == "improved_bigan" else rest[0] == "mvtec"


@pytest.mark.parametrize("folder", list(filter(quoted, results.runs())), ids=lambda run: run.name)
def test_a_config_quotes_its_run(folder):
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    interval = " ({:.3f} to {:.3f})".format(*found["auroc_ci"]) if found["auroc_ci"] else ""
    config = importlib.import_module(f"configs.{found['model']}")
    assert f"{found['auroc']:.3f}{interval}" in config.__doc__
