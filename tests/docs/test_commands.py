"""Commands and code in the documents name files, flags, fields and functions that exist. Nothing expensive runs."""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from functools import cache

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from bigan_jax.commands import cli, console, console_runs  # noqa: F401  cli defines the flags
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.sweep_plan import plan
from bigan_jax.runtime.run_config import flat_config
from scripts.config_page import model_names
from tests.docs.pages import PAGES, ROOT, blocks, inline_code, name_of
from tests.helpers.runs import write_config_of_run

REQUIRED = {
    "train": ["config"],
    "evaluate": ["workdir"],
    "predict": ["workdir", "input", "output"],
    "compare": ["workdirs"],
    "sweep": ["output"],
}
DEFAULT = "--config=configs/improved_bigan.py:phantom"  # of a sweep


def commands(page):
    """The commands of a page, each as one line."""
    shell = [block.content for block in blocks(page) if block.language in ("", "bash", "shell", "yaml")]
    text = "\n".join([*shell, *inline_code(page)]).replace("\\\n", " ")
    found = re.findall(r"\b((?:python (?:launch\.py|-m [\w.]+)|bigan-jax \w+)[^\n\"&;#]*)", text)
    for command in re.findall(r"command: (\[python, .*?\])", "\n".join(shell), re.S):
        found.append(shlex.join(yaml.safe_load(command)))
    return [line.replace(" ...", "") for line in found]


def options(arguments):
    """The flags of a command and their values."""
    wrong = [argument for argument in arguments if not argument.startswith("--")]
    assert not wrong, f"not flags: {wrong}"
    return [(name, value) for name, _, value in (argument[2:].partition("=") for argument in arguments)]


def parse_launch(arguments):
    """Checks all flags of `python launch.py`, and the values of config fields as a start of the command does."""
    given = options(arguments)
    names = [name for name, _ in given]
    for name, value in given:
        if name != "config" and not name.startswith("config."):
            assert name in flags.FLAGS, f"no flag --{name}"
            flags.FLAGS[name].parser.parse(value)
    mode = dict(given).get("mode", "train")
    missing = [name for name in REQUIRED[mode] if name not in names]
    assert not missing, f"--mode={mode} requires {missing}"
    fields = [argument for argument in arguments if argument.startswith(("--config=", "--config."))]
    if mode == "sweep" and "config" not in names:
        fields.insert(0, DEFAULT)
    if fields:
        file = fields[0].removeprefix("--config=").partition(":")[0]
        assert (ROOT / file).is_file(), f"no config file {file}"
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=fields)
        values(["launch.py", *fields])
        parse_settings(values["config"].value)
        if mode == "sweep":
            file = config_flags.get_config_filename(values["config"])
            plan(values["config"].value, file, config_flags.get_override_values(values["config"]), "runs")


def parse_console(arguments, monkeypatch, run_folder):
    """Checks the arguments of `bigan-jax`: its parser, and the flags of launch.py that it sets."""
    command, *rest = arguments
    if command == "COMMAND":  # a placeholder, as CONFIG and RUN
        return
    assert command in console.COMMANDS, f"no command {command}"
    if not rest or "CONFIG" in rest or command in ("app", "export"):  # only named, or not by flags of launch.py
        return
    rest = [str(run_folder) if argument == "RUN" or argument.startswith("runs/") else argument for argument in rest]
    monkeypatch.setattr(sys, "argv", ["bigan-jax", command, *rest])
    monkeypatch.setattr(console_runs.app, "run", lambda *_, **__: parse_launch(sys.argv[1:]))
    console.run([command, *rest])


def parse_module(module, arguments):
    """Checks that `python -m` names a module, and that its source has the flags."""
    spec = importlib.util.find_spec(module)
    assert spec, f"no module {module}"
    path = ROOT / module.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else path.glob("*.py")
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    for name in re.findall(r"^from benchmarks import (.*)$", source, re.M):  # such as a shared parser
        imported = [ROOT / "benchmarks" / f"{part}.py" for part in name.split(", ")]
        source += "".join(file.read_text(encoding="utf-8") for file in imported if file.exists())
    for argument in arguments:
        if argument.startswith("--") and not argument.startswith("--config"):
            name = argument[2:].partition("=")[0]
            assert f'"--{name}"' in source or f'"{name}"' in source, f"{module} has no flag --{name}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_of_a_page(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    run_folder = write_config_of_run(tmp_path, "folder")
    for command in commands(page):
        first, program, *arguments = shlex.split(command)
        try:
            if first == "bigan-jax":
                parse_console([program, *arguments], monkeypatch, run_folder)
            elif program == "launch.py":
                parse_launch([a for a in arguments if a != "--help"]) if arguments != ["--help"] else None
            elif arguments[0].partition(".")[0] in ("benchmarks", "scripts", "tests"):
                parse_module(arguments[0], arguments[1:])
        except (Exception, SystemExit) as error:
            pytest.fail(f"{command}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("--config=configs/none.py:phantom", "none"),
        ("--config=configs/cae.py:nowhere", "nowhere"),
        ("--config=configs/cae.py:phantom --config.data.side=3", "side"),
        ("--config=configs/cae.py:phantom --config.batch_size=0", "batch_size"),
        ("--config=configs/cae.py:phantom --worcdir=x", "worcdir"),
        ("--mode=sweep --config.sweep.models=none --output=x", "none"),
        ("--mode=predict --workdir=x", "input"),
        ("--config=configs/cae.py:phantom stray", "stray"),
    ],
)
def test_wrong_commands_are_found(command, problem, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit), match=problem):
        parse_launch(command.split())


@cache
def config_names():
    """All fields and groups of all configs."""
    names = set()
    for model in model_names():
        for field in flat_config(importlib.import_module(f"bigan_jax.configs.{model}").get_config()):
            parts = field.split(".")
            names |= {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_config_fields_of_a_page(page):
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))  # without the targets of links
    fields = set(re.findall(r"(?<![\w./])(?:--)?config\.([a-z][\w.]*\w)", text))
    fields |= set(re.findall(r"(?<![\w./])--(?!config)([a-z]\w*\.[\w.]*\w)", text))
    assert fields - config_names() - {"json"} == set()  # config.json is a file


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_a_page(page):
    """Files of the repository that code spans name exist; a pattern or a placeholder is none."""
    roots = "bigan_jax", "configs", "tests", "benchmarks", "scripts"
    paths = {code.partition(" ")[0] for code in inline_code(page)}
    paths = {path for path in paths if path.startswith(tuple(f"{root}/" for root in roots))}
    paths = {path.partition(":")[0].partition("::")[0] for path in paths if not set(path) & set("<*.{") - {"."}}
    missing = [path for path in paths if "..." not in path and not (ROOT / path).exists()]
    assert [path for path in missing if path != "configs/"] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=name_of
)
def test_python_of_a_page(page):
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.content)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bigan_jax"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    is_module = (
                        importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                    )
                    assert is_module or hasattr(module, alias.name), f"{node.module} has no {alias.name}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bigan_jax":
                assert hasattr(importlib.import_module("bigan_jax"), node.attr), f"bigan_jax has no {node.attr}"
