"""The result of an evaluation, and the only code that knows the format of evaluation.json.

EvaluationResult is written and read by the same class. A file may come from anybody who shares a run, so its size,
types and ranges are checked before anything uses them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bigan_jax.errors import UserError, one_line
from bigan_jax.metrics.image import IMAGE_METRICS, ConditionRow, DefectTypeRow, PredictAll
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.metrics.thresholds import Oracle
from bigan_jax.runtime.files import read_bounded

_MAX_BYTES = 16 * 2**20  # the scores of all calibration images are in the file

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Interval = tuple[Unit, Unit]
Names = Annotated[list[Name], Meta(max_length=20)]
Aurocs = Annotated[dict[Name, Unit | None], Meta(max_length=100)]


def is_name(value: object) -> bool:
    """Returns whether a value can name a detector or data set: 1 to 100 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a result: a JSON object with exactly these fields."""


def _record_of(metrics: Iterable[str]) -> type[_Record]:
    """Returns a record with one field per metric (a number in [0, 1], or None if undefined).

    Its property `metrics` has them by name.
    """
    fields = [(name, Unit | None) for name in metrics]
    by_name = property(lambda self: {name: getattr(self, name) for name in metrics})
    return msgspec.defstruct("_Metrics", fields, bases=(_Record,), namespace={"metrics": by_name})


class PixelMetrics(_record_of(PIXEL_METRICS)):
    """PIXEL_METRICS of one set of maps."""


class PixelResult(PixelMetrics):
    """Pixel metrics of the error maps, their 95 % intervals, and Dice at the pixel threshold."""

    dice: Unit | None
    intervals: dict[Name, Interval] | None


class NativeScore(_Record):
    """The AUROC of the score that the model's own paper defines."""

    name: Name
    auroc: Unit | None


class ScoreRecord(_Record):
    """The score of the evaluation: `config.score`, and the terms' standard deviations."""

    weights: dict[Name, Number]
    reduction: Name
    standardize: bool
    unit_features: bool
    standard_deviations: dict[Name, Number]


class ScoreTableRow(_Record):
    """The AUROC of one way to score the reconstructions.

    Attributes:
      score: the weighted terms, as text.
      standardize: whether the terms are divided by their standard deviations.
      reduction: as in `config.score.reduction`.
      auroc: None if the test set has one class only.
      paper: whether it is the paper's score.
      used: whether it is the score of the evaluation.
    """

    score: str
    standardize: bool
    reduction: Name
    auroc: Unit | None
    paper: bool
    used: bool


class EvaluationResult(_record_of(IMAGE_METRICS), kw_only=True):
    """The result of one evaluation: IMAGE_METRICS as fields of their own, and the following.

    Attributes:
      model, dataset, category, ablations, quick, seed: identify the run.
      conditions: the names of the data set's conditions.
      epochs, steps: how long the evaluated state was trained.
      n_train, n_calibration, n_normal, n_anomalous: the number of images used for training and calibration, and of
        normal and anomalous test images.
      n_calibration_groups: the number of groups of the calibration images.
      auroc_ci: the 95 % interval of the AUROC; None if there was nothing to resample.
      intervals: the 95 % intervals of all image metrics, by name; None likewise.
      threshold, threshold_rule, threshold_note: the decision threshold, its rule and its caveat.
      oracle: the best threshold by the test labels.
      predict_all: the metrics of calling every image anomalous.
      native: the model's own score; None if it has none.
      pixel_threshold: the error from which on a pixel is called defective.
      pixel: pixel metrics of the error maps.
      pixel_baselines: pixel metrics of maps that need no training, by name.
      by_defect_type, by_condition: rows; None if there is one type or condition only.
      baselines: AUROCs of detectors that need no training, by name.
      term_aurocs: the AUROC of each score term alone.
      score: the definition of the score.
      score_table, score_table_note: other scores of the same reconstructions.
      calibration_scores: the scores of all calibration images.
      color_limits: the error shown in the brightest color, by score term and for "combined".
      notes, warnings: remarks on how the result was made, and on what weakens it.
      versions: of the packages, by name.
    """

    model: Name
    dataset: Name
    category: Annotated[str, Meta(max_length=1000)]
    ablations: Names
    quick: bool
    seed: Annotated[int, Meta(gt=-(2**53), lt=2**53)]
    conditions: list[str]
    epochs: Count
    steps: Count
    n_train: Count
    n_calibration: Count
    n_calibration_groups: Count
    n_normal: Count
    n_anomalous: Count
    auroc_ci: Interval | None
    intervals: dict[Name, Interval] | None
    threshold: Number
    threshold_rule: Name
    threshold_note: str | None
    oracle: Oracle
    predict_all: PredictAll
    native: NativeScore | None
    pixel_threshold: Number
    pixel: PixelResult
    pixel_baselines: dict[Name, PixelMetrics]
    by_defect_type: list[DefectTypeRow] | None
    by_condition: list[ConditionRow] | None
    baselines: Aurocs
    term_aurocs: Aurocs
    score: ScoreRecord
    score_table: list[ScoreTableRow]
    score_table_note: str
    calibration_scores: Annotated[list[Number], Meta(min_length=1)]
    color_limits: dict[Name, Number]
    notes: list[str]
    warnings: list[str]
    versions: dict[str, str]

    def __post_init__(self):
        names = [("model", self.model), ("dataset", self.dataset), ("category", self.category)]
        names += [("threshold_rule", self.threshold_rule)]
        names += [("ablations", name) for name in self.ablations]
        names += [("baselines", name) for name in self.baselines]
        names += [("pixel_baselines", name) for name in self.pixel_baselines]
        for field, name in names:
            if not name.isprintable():
                raise ValueError(f"{field} must be printable")
        if self.auroc_ci and self.auroc_ci[0] > self.auroc_ci[1]:
            raise ValueError("auroc_ci must have the lower limit first")
        if "combined" not in self.color_limits:
            raise ValueError("color_limits must have the limit of the combined map")

    def replace(self, **fields) -> "EvaluationResult":
        """Returns a copy with other values of some fields."""
        return msgspec.structs.replace(self, **fields)

    def as_dict(self) -> dict:
        """Returns the content of evaluation.json: dictionaries, lists, strings and numbers."""
        return msgspec.to_builtins(self)


def read_evaluation(workdir: Path) -> EvaluationResult:
    """Reads evaluation.json of a run.

    Raises:
      UserError: the file is missing, too large, damaged, or written by another version. The message names the field,
        but not the folder.
    """
    content = read_bounded(workdir / "evaluation.json", _MAX_BYTES)
    try:
        return msgspec.json.decode(content, type=EvaluationResult)
    except msgspec.ValidationError as error:
        problem, _, path = one_line(error, 300).partition(" - at `$")
        if "missing required field" in problem or "unknown field" in problem:
            raise UserError(
                "evaluation.json was written by another version of bigan_jax "
                f"({problem[0].lower()}{problem[1:]}); run --mode=evaluate again"
            ) from error
        field = path.strip(".`")
        raise UserError(f"evaluation.json: {field}{': ' * bool(field)}{problem}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError("evaluation.json is not valid JSON") from error


def require_evaluation(workdir: Path) -> EvaluationResult:
    """Reads evaluation.json of a run that has to be finished, for one that loads its detector.

    Raises:
      UserError: as `read_evaluation`; the message names the folder and how to fix it.
    """
    try:
        return read_evaluation(workdir)
    except UserError as error:
        raise UserError(
            f"{workdir} has no valid evaluation: {error}. --mode=evaluate writes it for a trained "
            "run; runs of several seeds are in the folders seed<k>."
        ) from error
