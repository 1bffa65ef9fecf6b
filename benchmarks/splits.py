"""python -m benchmarks.splits --config=configs/fcae.py:plant --config.data.dir=DIR [--splits=6]

How far the luck of a split goes, before anything is trained: the training-free controls by the
common score on the first so many values of `data.split_seed`, with the sizes that chance gave.
"""

import dataclasses

from absl import app, flags
from ml_collections import config_flags

from bigan_jax.commands.settings import parse_settings

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
SPLITS = flags.DEFINE_integer("splits", 6, "splits, by data.split_seed from 0 on", lower_bound=2)
COLUMNS = ("split", "train", "calibration", "normal test", "anomalous test")


def main(_):
    from bigan_jax.reports.tables import markdown

    print(markdown(table(CONFIG.value, SPLITS.value)))


def table(config, splits: int):
    """A row a split and one of their means: what chance gave each part, and the controls' AUROC."""
    from bigan_jax.data.loading import load_dataset
    from bigan_jax.evaluation import anomaly_score
    from bigan_jax.evaluation.baselines import baseline_aurocs, baseline_scores, fitting_images
    from bigan_jax.evaluation.statistics import spread
    from bigan_jax.reports.tables import Table

    formula = parse_settings(config).score.formula

    def score(images, reconstructions):
        return anomaly_score.score(formula, anomaly_score.terms(images, reconstructions))

    rows, found = [], []
    for split in range(splits):
        pictures = load_dataset(dataclasses.replace(parse_settings(config).data, split_seed=split))
        train, test = fitting_images(pictures.train.image), pictures.test
        found.append(baseline_aurocs(baseline_scores(train, test.image, score), test.label))
        sizes = len(pictures.train.label), len(pictures.calibration.label)
        counts = int((~test.label).sum()), int(test.label.sum())
        rows.append([str(split), *sizes, *counts, *found[-1].values()])
    means = [spread(each[name] for each in found) for name in found[0]]
    rows.append(["mean ± standard deviation", *[None] * 4, *means])
    columns = [("", name) for name in (*COLUMNS, *found[0])]
    return Table(f"AUROC of controls on {config.data.name}", columns, rows)


if __name__ == "__main__":
    app.run(main)
