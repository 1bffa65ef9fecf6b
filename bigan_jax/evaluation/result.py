"""The result of an evaluation, and the only code that knows the format of evaluation.json.

A file may come from anybody who shares a run, so its size, types and ranges are checked before anything uses them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bigan_jax.errors import UserError, one_line
from bigan_jax.metrics.image import IMAGE_METRICS, ConditionRow, DefectTypeRow, PredictAll
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.metrics.promise import Promise
from bigan_jax.metrics.thresholds import Oracle
from bigan_jax.runtime.files import read_bounded

# The paper's and the calibrated one are scores of a reconstruction, and the last one is a detector's own.
PAPER, CALIBRATED, NATIVE = SCORE_NAMES = ("paper", "calibrated", "native")
GROUPS = ("reconstruction", "features", "baseline")  # of detectors in tables
PAPER_WEIGHTS = {"mse": 0.7, "ssim": 0.3}  # of the terms in the paper's score (Sec. III)
_MAX_BYTES = 16 * 2**20  # the scores of all calibration images are in the file

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Unit = Annotated[float, Meta(ge=0, le=1)]
SignedUnit = Annotated[float, Meta(ge=-1, le=1)]
Interval = tuple[Unit, Unit]
Names = Annotated[list[Name], Meta(max_length=20)]
Aurocs = Annotated[dict[Name, Unit | None], Meta(max_length=100)]


def is_name(value: object) -> bool:
    """Returns whether a value can name a detector or data set: 1 to 100 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a result: a JSON object with exactly these fields."""


def _record_of(metrics: Iterable[str]) -> Any:  # a type that only exists at run time
    """Returns a record with one field per metric (None if undefined), and a property `metrics` of them by name."""
    fields = [(name, Unit | None) for name in metrics]  # pyright: ignore[reportOperatorIssue]
    by_name = property(lambda self: {name: getattr(self, name) for name in metrics})
    return msgspec.defstruct("_Metrics", fields, bases=(_Record,), namespace={"metrics": by_name})


class PixelMetrics(_record_of(PIXEL_METRICS)):
    """PIXEL_METRICS of one set of maps."""


class PixelResult(PixelMetrics):
    """Pixel metrics of the error maps, their 95 % intervals, and Dice at the pixel threshold."""

    dice: Unit | None
    intervals: dict[Name, Interval] | None


class NativeScore(_Record, frozen=True):
    """The AUROC of the score that the model's own paper defines."""

    name: Name
    auroc: Unit | None


class ScoreRecord(_Record, frozen=True):
    """The settings of the scores: `config.score`, and the terms' standard deviations over training images."""

    weights: dict[Name, Number]
    name: Name  # the score that decides
    reduction: Name
    standardize: bool
    unit_features: bool
    symmetry: Name  # whether the calibrated score includes asymmetry: on, off, or auto, by the test
    standard_deviations: dict[Name, Number]


class SymmetryResult(_Record, frozen=True):
    """Whether the training images are symmetric (evaluation/symmetry.py)."""

    ratio: Number | None  # of distances, to the own mirror image and to other images; None if undefined
    symmetric: bool  # whether the test finds them symmetric
    used: bool  # whether the calibrated score includes asymmetry


class ScoreTableRow(_Record, frozen=True):
    """The AUROC of one way to score the reconstructions."""

    score: str  # the weighted terms
    standardize: bool
    reduction: Name
    auroc: Unit | None
    paper: bool  # whether it is the paper's score
    used: bool  # whether it is the score of the evaluation


class VolumeResult(_Record, frozen=True):
    """The result over volumes or patients, each scored by the mean of its `top` highest slices."""

    top: Count
    n_normal: Count
    n_anomalous: Count
    auroc: Unit | None


class BaselineDifference(_Record, frozen=True):
    """The AUROC of a score minus that of the strongest baseline with this score."""

    baseline: Name  # name of the strongest baseline
    value: SignedUnit  # the difference
    interval: tuple[SignedUnit, SignedUnit] | None  # 95 %, paired; None if there was nothing to resample


class ScoreResult(_record_of(IMAGE_METRICS)):
    """The result of one score: IMAGE_METRICS as fields of their own, and the following."""

    auroc_ci: Interval | None  # 95 %; None if there was nothing to resample
    intervals: dict[Name, Interval] | None  # 95 %, of all image metrics
    threshold: Number
    threshold_rule: Name
    promise: Promise | None  # on new normal images; None for a manual threshold
    oracle: Oracle
    by_defect_type: list[DefectTypeRow] | None  # None if there is one type only
    by_condition: list[ConditionRow] | None  # None if there is one condition only
    volumes: VolumeResult | None  # None if no test image is a slice
    baselines: Aurocs  # of detectors that need no training, with the same score
    over_baseline: BaselineDifference | None  # None if there is no AUROC
    calibration_scores: Annotated[list[Number], Meta(min_length=1)]

    def __post_init__(self):
        if not "".join([self.threshold_rule, *self.baselines]).isprintable():
            raise ValueError("the threshold's rule and the names of baselines must be printable")
        if self.auroc_ci and self.auroc_ci[0] > self.auroc_ci[1]:
            raise ValueError("auroc_ci must have the lower limit first")


class EvaluationResult(_Record, frozen=True):
    """The result of one evaluation."""

    model: Name
    group: Literal["reconstruction", "features", "baseline"]  # group of the detector in tables
    dataset: Name
    category: Annotated[str, Meta(max_length=1000)]
    ablations: Names
    quick: bool
    seed: Annotated[int, Meta(gt=-(2**53), lt=2**53)]
    conditions: list[str]  # of the data set
    epochs: Count  # for which the evaluated state was trained
    steps: Count
    n_train: Count
    n_calibration: Count
    n_calibration_groups: Count
    n_normal: Count  # test images
    n_anomalous: Count  # test images
    score_name: Name  # the score that decides, one of SCORE_NAMES
    scores: dict[Name, ScoreResult]  # by some of SCORE_NAMES: those that the detector has
    predict_all: PredictAll
    native: NativeScore | None
    pixel_threshold: Number  # the error from which on a pixel is called defective
    pixel_promise: Promise  # on the pixels of new normal images
    pixel: PixelResult  # of the error maps
    pixel_baselines: dict[Name, PixelMetrics]  # of maps that need no training
    term_aurocs: Aurocs  # of each score term alone
    score: ScoreRecord
    score_table: list[ScoreTableRow]  # other scores of the same reconstructions
    score_table_note: str
    symmetry: SymmetryResult  # the test for symmetry, and what depends on it
    color_limits: dict[Name, Number]  # the error shown in the brightest color, by score term and for "combined"
    notes: list[str]  # how the result was made
    warnings: list[str]  # what weakens the result
    versions: dict[str, str]  # of the packages

    def __post_init__(self):
        for field in ("model", "dataset", "category", "ablations", "pixel_baselines"):
            if not "".join(getattr(self, field)).isprintable():  # a name, or several
                raise ValueError(f"{field} must be printable")
        if not self.scores.keys() <= set(SCORE_NAMES) or self.score_name not in self.scores:
            raise ValueError(f"the names of scores must be among {', '.join(SCORE_NAMES)}, and score_name one of them")
        if "combined" not in self.color_limits:
            raise ValueError("color_limits must have the limit of the combined map")

    @property
    def main(self) -> ScoreResult:
        """The result of the score that decides."""
        return self.scores[self.score_name]

    def by_score(self, name: str) -> ScoreResult:
        """Returns the result of a score, or of the one that decides if the detector does not have this one."""
        return self.scores[self.name_of(name)]

    def name_of(self, name: str) -> str:
        """Returns the name of the score that `by_score` returns."""
        return name if name in self.scores else self.score_name

    def replace(self, **fields) -> "EvaluationResult":
        """Returns a copy with other values of some fields."""
        return msgspec.structs.replace(self, **fields)

    def as_dict(self) -> dict:
        """Returns the content of evaluation.json: dictionaries, lists, strings and numbers."""
        return msgspec.to_builtins(self)


def read_evaluation(workdir: Path) -> EvaluationResult:
    """Reads evaluation.json of a run.

    If it is missing, damaged or of another version, UserError has a message that does not name the folder.
    """
    content = read_bounded(workdir / "evaluation.json", _MAX_BYTES)
    try:
        return msgspec.json.decode(content, type=EvaluationResult)
    except msgspec.ValidationError as error:
        problem, _, path = one_line(error, 300).partition(" - at `$")
        if "missing required field" in problem or "unknown field" in problem:
            raise UserError(
                f"evaluation.json was written by another version of bigan_jax ({problem[0].lower()}{problem[1:]}); run "
                "--mode=evaluate again"
            ) from error
        field = path.strip(".`")
        raise UserError(f"evaluation.json: {field}{': ' * bool(field)}{problem}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError("evaluation.json is not valid JSON") from error


def require_evaluation(workdir: Path) -> EvaluationResult:
    """Does as `read_evaluation`; the message of an error names the folder and how to fix it."""
    try:
        return read_evaluation(workdir)
    except UserError as error:
        raise UserError(
            f"{workdir} has no valid evaluation: {error}. --mode=evaluate writes it for a trained run; runs of several "
            "seeds are in the folders seed<k>."
        ) from error
