"""Train, evaluate and report one anomaly detector.

python launch.py --config=configs/improved_bigan.py:phantom
python launch.py --config=configs/cae.py:mvtec,quick --config.data.dir=DIR --workdir=runs/try
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from bigan_jax.errors import UserError
from configs import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<model>.py:<dataset>[,quick][,<ablation>...]", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run's files go; default runs/<model>-<dataset>[-...]-seed<k>"
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "train: train or go on, then evaluate; evaluate: score and report again from the workdir",
)


def parse_flags(arguments):
    common.check_arguments(arguments)
    return app.parse_flags_with_usage(arguments)


def main(arguments):
    logging.set_verbosity(logging.WARNING)  # JAX and Orbax report every backend and file they try
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: every option is a --flag=value")
    if _MODE.value == "train" and _CONFIG.value is None:
        raise UserError("say what to train: --config=configs/improved_bigan.py:phantom")
    if _MODE.value == "evaluate" and _WORKDIR.value is None:
        raise UserError("say what to evaluate: --workdir=DIR")

    import bigan_jax  # JAX is imported only once the flags are known to be right

    if _MODE.value == "train":
        bigan_jax.train(_CONFIG.value, _WORKDIR.value)
    else:
        bigan_jax.evaluate(_WORKDIR.value, _CONFIG.value)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")
