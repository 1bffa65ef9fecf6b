"""Hostile files, made by the thousand and given to every reader of the package.

    python -m tests.fuzz --target pictures --minutes 10

Run from the repository's root. `guard` watches what an attempt does, `mutations` spoils valid
files, `targets` says what is spoiled and who reads it, `__main__` counts.
"""
