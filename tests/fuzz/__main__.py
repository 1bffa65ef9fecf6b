"""python -m tests.fuzz --target NAME [--minutes M | --inputs N] [--seed S]

A child process tries inputs until the time is over. If it dies, of a signal or of its limits, that
is a finding, and another child takes over. The last line is a JSON object of counts; the exit
status is 1 if there are findings.
"""

import argparse
import ast
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from bigan_jax.errors import UserError
from tests.fuzz.guard import Guard
from tests.fuzz.targets import TARGETS

ROUND = 500  # inputs drawn with one seed
SHOWN = 1500  # characters of a case that are printed


def parent(options) -> int:
    home = Path(tempfile.mkdtemp(prefix="bigan_jax-fuzz-"))
    end = time.time() + 60 * options.minutes
    total, findings, errors = 0, Counter(), Counter()
    number = options.seed
    while (time.time() < end or options.inputs) and (not options.inputs or total < options.inputs):
        report, current = home / "report.json", home / "current"
        for file in report, current:
            file.unlink(missing_ok=True)
        arguments = [f"--target={options.target}", f"--seed={number}", f"--home={home}"]
        arguments += [f"--inputs={options.inputs - total}"] if options.inputs else []
        arguments += [f"--until={end}"] * (not options.inputs)
        status = subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments]).returncode
        counts = json.loads(report.read_text()) if report.exists() else {}
        if status:
            case = current.read_text() if current.exists() else "(before the first)"
            name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            findings[f"died: {name}"] += 1
            print(f"FINDING died: {name}\n  case: {case[:SHOWN]}", flush=True)
            print((home / "stderr").read_text(errors="backslashreplace")[-SHOWN:], flush=True)
        total += counts.get("inputs", 0) + bool(status)
        number = counts.get("seed", number) + 1
        findings.update(counts.get("findings", {}))
        errors.update(counts.get("errors", {}))
        if status > 0:
            break
    shutil.rmtree(home, ignore_errors=True)
    summary = {"target": options.target, "inputs": total, "errors": errors.total()}
    summary |= {"distinct errors": len(errors), "findings": dict(findings)}
    print(json.dumps(summary, ensure_ascii=True))
    return bool(findings)


def child(options) -> int:
    warnings.simplefilter("ignore")
    home = Path(options.home)
    folder = Path(tempfile.mkdtemp(dir=home))
    sandbox = folder / "sandbox"
    sandbox.mkdir()
    os.environ.update(HOME=str(sandbox), XDG_CACHE_HOME=str(sandbox), TFDS_DATA_DIR=str(sandbox))
    target = importlib.import_module(f"tests.fuzz.targets.{options.target}")
    inputs, findings, errors, known = 0, Counter(), Counter(), set()
    current = os.open(home / "current", os.O_RDWR | os.O_CREAT)
    guard = Guard(sandbox)
    shown = os.open(home / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if not options.case:
        os.dup2(shown, 2)  # of C libraries as well

    def attempt(case) -> str:
        """Describes what went wrong in an attempt; "" if nothing did."""
        nonlocal inputs
        inputs += 1
        text = repr(case).encode("utf-8", "backslashreplace")
        os.ftruncate(current, 0)
        os.pwrite(current, text, 0)
        os.ftruncate(shown, 0)
        os.lseek(shown, 0, os.SEEK_SET)
        for path in sandbox.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        problem = ""
        with guard.armed() as violations:
            try:
                for message in target.attempt(case, sandbox):
                    errors[_pattern(message)] += 1
                    problem = problem or _message_problem(message)
            except UserError as error:
                errors[_pattern(str(error))] += 1
                problem = _message_problem(str(error))
            except (Exception, RecursionError, SystemExit) as error:
                problem = _describe(error)
            except BaseException as error:  # a panic of a Rust library is not an Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = _describe(error)
        output = os.pread(shown, 2**20, 0).decode("utf-8", "backslashreplace")
        if not problem and not re.sub(r"[\n\r\t]", "", output).isprintable():
            problem = f"control characters on stderr: {output[:300]!r}"
        return problem or "; ".join(violations)

    def report_finding(case, problem: str) -> None:
        key = _pattern(problem)
        findings[key] += 1
        if key not in known:
            known.add(key)
            print(f"FINDING {problem}\n  case: {case!r:.{SHOWN}}", flush=True)

    if options.case:
        case = ast.literal_eval(options.case)
        guard.limit()
        print(attempt(case) or f"fine: {dict(errors)}")
        return 0
    for case in target.warm:
        if problem := attempt(case):
            report_finding(case, f"a valid file: {problem}")
    guard.limit()

    def write_report(number):
        counts = {"inputs": inputs, "seed": number, "findings": findings, "errors": errors}
        partial = home / "report.part"
        partial.write_text(json.dumps(counts))
        partial.rename(home / "report.json")

    limit, number = options.inputs, options.seed
    write_report(number)  # the warm cases alone may reach the limit
    while (inputs < limit) if limit else (time.time() < options.until):
        size = min(ROUND, limit - inputs) if limit else ROUND

        @seed(number)
        @settings(
            max_examples=size,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.cases)
        def try_case(case):
            if options.until and time.time() > options.until:
                return
            if problem := attempt(case):
                report_finding(case, problem)

        try_case()
        write_report(number)
        number += 1
    return 0


def _describe(error):
    """The type of an exception, its message, and the last line of this package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    package = [f for f in frames if "bigan_jax/" in f.filename or "configs/" in f.filename]
    last = (package or frames)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__} in {where}: {str(error)[:200]!r}"


def _message_problem(message):
    """What is wrong with an error message in a terminal; "" if nothing is."""
    if not message.strip():
        return "an empty error message"
    if len(message) > 20_000:
        return f"an error of {len(message)} characters: {message[:100]!r}"
    if not message.replace("\n", "").isprintable():
        return f"an error with control characters: {message[:200]!r}"
    if "more memory than there is" in message:
        return f"memory ran out: {message[:200]!r}"
    return ""


def _pattern(message):
    """A message without the parts that differ between inputs, as a key to count by."""
    return re.sub(r"['\"].*['\"]|[\d.]+|/\S+", "*", message.replace("\n", " "))[:70]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, default=0, help="number of inputs, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", default="", help="try one case, as printed by a finding")
    parser.add_argument("--home", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        options.home = tempfile.mkdtemp(prefix="bigan_jax-fuzz-")
    return child(options) if options.home else parent(options)


if __name__ == "__main__":
    sys.exit(main())
