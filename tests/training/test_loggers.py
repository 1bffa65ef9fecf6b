"""Loggers of training curves: the protocol, the names in a config, and the adapters in their offline modes."""

import json
import math
import struct

import pytest

from bigan_jax.commands import train
from bigan_jax.configs import fcae
from bigan_jax.errors import UserError
from bigan_jax.training.epoch_logger import EpochLogger
from bigan_jax.training.saving import loggers
from bigan_jax.training.saving.progress import Progress
from tests.helpers.runs import TINY_FCAE, configured

VALUES = [{"reconstruction/loss": 0.5, "seconds": 2.0}, {"reconstruction/loss": 0.25, "seconds": 1.0}]


def test_names_are_parsed_once_each():
    assert loggers.parse_loggers(" tensorboard,wandb, tensorboard,") == ("tensorboard", "wandb")
    assert loggers.parse_loggers("") == ()
    with pytest.raises(UserError, match=r"config\.loggers.*'wandv'.*wandb"):
        loggers.parse_loggers("wandv")


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_missing_package_is_reported_before_training(monkeypatch, name, package):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    loggers.require_installed(["tensorboard"])
    with pytest.raises(UserError, match=rf"config\.loggers={name} requires the package {package}.*\[{name}\]"):
        loggers.require_installed(["tensorboard", name])


def test_run_logs_each_epoch_to_registered_loggers(tmp_path, monkeypatch):
    """The values are those of train.jsonl. Without `tensorboard` there are no event files."""
    logged, closed = [], []

    class ListLogger:
        def __init__(self, workdir, first_epoch):
            logged.append((workdir.name, first_epoch))

        def log(self, values, epoch):
            logged.append((epoch, values))

        def close(self):
            closed.append(True)

    monkeypatch.setitem(loggers.LOGGERS, "list", ListLogger)
    monkeypatch.setattr(train, "evaluate_run", lambda *_: {})
    fields = TINY_FCAE | {"loggers": "list", "phases.phase1.epochs": 2}
    train.train(configured(fcae, "phantom", fields), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]
    texts = {"epoch", "phase", "step", "health"}
    assert logged == [("run", 1), *((row["epoch"], {k: row[k] for k in row if k not in texts}) for row in rows)]
    assert len(rows) == 2 and closed == [True]
    assert not (tmp_path / "run/events").exists()


def test_loggers_are_closed_if_a_later_one_fails_to_open(tmp_path, monkeypatch):
    closed = []

    class Opened:
        def __init__(self, workdir, first_epoch): ...

        def log(self, values, epoch): ...

        def close(self):
            closed.append(True)

    def refuse(workdir, first_epoch):
        raise UserError("refused")

    monkeypatch.setitem(loggers.LOGGERS, "opened", Opened)
    monkeypatch.setitem(loggers.LOGGERS, "refuse", refuse)
    with pytest.raises(UserError, match="refused"):
        EpochLogger(tmp_path, Progress(0), 4, ("opened", "refuse"))
    assert closed == [True]


def _log_twice(make, workdir):
    """Logs one epoch, and the next one with a new logger, as a resumed training does."""
    workdir.mkdir()
    (workdir / "config.json").write_text('{"format": 4, "seed": 3, "data": {"image_size": 64}}', encoding="utf-8")
    for epoch, values in enumerate(VALUES, 1):
        logger = make(workdir, epoch)
        logger.log(values, epoch)
        logger.close()


def test_mlflow_stores_curves_of_a_resumed_run_in_one(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    mlflow.set_tracking_uri(None)
    _log_twice(loggers.MlflowLogger, tmp_path / "run")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params == {"format": "4", "seed": "3", "data.image_size": "64"}
    for name in VALUES[0]:
        curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert curve == [(1, VALUES[0][name]), (2, VALUES[1][name])]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(UserError, match=r"config\.loggers=mlflow: .*MLFLOW_TRACKING_URI"):
        loggers.MlflowLogger(tmp_path / "run", 1)


def _records(content, block=2**15, header=7):
    """Yields the records of a .wandb file: LevelDB's log format, after a header of seven bytes."""
    position, record = header, b""
    while position + header <= len(content):
        length, kind = struct.unpack("<HB", content[position + 4 : position + header])
        if not kind or block - position % block < header:  # the rest of a block is filled up
            position += block - position % block
            continue
        record += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def test_wandb_stores_curves_of_a_resumed_run_under_one_id(tmp_path, monkeypatch):
    """Offline, each start has a file of its own; they have the same id, so that W&B joins them."""
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _log_twice(loggers.WandbLogger, tmp_path / "run")
    wandb.teardown()  # waits for its process, which writes the files
    history, ids, configs = [], set(), []
    for file in sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb")):
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                configs.append({item.key: json.loads(item.value_json) for item in record.run.config.update})
            if record.HasField("history"):
                items = record.history.item
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                history.append({name: value for name, value in row.items() if not name.startswith("_")})
    assert ids == {(tmp_path / "run/wandb.id").read_text()}
    assert configs[0]["seed"] == 3 and configs[0]["data"] == {"image_size": 64}
    assert [row["epoch"] for row in history] == [1, 2]
    for row, values in zip(history, VALUES, strict=True):
        assert all(math.isclose(row[name], value) for name, value in values.items())
