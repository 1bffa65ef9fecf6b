"""Train, evaluate and report one anomaly detector.

python launch.py --config=configs/improved_bigan.py:phantom
python launch.py --config=configs/cae.py:mvtec,quick --config.data.dir=DIR --workdir=runs/try
python launch.py --mode=predict --workdir=runs/try --input=IMAGES --output=DIR
python launch.py --mode=compare --workdirs='runs/*' --output=DIR
python launch.py --mode=sweep --config.sweep.models=all --config.sweep.seeds=5 --output=DIR
"""

from absl import flags

from bigan_jax.commands import cli

flags.adopt_module_key_flags(cli)  # --help lists the flags of this file only

if __name__ == "__main__":
    cli.run()
