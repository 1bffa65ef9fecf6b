"""Train, evaluate and report one anomaly detector.

python launch.py --config=configs/improved_bigan.py:phantom
python launch.py --config=configs/cae.py:mvtec,quick --config.data.dir=DIR --workdir=runs/try
python launch.py --mode=predict --workdir=runs/try --input=IMAGES --output=DIR
python launch.py --mode=compare --workdirs='runs/*' --output=DIR
python launch.py --mode=sweep --config.sweep.models=all --config.sweep.seeds=5 --output=DIR
"""

from absl import flags

try:
    from bigan_jax.commands import cli
except ModuleNotFoundError as error:
    if error.name != "bigan_jax.configs":
        raise
    raise SystemExit("launch.py requires an editable installation: pip install -e . (or use bigan-jax).") from error

flags.adopt_module_key_flags(cli)  # --help lists the flags of this file only

if __name__ == "__main__":
    cli.run()
