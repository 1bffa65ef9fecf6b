"""What is spoiled, and who reads it.

A module has `cases`, a strategy of what to try; `warm`, valid cases that are tried first, so that
what is imported late is there before anything is watched; and `attempt(case, folder)`, which writes
files into the folder, has the package read them, and yields what the package said of those that it
did not take. A UserError says it as well; whatever else is raised is a finding.
"""

TARGETS = (
    "pictures",
    "archives",
    "medical",
    "settings",
    "results",
    "weights",
    "checkpoints",
    "tables",
)
