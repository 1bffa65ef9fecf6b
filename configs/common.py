"""What all models share: defaults, dataset presets, and the reading of ":brain,quick,no_se".

A config file's argument is `<dataset>[,quick][,<ablation>...]`. Presets and ablations are values:
flat dicts of overrides, applied in the order given. Every field can be set on the command line as
well: `--config.seed=3`.
"""

import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError, unknown_name

# Heads and leaves lie a little differently in every picture. Parts under a fixed camera do not, nor
# heads that are cut out to the frame, and a detector that was shown moved ones forgives more. A
# flipped screw is a defect.
_FLIP = {"augment.flip": True}
_GENTLE = {**_FLIP, "augment.translate": 0.03, "augment.scale": 0.03}
# What a voxel of MR shows is its place among the others: the scale is the scanner's.
_MR = {"data.window": True}

# Each names its data source; `data.name` is what tables call the set.
DATASETS = {
    "phantom": {"data.image_size": 64, "data.category": "bottle"},
    "brain": {**_MR, **_GENTLE, "data.dir": "data/brain"},
    "brain_mixed": {**_MR, **_FLIP, "data.source": "brain", "data.dir": "data/brain_mixed"},
    "mvtec": {"data.dir": "data/mvtec_ad", "data.category": "bottle"},
    "plant": {**_GENTLE, "data.dir": "data/plant"},
    "folder": {},
}

QUICK = "quick"


def defaults() -> ConfigDict:
    """Every field that is not a model's own."""
    config = ConfigDict()
    config.name = ""  # what tables call the detector; the model's by default
    config.seed = 0
    config.seeds = 1  # from config.seed on, trained by one command; each in a folder seed<k>
    config.batch_size = 32
    config.on_nan = "stop"  # or "rollback": to the last good checkpoint, learning rates halved
    config.dtype = "float32"  # of computation: "bfloat16" on accelerators; parameters stay float32

    config.data = ConfigDict()
    config.data.name = ""
    config.data.source = ""  # phantom, brain, mvtec, plant, folder: how the folder is laid out
    config.data.dir = ""  # a folder, or an archive of it; gs:// and s3:// as well
    config.data.tfds_dir = ""  # of prepared data; "" is TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.category = ""  # phantom domains, MVTec categories, plant species; "" takes all
    config.data.image_size = 128
    config.data.channels = 1  # 1: gray, as in the paper; 3: RGB
    config.data.window = False  # stretch each picture from its own 1st to its 99th percentile
    config.data.split_seed = 0
    config.data.test_fraction = 0.2  # of the normal pictures
    config.data.calibration_fraction = 0.1  # of the normal pictures that are not test
    config.data.official_split = True  # MVTec's own test pictures
    config.data.skip_unreadable = False  # leave out what cannot be read, instead of stopping
    config.data.stream = False  # decode training pictures as they are needed, and hold none
    config.data.duplicates = "stop"  # at exact copies across parts; or "drop", "drop_near", "keep"
    config.data.phantom_normal = 400  # of each category
    config.data.phantom_anomalous = 100

    config.augment = ConfigDict()
    config.augment.flip = False
    config.augment.translate = 0.0
    config.augment.scale = 0.0
    config.augment.rotate = 0.0  # degrees
    config.augment.brightness = 0.0

    config.score = ConfigDict()  # the paper, Sec. III: 70 % MSE, 30 % SSIM error
    config.score.mse = 0.7
    config.score.ssim = 0.3
    config.score.perceptual = 0.0  # VGG16's features; above 0 it costs far more than the rest
    config.score.unit_features = True  # scale them to one strength before they are compared
    config.score.standardize = False  # divide each term by its spread on the calibration normals
    config.score.reduction = "mean"  # or, of the combined map, "max", "top1" (its highest 1 %)

    config.vgg16 = ConfigDict()
    config.vgg16.weights = ""  # a file, or "" for those of the installed package

    config.threshold = ConfigDict()
    config.threshold.rule = "conformal"  # or "manual"
    config.threshold.false_alarm_rate = 0.05
    config.threshold.value = 0.0  # for "manual"

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10  # epochs
    config.checkpoint.keep = 2
    config.checkpoint.keep_every = 0  # epochs whose checkpoints stay besides; 0: none

    config.sweep = ConfigDict()  # --mode=sweep: comma lists; "" is what --config names
    config.sweep.models = ""  # or "all"
    config.sweep.datasets = ""
    config.sweep.dirs = ""  # DATASET=DIR,...: data folders that are not the default ones
    config.sweep.ablations = ""  # beside the full model, where it has them; "all", no_se+no_ssim
    config.sweep.seeds = 1  # from config.seed on
    config.sweep.splits = False  # each seed with a split of its own: data.split_seed is the seed
    config.sweep.parallel = 1  # runs at a time on one machine
    config.sweep.ray = ""  # "auto", "local" or the address of a Ray cluster
    return config


def optimizer(learning_rate: float, b1: float = 0.9, rate: str = "constant") -> ConfigDict:
    """Adam's fields; `rate` is "constant" or "one_cycle" (schedule.optimizer)."""
    return ConfigDict({"learning_rate": learning_rate, "b1": b1, "b2": 0.999, "rate": rate})


def phase(epochs: int, **turns: tuple[int, int]) -> ConfigDict:
    """A phase of the schedule: objective=(every so many epochs, so many times a step)."""
    objectives = {name: {"every": every, "times": times} for name, (every, times) in turns.items()}
    return ConfigDict({"epochs": epochs, "objectives": objectives})


def finish(
    config: ConfigDict,
    arg: str | None,
    ablations: Mapping[str, Mapping] | None = None,
    presets: Mapping[str, Mapping] | None = None,
) -> ConfigDict:
    """Applies the config file's argument and locks the config against new fields.

    ablations: by name, the overrides each one stands for.
    presets: by dataset, this model's own overrides there.
    Raises UserError for names that there are not.
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
            _quicken(config)
        elif name in ablations:
            override(config, ablations[name])
        else:
            raise unknown_name("ablation or modifier", name, [QUICK, *ablations])
    if len(set(modifiers)) < len(modifiers):
        raise UserError(f"{arg!r} names something twice")
    config.ablations = tuple(name for name in modifiers if name != QUICK)
    config.quick = QUICK in modifiers
    return config.lock()


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UserError for a `--config` file or a `--config.<field>` that there is not.

    Looks before Absl does, whose answer to either is a traceback.
    """
    named = dict(a.lstrip("-").partition("=")[::2] for a in arguments if a.startswith("-"))
    if named.get("config") == "":
        raise UserError("--config is empty: give --config=configs/<model>.py:<dataset>")
    if "config" not in named:
        if fields := [name for name in named if name.startswith("config.")]:
            raise UserError(
                f"--{fields[0]} is a field of a config: say which as well, such as "
                "--config=configs/cae.py:mvtec"
            )
        return
    file, _, arg = named["config"].partition(":")
    get_config = runpy.run_path(file).get("get_config") if Path(file).is_file() else None
    if get_config is None:
        if not _config_files():
            home = Path(__file__).parents[1]
            raise UserError(f"there is no {file} here: start launch.py in {home}")
        like = f"configs/{Path(file).stem.lower()}.py"
        raise unknown_name("config file", file, _config_files(), like)
    config = get_config(arg or None)
    for name in named:
        group, _, field = name.partition(".")
        if field and group in config:
            raise UserError(f"--{name}: a field of the config is set by --config.{name}")
        _check_field(config, name.split("."))


def _config_files() -> list[str]:
    return [str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "common")]


def _check_field(config: ConfigDict, path: list[str]) -> None:
    if path[0] != "config":
        return
    node = config
    for depth, field in enumerate(path[1:], 1):
        if not isinstance(node, ConfigDict):
            raise UserError(f"{'.'.join(path[:depth])} is a value: it has no field {field!r}")
        if field not in node:
            where = ".".join(path[:depth])
            if deeper := [name for name in _fields(node) if name.rpartition(".")[2] == field]:
                raise UserError(f"unknown field '{where}.{field}'. It is {where}.{deeper[0]}")
            raise unknown_name("field", f"{where}.{field}", [f"{where}.{name}" for name in node])
        node = node[field]
    if len(path) > 1 and isinstance(node, ConfigDict):
        fields = ", ".join(f"{'.'.join(path)}.{name}" for name in node)
        raise UserError(f"{'.'.join(path)} has fields of its own: set {fields}")


def _fields(node: Mapping, start: str = "") -> Iterator[str]:
    """All fields below a node, by their dotted names."""
    for name, value in node.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{start}{name}.")
        else:
            yield f"{start}{name}"


def override(config: ConfigDict, values: Mapping) -> None:
    """Sets fields by their dotted names; a name that there is not is a KeyError."""
    with config.ignore_type():  # a tuple may give way to one of another length
        for name, value in values.items():
            *path, field = name.split(".")
            node = config
            for part in path:
                node = node[part]
            if field not in node:
                raise KeyError(name)
            node[field] = value


def _quicken(config):
    """For a first look on a laptop: 64x64 and a tenth of the schedule."""
    config.data.image_size = 64
    for name in config.phases:
        config.phases[name].epochs = -(-config.phases[name].epochs // 10)
