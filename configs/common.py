"""Defaults of all fields, presets of the datasets, and the config argument ":brain,quick,no_se".

The argument of a config file is `<dataset>[,quick][,<ablation>...]`. Presets and ablations are flat dicts that
override fields, in the order given. Any field can also be set on the command line: `--config.seed=3`.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from bigan_jax.errors import UserError, unknown_name

# Heads and leaves vary in position. Parts under a fixed camera and heads cropped to the frame do not, and a detector
# that is trained on shifted ones tolerates more. A flipped screw is a defect.
_FLIP = {"augment.flip": True}
_SHIFT = {**_FLIP, "augment.translate": 0.03, "augment.scale": 0.03}
# MR intensities have no absolute scale; it depends on the scanner.
_MR = {"data.window": True}

# The name is data.name and, where no other is set, data.source.
DATASETS = {
    "phantom": {"data.image_size": 64, "data.category": "bottle"},
    "brain": {**_MR, **_SHIFT, "data.dir": "data/brain"},
    "brain_mixed": {**_MR, **_FLIP, "data.source": "brain", "data.dir": "data/brain_mixed"},
    "mvtec": {"data.dir": "data/mvtec_ad", "data.category": "bottle"},
    "plant": {**_SHIFT, "data.dir": "data/plant"},
    "folder": {},
}

QUICK = "quick"


def defaults() -> ConfigDict:
    """Returns a config with all fields that do not belong to a model."""
    config = ConfigDict()
    config.name = ""  # name of the detector in tables; default: model_name
    config.group = "reconstruction"  # group of the detector in tables: "reconstruction", "features" or "baseline"
    config.seed = 0  # of the weights, the batches and all noise
    config.seeds = 1  # number of seeds, from config.seed on; each is a run in a folder seed<k>
    config.batch_size = 32  # images per step, on all devices together
    config.loggers = "tensorboard"  # comma list of tensorboard, wandb and mlflow, in addition to train.jsonl; "": none
    config.on_nan = "stop"  # at a loss that is not finite; or "rollback" to a checkpoint, with half the learning rates
    config.dtype = "float32"  # type of the computation; or "bfloat16". Parameters are float32.

    config.data = ConfigDict()
    config.data.name = ""  # name of the dataset in tables
    config.data.source = ""  # layout of the folder: phantom, brain, mvtec, plant, folder
    config.data.dir = ""  # a folder or an archive of it, local or gs:// or s3://
    config.data.tfds_dir = ""  # folder of prepared data; "": TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.category = ""  # phantom domains, MVTec categories or plant species; "": all
    config.data.normal = ""  # names or patterns of folders of normal images; "": normal, good, ok, healthy, ...
    config.data.anomalous = ""  # the same for anomalous images; "": anomalous, defect, bad, nok, ...
    config.data.image_size = 128  # height and width in pixels, to which images are resized
    config.data.channels = 1  # 1: gray, as in the paper; 3: RGB
    config.data.window = False  # stretch each image from its own 1st to its 99th percentile
    config.data.fit = "stretch"  # how images become square; or "pad" with the border's median, or "crop"
    config.data.roi = ""  # an image that is white where pixels count, and black where they do not; "": all count
    config.data.split_seed = 0  # decides which images are in which split
    config.data.test_fraction = 0.2  # share of the normal images that are test images
    # Share of the other normal images that set the threshold; at least 20 or a third of them, whichever is less.
    config.data.calibration_fraction = 0.1
    config.data.calibration_folds = 0  # set by threshold.folds: fold k of K calibrates, and the others train
    config.data.calibration_fold = 0  # set by threshold.folds
    config.data.official_split = True  # use the test images of MVTec AD
    config.data.skip_unreadable = False  # skip unreadable files instead of stopping
    config.data.stream = False  # decode training images when needed; keep none in memory
    config.data.duplicates = "stop"  # at exact duplicates across splits; or "drop", "drop_near", "keep"
    config.data.phantom_normal = 400  # number of normal phantom images of each category
    config.data.phantom_anomalous = 100  # the same for anomalous images

    config.augment = ConfigDict()  # the fields of training.augmentation.AugmentationSettings
    config.augment.flip = False  # flip training images left to right, at random
    config.augment.translate = 0.0  # largest shift, as a fraction of the side
    config.augment.scale = 0.0  # largest change of the size, as a fraction
    config.augment.rotate = 0.0  # largest angle in degrees
    config.augment.brightness = 0.0  # largest change of the brightness, as a fraction

    config.score = ConfigDict()
    config.score.name = "calibrated"  # the score that decides: "calibrated", "paper", or "native", a detector's own
    config.score.mse = 0.7  # weight of the squared error in the error map (the paper, Sec. III)
    config.score.ssim = 0.3  # weight of 1 - SSIM in the error map (the paper, Sec. III)
    config.score.perceptual = 0.0  # weight of the distance of VGG16 features; it costs far more than the others
    config.score.unit_features = True  # normalize the features before they are compared
    config.score.standardize = False  # divide components by their std on training images
    config.score.symmetry = "auto"  # add the asymmetry of left and right: "on", "off" or "auto", by a label-free test
    config.score.reduction = "mean"  # of the map to the paper's score; or "max", or "top1" (mean of the highest 1 %)

    config.vgg16 = ConfigDict()
    config.vgg16.weights = ""  # a file; "": the weights of the installed package

    config.threshold = ConfigDict()
    config.threshold.rule = "conformal"  # from the calibration images; or "manual"
    config.threshold.false_alarm_rate = 0.05  # share of new normal images that may be called anomalous
    config.threshold.pixel_rate = 0.05  # share of a new normal image's pixels that may be marked
    config.threshold.folds = 0  # from 2 on: train a detector for each fold, and calibrate on all; 0: none
    config.threshold.value = 0.0  # the threshold, if the rule is "manual"

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10  # epochs between checkpoints
    config.checkpoint.keep = 2  # number of the latest checkpoints that are kept
    config.checkpoint.keep_every = 0  # also keep the checkpoint of each n-th epoch; 0: none

    config.sweep = ConfigDict()  # of --mode=sweep; comma lists; "": that of --config
    config.sweep.models = ""  # names of configs, or "all"
    config.sweep.datasets = ""  # names of datasets
    config.sweep.dirs = ""  # DATASET=DIR,...: data folders other than the default ones
    config.sweep.ablations = ""  # runs in addition to the full model: "all", or such as no_se,no_se+no_ssim
    config.sweep.seeds = 1  # number of seeds, from config.seed on
    config.sweep.splits = False  # set data.split_seed to the seed
    config.sweep.parallel = 1  # number of runs at a time on one machine
    config.sweep.ray = ""  # "auto", "local" or the address of a Ray cluster
    return config


def fitted(score: str = "calibrated") -> ConfigDict:
    """Returns the defaults of a detector that is fitted: without optimizers, phases and augmentation.

    `score` is that which decides; detectors that do not reconstruct have a "native" score only.
    """
    config = defaults()
    config.model = {}
    config.optimizers = {}
    config.phases = {}
    config.score.name = score
    config.group = "baseline"
    return config


# VGG16's deeper layers need larger images than the phantom's default.
FEATURE_PRESETS = {"phantom": {"data.image_size": 128}}


def features() -> ConfigDict:
    """Returns the defaults of a fitted detector on pretrained features, which sees color where images have it."""
    config = fitted(score="native")
    config.data.channels = 3
    config.group = "features"
    return config


def optimizer(learning_rate: float, b1: float = 0.9, rate: str = "constant") -> ConfigDict:
    """Returns the fields of an Adam optimizer; `rate` is the schedule of the rate, "constant" or "one_cycle"."""
    return ConfigDict({"learning_rate": learning_rate, "b1": b1, "b2": 0.999, "rate": rate})


def phase(epochs: int, **objectives: tuple[int, int]) -> ConfigDict:
    """Returns the fields of a phase of the schedule.

    An objective's (every, times) makes it active in each `every`-th epoch, with `times` updates per step.
    """
    frequencies = {name: {"every": every, "times": times} for name, (every, times) in objectives.items()}
    return ConfigDict({"epochs": epochs, "objectives": frequencies})


def finish(
    config: ConfigDict,
    arg: str | None,
    ablations: Mapping[str, Mapping] | None = None,
    presets: Mapping[str, Mapping] | None = None,
) -> ConfigDict:
    """Applies the argument of the config file and locks the config against new fields.

    Args:
      config: all fields of the model.
      arg: the argument, "<dataset>[,quick][,<ablation>...]"; None or "" is the phantom.
      ablations: the overrides of each ablation, by name.
      presets: the model's overrides for some datasets, by name.

    Raises:
      UserError: a name is unknown or repeated.
    """
    ablations = ablations or {}
    config.name = config.name or config.model_name
    dataset, *modifiers = (arg or "phantom").split(",")
    if dataset not in DATASETS:
        raise unknown_name("dataset", dataset, DATASETS)
    override(config, {"data.name": dataset, "data.source": dataset})
    override(config, DATASETS[dataset])
    override(config, (presets or {}).get(dataset, {}))
    for name in modifiers:
        if name == QUICK:
            _shorten(config)
        elif name in ablations:
            override(config, ablations[name])
        else:
            raise unknown_name("ablation or modifier", name, [QUICK, *ablations])
    if len(set(modifiers)) < len(modifiers):
        raise UserError(f"The config argument {arg!r} repeats a name. Remove one.")
    config.ablations = tuple(name for name in modifiers if name != QUICK)
    config.quick = QUICK in modifiers
    return config.lock()


def override(config: ConfigDict, values: Mapping) -> None:
    """Sets fields by their dotted names. Raises KeyError if one does not exist."""
    with config.ignore_type():  # tuples of another length are accepted
        for name, value in values.items():
            *path, field = name.split(".")
            node = config
            for key in path:
                node = node[key]
            if field not in node:
                raise KeyError(name)
            node[field] = value


def _shorten(config):
    """Sets 64x64 images and a tenth of the epochs, for a first try on a laptop; features need larger images."""
    if config.phases or "feature_layers" not in config.model:
        config.data.image_size = 64
    for name in config.phases:
        config.phases[name].epochs = -(-config.phases[name].epochs // 10)
