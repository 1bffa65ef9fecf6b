"""Anomaly detection in images with the interface of scikit-learn's outlier detectors."""

import io
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, no_type_check

import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from bigan_jax.commands import config_files
from bigan_jax.commands.evaluate import evaluate_run
from bigan_jax.commands.load import load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.commands.train import fit
from bigan_jax.configs import common  # pyright: ignore[reportMissingImports]  # the folder configs/
from bigan_jax.data.files.images import ImageFormat, map_in_threads, read_image
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.data.inputs import ImageInput, load_images, open_inputs
from bigan_jax.data.settings import MEMORY, DataSettings
from bigan_jax.data.source import ArraySource, ImageSource, open_folder_source
from bigan_jax.data.split import TEST, apportion
from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer, Scores
from bigan_jax.runtime.jax_setup import require_platforms
from bigan_jax.runtime.lock import NAME as LOCK
from bigan_jax.runtime.run_config import flat_config, read_config

if TYPE_CHECKING:
    from sklearn.utils import Tags

# An array (n, h, w) or (n, h, w, channels), a list of images, or the name of a folder, an archive or a pattern.
Images = np.ndarray | Sequence[ImageInput] | str | Path
Labels = Sequence[int] | np.ndarray | None

_BLOCK = 128  # images in memory at a time when they are scored, with their error maps
_IN_MEMORY = {"data.name": MEMORY, "data.source": MEMORY, "data.dir": ""}
# Parameters and the fields of a config that they set, unless they are None.
_FIELDS = {
    "image_size": "data.image_size",
    "channels": "data.channels",
    "seed": "seed",
    "false_alarm_rate": "threshold.false_alarm_rate",
}
_NOT_OVERRIDES = ("data.dir", "data.name", "data.source", "data.test_fraction", "sweep.", *_FIELDS.values())


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """A detector of anomalous images that learns from normal ones.

    Images are uint8 arrays (n, h, w), (n, h, w, 1) or (n, h, w, 3), lists of arrays, Pillow images and paths of any
    size, or the name of a folder. It keeps scikit-learn's conventions for outlier detectors: `score_samples` is higher
    for more normal images, `decision_function` is below 0 for anomalous ones, and `predict` returns -1 for anomalous
    and +1 for normal ones. In place of a `contamination` there is a `false_alarm_rate`: `fit` leaves some images out of
    the training, and the threshold from their scores keeps that rate on new normal images, on average
    (`promise_` says exactly what holds).

    Args:
      model: the name of a config ("cae", "patch_gaussian", "improved_bigan"; `bigan-jax models` lists all), or of your
        own config file ("my_config.py"). Ablations follow a colon: "improved_bigan:folder,no_se".
      image_size: height and width of the images as the model sees them; None for the config's.
      channels: 1 for gray or 3 for RGB; None for the config's.
      epochs: of training; None for the config's. Several phases keep their proportions.
      seed: of initial values, shuffling and noise; 0 to 2**31 - 1.
      false_alarm_rate: of new normal images, in (0, 1).
      config: other fields of the config by dotted name, such as {"batch_size": 8, "augment.flip": True}.
      workdir: folder for the run's files. An interrupted `fit` on the same images resumes there. None for a temporary
        folder, which lasts as long as the detector.
      verbose: whether `fit` prints its progress, notes and leak audit.

    Attributes of a fitted detector:
      scorer_: the `AnomalyScorer`, with further scores and reconstructions.
      offset_: the `score_samples` below which an image is anomalous.
      pixel_threshold_: the value of `explain` from which on a pixel is anomalous.
      promise_: the false alarms that the threshold promises, in a sentence.
      workdir_: the folder of the run.

    Example:
      >>> import numpy as np
      >>> from bigan_jax import AnomalyDetector
      >>> normal = np.random.default_rng(0).integers(100, 120, (60, 32, 32), np.uint8)
      >>> detector = AnomalyDetector("pca", image_size=32).fit(normal)
      >>> spot = normal[:2].copy()
      >>> spot[1, 8:16, 8:16] = 255
      >>> detector.predict(spot).tolist()
      [1, -1]
      >>> detector.explain(spot).shape
      (2, 32, 32)
    """

    @no_type_check  # `fit` reports wrong values, as in scikit-learn
    def __init__(
        self,
        model: str = "cae",
        *,
        image_size: int | None = None,
        channels: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        false_alarm_rate: float = 0.05,
        config: Mapping[str, Any] | None = None,
        workdir: str | Path | None = None,
        verbose: bool = False,
    ):
        self.model = model
        self.image_size = image_size
        self.channels = channels
        self.epochs = epochs
        self.seed = seed
        self.false_alarm_rate = false_alarm_rate
        self.config = config
        self.workdir = workdir
        self.verbose = verbose

    @require_platforms
    @no_type_check  # wrong input is reported as a UserError
    def fit(self, X: Images, y: Labels = None) -> "AnomalyDetector":
        """Trains on normal images, and takes the threshold from some of them that it leaves out of the training.

        Args:
          X: images, or a folder or archive. In a folder, images are normal unless the names of their folders say
            otherwise (docs/reference/data.md); anomalous ones are not used.
          y: +1 for normal images and -1 for anomalous ones, which are not used. All are normal by default.

        Returns:
          The detector itself.

        Raises:
          UserError: a parameter or an image is wrong, images are too few, or `workdir` holds another run.
          Stopped: a stop was requested (Ctrl-C); a given `workdir` has the state. It is a KeyboardInterrupt.
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        config = self._make_config(X if _is_name(X) else None)
        try:
            settings = parse_settings(config)
        except (TypeError, ValueError) as error:
            raise UserError(f"A parameter has a value of the wrong type: {error}.") from error
        if settings.seeds > 1 or settings.threshold.folds:
            raise UserError(
                "AnomalyDetector fits one model. For `seeds` or `threshold.folds`, use `bigan_jax.train` with a folder."
            )
        source = _training_source(X, y, settings.data)
        folder = _RunFolder(self.workdir)
        with _quiet(not self.verbose):
            _train(config, source, folder.path)
        return self._open(folder)

    @no_type_check
    def score_samples(self, X: Images) -> Float[np.ndarray, "n"]:
        """Returns the negative anomaly score of each image: the higher, the more normal.

        No image affects the score of another one. A folder's images come in the order of their names. Raises UserError
        if an input is not an image.
        """
        return -np.concatenate([scores.score.astype(np.float64) for scores in self._scores(X)])

    @no_type_check
    def decision_function(self, X: Images) -> Float[np.ndarray, "n"]:
        """Returns `score_samples - offset_`: below 0 for anomalous images. Raises what `score_samples` does."""
        return self.score_samples(X) - self.offset_

    @no_type_check
    def predict(self, X: Images) -> Int[np.ndarray, "n"]:
        """Returns -1 for each anomalous image and +1 for each normal one. Raises what `score_samples` does."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    @no_type_check
    def explain(self, X: Images) -> Float[np.ndarray, "n h w"]:
        """Returns the anomaly map of each image, at the model's `image_size`: higher where it is anomalous.

        Pixels that reach `pixel_threshold_` are anomalous. Raises what `score_samples` does.
        """
        return np.concatenate([scores.error_map for scores in self._scores(X)])

    def save(self, path: str | Path) -> None:
        """Writes the fitted detector to a new or empty folder, which `load` and `bigan-jax predict` read.

        Raises UserError if the folder is not empty or cannot be written.
        """
        check_is_fitted(self)
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not empty. Save to a new folder.")
        try:
            shutil.copytree(self.workdir_, path, ignore=shutil.ignore_patterns(LOCK), dirs_exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "AnomalyDetector":
        """Returns the detector in a folder that `save`, or any training of this package, has written.

        Its parameters are those of the run, so that a clone of it is fitted in the same way. Raises UserError if the
        folder holds no finished run.
        """
        config = read_config(Path(path))
        return cls(**_parameters(config))._open(_RunFolder(path))

    def _open(self, folder: "_RunFolder") -> "AnomalyDetector":
        result = require_evaluation(folder.path)
        promise = result.main.promise
        # Folds, which a warning of the evaluation advises, are not for this class: the promise says what holds.
        given = [warning for warning in result.warnings if "--config.threshold.folds" not in warning]
        if promise and not promise.kept:
            given.append(promise.sentence)
        for warning in given:
            warnings.warn(warning, stacklevel=4)
        self._folder = folder  # a temporary one is deleted with it
        self.workdir_ = folder.path
        self.scorer_: AnomalyScorer = load(folder.path)
        # Scores that reach the threshold are anomalous, and a decision of 0 is normal.
        threshold = np.float32(result.main.threshold)
        if threshold < result.main.threshold:
            threshold = np.nextafter(threshold, np.float32(np.inf))
        self.offset_ = -float(np.nextafter(threshold, np.float32(-np.inf)))
        self.pixel_threshold_ = result.pixel_threshold
        self.promise_ = promise.sentence if promise else "The threshold was set by hand."
        return self

    @no_type_check
    def _scores(self, X: Images) -> Iterator[Scores]:
        check_is_fitted(self)
        if self.scorer_.conditions:
            raise UserError(
                "This model requires the condition of each image. Use `scorer_.predict(images, condition)`."
            )
        for images in _blocks(X, self.scorer_.image_format):
            yield self.scorer_.score(images)

    def _make_config(self, folder: str | Path | None) -> ConfigDict:
        """Returns the config that the parameters describe. Raises UserError for a wrong one."""
        if not isinstance(self.model, str):
            raise UserError(f"model must be the name of a config, such as 'cae' (got {self.model!r}).")
        config = _default_config(self.model)
        with config.unlocked():
            fields: dict[str, Any] = {"data.dir": str(folder)} if folder is not None else dict(_IN_MEMORY)
            fields["data.test_fraction"] = 0.0
            values = {name: getattr(self, name) for name in _FIELDS}
            fields |= {_FIELDS[name]: value for name, value in values.items() if value is not None}
            if self.epochs is not None:
                fields |= _phase_epochs(config, self.model, self.epochs)
            for name, value in {**fields, **(self.config or {})}.items():
                try:
                    common.override(config, {name: value})
                except (KeyError, TypeError) as error:
                    raise UserError(
                        f"The config {self.model} has no field {name!r}. Remove it from `config`."
                    ) from error
        return config

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "scorer_")

    def __sklearn_tags__(self) -> "Tags":
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # of numbers: rows are images
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Returns the parameters and the files of the run: compiled programs cannot be pickled."""
        state: dict[str, Any] = {"parameters": self.get_params(deep=False), "run": None}
        if hasattr(self, "scorer_"):
            with io.BytesIO() as content:
                with tarfile.open(fileobj=content, mode="w") as archive:
                    archive.add(self.workdir_, ".")
                state["run"] = content.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["parameters"])
        if state["run"] is not None:
            folder = _RunFolder(None)
            with tarfile.open(fileobj=io.BytesIO(state["run"])) as archive:
                archive.extractall(folder.path, filter="data")
            with warnings.catch_warnings(action="ignore"):  # `fit` has given them
                self._open(folder)


class _RunFolder:
    """The folder of a run; a temporary one is deleted with this object."""

    def __init__(self, path: str | Path | None):
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="bigan_jax-")
            path = self._temporary.name
        self.path = Path(path)


def _default_config(model: str) -> ConfigDict:
    """Returns a model's config for a folder of images. Raises UserError if there is none of that name."""
    file, _, argument = config_files.resolve(model).partition(":")
    get_config = config_files.load(file)
    assert get_config  # resolve has found it
    return get_config(argument or "folder")


def _phase_epochs(config: ConfigDict, model: str, epochs: int) -> dict[str, int]:
    """Divides epochs among the phases, in the config's proportions."""
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs must be a positive integer, or None for the config's (got {epochs!r}).")
    phases = {index: name for index, name in enumerate(config.phases) if config.phases[name].epochs}
    if not phases:
        raise UserError(f"epochs={epochs}: {model} is fitted without epochs. Leave epochs out.")
    shares = apportion(epochs, {index: config.phases[name].epochs for index, name in phases.items()})
    return {f"phases.{phases[index]}.epochs": share for index, share in shares.items()}


def _parameters(config: ConfigDict) -> dict[str, Any]:
    """Returns the parameters of an AnomalyDetector that has a run's config."""
    model = config.name if config.name in config_files.find() else config.model_name
    default, fields = flat_config(_default_config(model)), flat_config(config)
    others = {
        name: value
        for name, value in fields.items()
        if not name.startswith(_NOT_OVERRIDES) and (name not in default or default[name] != value)
    }
    return {"model": model, **{name: fields[field] for name, field in _FIELDS.items()}, "config": others or None}


@no_type_check
def _training_source(X: Images, y: Labels, settings: DataSettings) -> ImageSource:
    """Returns the normal images, without official test images. Raises what `AnomalyDetector.fit` does."""
    if _is_name(X):
        if y is not None:
            raise UserError(f"y is for images in memory; the names of folders say which images of {X} are normal.")
        source = open_folder_source(settings)
        return replace(source, records=[r for r in source.records if not r.label and r.official_split != TEST])
    images = _as_sequence(X)
    if y is not None:
        label = np.asarray(y)
        if label.shape != (len(images),) or not np.isin(label, (-1, 1)).all():
            raise UserError(
                f"y must have +1 (normal) or -1 (anomalous) for each of the {len(images)} images (got the values "
                f"{np.unique(label)[:5].tolist()} in the shape {label.shape})."
            )
        images = images[label == 1] if isinstance(images, np.ndarray) else list(compress(images, label == 1))
    if not len(images):
        raise UserError("There are no normal images to train on.")
    return ArraySource(load_images(images, settings.image_format))


def _train(config: ConfigDict, source: ImageSource, workdir: Path) -> None:
    """Trains and calibrates, or resumes a training on the same images."""
    with prepare_jobs({workdir: config}, source) as (job,):
        audit, n_train = job.audit, len(job.dataset.train.label)
        started = (workdir / "split.csv").exists()
        if started and (audit.count_added_later(workdir) or audit.count_trained(workdir) != n_train):
            raise UserError(f"{workdir} holds a detector that was fitted on other images. Use another workdir.")
        state = fit(job)
        evaluated = job.dataset, audit, job.built.detector, state, job.epochs, job.workdir
        evaluate_run(config, *evaluated, job.fitter)


@no_type_check
def _blocks(X: Images, image_format: ImageFormat) -> Iterator[UInt8[np.ndarray, "n size size channels"]]:
    """Yields the decoded images of an input, some at a time."""
    if not _is_name(X):
        images = _as_sequence(X)
        for start in range(0, max(len(images), 1), _BLOCK):  # scoring no image is an error
            yield load_images(images[start : start + _BLOCK], image_format)
        return
    with tempfile.TemporaryDirectory(prefix="bigan_jax-") as temporary, open_inputs(X, Path(temporary)) as inputs:
        folder, names, _ = inputs
        for start in range(0, len(names), _BLOCK):
            block = names[start : start + _BLOCK]
            contents = dict(zip(block, folder.read(block, False), strict=True))
            images = map_in_threads(partial(_decode, contents, image_format), block, "images")
            for image in images:
                if isinstance(image, UnreadableFile):
                    raise UserError(f"{folder.root / image.path}: {image.reason}")
            yield np.stack(images)


def _decode(contents, image_format, name):
    if isinstance(contents[name], UnreadableFile):
        return contents[name]
    return try_read(name, lambda: read_image(io.BytesIO(contents[name]), *image_format))


@no_type_check
def _is_name(X: Images) -> TypeGuard[str | Path]:
    return isinstance(X, str | Path)


def _as_sequence(X):
    if isinstance(X, np.ndarray | Sequence):
        return X
    if not isinstance(X, Iterable):  # a Pillow image
        raise UserError(f"Images must be a list or an array (got {type(X).__name__}): use [image] for a single one.")
    return list(X)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Hides what a training prints, its progress bars included."""
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield
