"""Measures how much a split decides: AUROC of the baselines for several split seeds.

    python -m benchmarks.splits --config=configs/fcae.py:plant --config.data.dir=DIR [--splits=6]

Nothing is trained. The table also has the sizes of the splits, for `data.split_seed` from 0.
"""

import dataclasses

from absl import app, flags
from ml_collections import config_flags

COLUMNS = ("split", "train", "calibration", "normal test", "anomalous test")


def main(_):
    from bigan_jax.reports.table_formats import markdown

    print(markdown(table(flags.FLAGS.config, flags.FLAGS.splits)))


def table(config, splits: int):
    """A row of sizes and baseline AUROCs for each split, and a row of means."""
    import jax.numpy as jnp

    from bigan_jax.commands.settings import parse_settings
    from bigan_jax.data.loading import load_dataset
    from bigan_jax.evaluation import anomaly_score
    from bigan_jax.evaluation.baselines import baseline_aurocs, baseline_scores, fitting_images
    from bigan_jax.evaluation.statistics import spread
    from bigan_jax.reports.table_formats import Table

    settings = parse_settings(config)
    formula = settings.score.formula

    def compute_terms(images, reconstructions):
        return anomaly_score.terms(jnp.asarray(images), jnp.asarray(reconstructions))

    rows, aurocs = [], []
    for split in range(splits):
        dataset = load_dataset(dataclasses.replace(settings.data, split_seed=split))
        train, test = fitting_images(dataset.train.image), dataset.test
        aurocs.append(
            baseline_aurocs(baseline_scores(train, test.image, compute_terms, formula)[settings.score.name], test.label)
        )
        sizes = len(dataset.train.label), len(dataset.calibration.label)
        counts = int((~test.label).sum()), int(test.label.sum())
        rows.append([str(split), *sizes, *counts, *aurocs[-1].values()])
    means = [spread(each[name] for each in aurocs) for name in aurocs[0]]
    rows.append(["mean ± standard deviation", *[None] * 4, *means])
    columns = [("", name) for name in (*COLUMNS, *aurocs[0])]
    return Table(f"AUROC of baselines on {config.data.name}", columns, rows)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_integer("splits", 6, "number of splits, by data.split_seed from 0", lower_bound=2)
    app.run(main)
