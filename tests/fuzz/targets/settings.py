"""The command line: a config file with its argument, and values of fields."""

import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from hypothesis import strategies as st
from ml_collections import config_flags

from bigan_jax.commands import cli
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import anogan, cae, common, cvae, improved_bigan
from bigan_jax.errors import printable
from bigan_jax.runtime.run_config import default_name
from tests.fuzz.mutations import SNIPPETS

ROOT = Path(__file__).parents[3]
MODELS = "cae", "cvae", "improved_bigan", "bigan", "vqvae", "anogan"
FILES = [f"configs/{name}.py" for name in MODELS]


def _fields(config, prefix="config"):
    for name, value in config.items():
        yield f"{prefix}.{name}"
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}.{name}")


_MODULES = anogan, cae, cvae, improved_bigan
FIELDS = sorted({f for model in _MODULES for f in _fields(model.get_config())})
_words = st.sampled_from([*common.DATASETS, "quick", "no_se", "no_residual", "plain", ""])
_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_arguments = st.lists(_words | _text, max_size=4).map(",".join)
_values = st.one_of(
    st.sampled_from(SNIPPETS),
    st.sampled_from(["(1,", "(", "(32, 64)", "('a',)", "(0,)", "(-1,)", "(2**70,)", "{}", "inf"]),
    st.sampled_from(["True", "none", "None", "1_0", "0x10", "-0", "__import__('os').system('x')"]),
    st.integers().map(str),
    st.floats().map(str),
    _text,
)
_names = st.one_of(
    st.sampled_from(FIELDS),
    st.sampled_from(FIELDS),
    st.tuples(st.sampled_from(FIELDS), st.sampled_from(["[0]", ".x", "[", "['a']", ".", " "])).map("".join),
    _text,
)
_override = st.tuples(_names, st.sampled_from(["=", "=", "=", "", " "]), _values).map(lambda part: "--" + "".join(part))
cases = st.tuples(st.sampled_from(FILES), _arguments, st.lists(_override, max_size=3)) | st.tuples(
    _text, _arguments, st.just([])
)
warm = [(file, "phantom", ["--config.seed=3", "--config.model={}"]) for file in FILES]
warm += [(FILES[0], "mvtec,quick", ["--config.model.widths=(32, 64)"])]


def attempt(case, folder: Path) -> Iterator[str]:
    file, argument, overrides = case
    arguments = [f"--config={file}:{argument}", *overrides]
    os.chdir(ROOT)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=arguments)
    try:
        cli.parse_flags(["launch.py", *arguments], values)
    except flags.Error as error:  # Absl's message, with the usage
        yield printable(str(error))[:300]
        return
    config = values["config"].value
    default_name(config)
    build(parse_settings(config), 2, 10, frozen=False)
