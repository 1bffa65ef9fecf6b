"""python -m tests.fuzz --target NAME [--minutes M | --inputs N] [--seed S] [--findings DIR]

A child process tries inputs until the time is over or it dies; when it died, of a signal or of its
limits, that is a finding, and another takes its place. Ends with counts in a line of JSON, and with
the exit status 1 where there were findings.
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
SHOWN = 1500  # characters of a case that are told


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
        found = json.loads(report.read_text()) if report.exists() else {}
        if status:
            case = current.read_text() if current.exists() else "(before the first)"
            name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            findings[f"died: {name}"] += 1
            print(f"FINDING died: {name}\n  case: {case[:SHOWN]}", flush=True)
            print((home / "stderr").read_text(errors="backslashreplace")[-SHOWN:], flush=True)
        total += found.get("inputs", 0) + bool(status)
        number = found.get("seed", number) + 1
        findings.update(found.get("findings", {}))
        errors.update(found.get("errors", {}))
        if status > 0:
            break
    shutil.rmtree(home, ignore_errors=True)
    told = {"target": options.target, "inputs": total, "told": errors.total()}
    told |= {"distinct errors": len(errors), "findings": dict(findings)}
    print(json.dumps(told, ensure_ascii=True))
    return bool(findings)


def child(options) -> int:
    warnings.simplefilter("ignore")
    home = Path(options.home)
    folder = Path(tempfile.mkdtemp(dir=home))
    sandbox = folder / "sandbox"
    sandbox.mkdir()
    os.environ.update(HOME=str(sandbox), XDG_CACHE_HOME=str(sandbox), TFDS_DATA_DIR=str(sandbox))
    target = importlib.import_module(f"fuzz.targets.{options.target}")
    inputs, findings, errors, known = 0, Counter(), Counter(), set()
    current = os.open(home / "current", os.O_RDWR | os.O_CREAT)
    guard = Guard(sandbox)
    shown = os.open(home / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if not options.case:
        os.dup2(shown, 2)  # of C libraries as well

    def attempt(case) -> str:
        """What is wrong with how the case was met; "" where nothing is."""
        nonlocal inputs
        inputs += 1
        text = repr(case).encode("utf-8", "backslashreplace")
        os.ftruncate(current, 0)
        os.pwrite(current, text, 0)
        os.ftruncate(shown, 0)
        os.lseek(shown, 0, os.SEEK_SET)
        for left in sandbox.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        problem = ""
        with guard.armed() as wrong:
            try:
                for told in target.attempt(case, sandbox):
                    errors[_shape(told)] += 1
                    problem = problem or _unclear(told)
            except UserError as error:
                errors[_shape(str(error))] += 1
                problem = _unclear(str(error))
            except (Exception, RecursionError, SystemExit) as error:
                problem = _place(error)
            except BaseException as error:  # a panic of a Rust library is no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = _place(error)
        words = os.pread(shown, 2**20, 0).decode("utf-8", "backslashreplace")
        if not problem and not re.sub(r"[\n\r\t]", "", words).isprintable():
            problem = f"control characters on stderr: {words[:300]!r}"
        return problem or "; ".join(wrong)

    def tell(case, problem: str, trace: str = "") -> None:
        key = _shape(problem)
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
            tell(case, f"a valid file: {problem}")
    guard.limit()

    def report(number):
        told = {"inputs": inputs, "seed": number, "findings": findings, "errors": errors}
        part = home / "report.part"
        part.write_text(json.dumps(told))
        part.rename(home / "report.json")

    wanted, number = options.inputs, options.seed
    while (inputs < wanted) if wanted else (time.time() < options.until):
        size = min(ROUND, wanted - inputs) if wanted else ROUND

        @seed(number)
        @settings(
            max_examples=size,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.cases)
        def many(case):
            if options.until and time.time() > options.until:
                return
            if problem := attempt(case):
                tell(case, problem)

        many()
        report(number)
        number += 1
    return 0


def _place(error):
    """An exception by its type and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "bigan_jax/" in f.filename or "configs/" in f.filename]
    last = (ours or frames)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__} in {where}: {str(error)[:200]!r}"


def _unclear(told):
    """What is wrong with an error's words, as a person sees them in a terminal."""
    if not told.strip():
        return "an error without words"
    if len(told) > 20_000:
        return f"an error of {len(told)} characters: {told[:100]!r}"
    if not told.replace("\n", "").isprintable():
        return f"an error with control characters: {told[:200]!r}"
    if "more memory than there is" in told:
        return f"memory ran out: {told[:200]!r}"
    return ""


def _shape(words):
    """Words without what differs from input to input, to count them by."""
    return re.sub(r"['\"].*['\"]|[\d.]+|/\S+", "*", words.replace("\n", " "))[:70]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, default=0, help="so many, instead of by time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", default="", help="try this one, as a finding told it")
    parser.add_argument("--home", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        options.home = tempfile.mkdtemp(prefix="bigan_jax-fuzz-")
    return child(options) if options.home else parent(options)


if __name__ == "__main__":
    sys.exit(main())
