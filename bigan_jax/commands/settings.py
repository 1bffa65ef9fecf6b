"""Typed settings of a run. Their constructors check the config."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.commands import roi
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation.anomaly_score import TERMS, ScoreSettings
from bigan_jax.evaluation.result import GROUPS, is_name
from bigan_jax.metrics.thresholds import ThresholdSettings
from bigan_jax.training import divergence
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.saving.checkpoints import CheckpointSettings
from bigan_jax.training.saving.loggers import parse_loggers
from bigan_jax.training.schedules import OptimizerSettings
from bigan_jax.value_checks import POSITIVE_INTEGER, require

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """All settings of a run except its folder and sweep; configs/common.py describes them."""

    name: str
    model_name: str  # a module of bigan_jax.models
    model: Mapping  # arguments of its `create`
    group: str  # one of GROUPS
    ablations: tuple[str, ...]
    quick: bool
    seed: int
    seeds: int
    batch_size: int
    on_nan: str
    dtype: str
    data: DataSettings
    augmentation: AugmentationSettings
    score: ScoreSettings
    threshold: ThresholdSettings
    checkpointing: CheckpointSettings
    optimizers: Mapping[str, OptimizerSettings]
    phases: Mapping[str, Mapping]  # `build` parses them, as they name objectives
    vgg16_weights: str
    loggers: tuple[str, ...]  # of `training.saving.loggers`

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise unknown_name("config.dtype", self.dtype, DTYPES)
        if self.group not in GROUPS:
            raise unknown_name("config.group", self.group, GROUPS)
        if not 0 <= self.seed < 2**31:
            raise UserError(f"config.seed must be an integer from 0 to 2**31 - 1 (got {self.seed}).")
        require("seeds", self.seeds, POSITIVE_INTEGER)
        require("batch_size", self.batch_size, POSITIVE_INTEGER)
        divergence.validate_policy(self.on_nan)
        if not self.data.calibration_fraction > 0:
            raise UserError(
                f"config.data.calibration_fraction must be above 0 (got {self.data.calibration_fraction}): "
                "the threshold and the colors of error maps come from calibration images."
            )
        if self.data.roi and self.score.symmetry == "on":
            raise UserError("config.score.symmetry=on compares whole images: leave it out with config.data.roi.")
        for field, name in ("name", self.name), ("data.name", self.data.name):
            if not is_name(name) or set(name) & set("/\\"):
                raise UserError(
                    f"config.{field} must be printable, without a slash, and of 1 to 100 characters, as it names rows "
                    f"and folders (got {name!r:.200})."
                )

    @property
    def epochs(self) -> int:
        """The number of epochs of the schedule."""
        return sum(phase["epochs"] for phase in self.phases.values())

    @property
    def identity(self) -> dict:
        """The fields of evaluation.json that identify the run."""
        return {
            "model": self.name,
            "group": self.group,
            "dataset": self.data.name,
            "category": self.data.category,
            "ablations": self.ablations,
            "quick": self.quick,
            "seed": self.seed,
        }


def parse_settings(config: ConfigDict, workdir: Path | None = None) -> Settings:
    """Returns the config's settings. Raises UserError, which names the field, if a value is out of range.

    Of a run in `workdir`, the region of interest is the copy in that folder.
    """
    fields = config.to_dict()
    data = DataSettings(**fields["data"])
    if workdir and data.roi:
        data = replace(data, roi=workdir / roi.FILE)
    score = fields["score"]
    weights = {name: score.pop(name) for name in TERMS}
    return Settings(
        **{name: fields[name] for name in ("name", "model_name", "group", "quick", "phases")},
        # JSON has lists in place of tuples.
        model={name: tuple(v) if isinstance(v, list) else v for name, v in fields["model"].items()},
        **{name: fields[name] for name in ("seed", "seeds", "batch_size", "on_nan", "dtype")},
        ablations=tuple(fields["ablations"]),
        data=data,
        augmentation=AugmentationSettings(**fields["augment"]),
        score=ScoreSettings(weights, **score),
        threshold=ThresholdSettings(**fields["threshold"]),
        checkpointing=CheckpointSettings(**fields["checkpoint"]),
        optimizers={name: OptimizerSettings(**values, objective=name) for name, values in fields["optimizers"].items()},
        vgg16_weights=fields["vgg16"]["weights"],
        loggers=parse_loggers(fields["loggers"]),
    )
