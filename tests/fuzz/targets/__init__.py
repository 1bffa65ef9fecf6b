"""One module per reader of untrusted files.

A module has `cases`, a strategy of inputs; `warm`, valid cases that are tried first, so that late
imports happen before anything is watched; and `attempt(case, folder)`, which writes files to the
folder, lets the package read them, and yields the error messages of files that it rejects. A
UserError is a rejection too; any other exception is a finding.
"""

TARGETS = ("images", "archives", "medical", "settings", "results", "weights", "checkpoints", "tables")
