"""Fuzzing: thousands of corrupt files for every reader of the package.

    python -m tests.fuzz --target images --minutes 10

Run from the root of the repository. `mutations` corrupts valid files, `targets` has one module per
reader, `guard` watches what an attempt does, and `__main__` runs the attempts and counts findings.
"""
