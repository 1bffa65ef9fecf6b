"""Data in buckets."""

import shutil

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bigan_jax.errors import UserError
from tests.helpers.prepared import by_path, draw, draw_mvtec, pillow, same


class Bucket(MemoryFileSystem):
    """Replaces S3."""

    protocol = "s3"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3://"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    fsspec.register_implementation("s3", Bucket, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Bucket.store.clear()
    yield Bucket()
    Bucket.store.clear()


def test_bucket_equals_a_local_folder(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec")
    local = load("mvtec", folder)
    bucket.put(str(folder), "s3://mine/mvtec", recursive=True)
    remote = {"tfds_dir": "s3://mine/tfds"}
    for _ in range(2):
        assert same(load("mvtec", "s3://mine/mvtec", **remote), local)
        assert same(load("mvtec", "s3://mine/mvtec"), local)
        shutil.rmtree(tmp_path / "cache")  # another machine
    assert same(load("mvtec", folder, **remote), local)
    assert {p.rsplit("/", 3)[1].split("-")[0] for p in bucket.find("s3://mine/tfds")} == {"bottle", "pill"}
    file = "pill/train/good/000.png"
    bucket.put_file(str(draw(folder / file, seed=9, size=(41, 41))), f"s3://mine/mvtec/{file}")
    changed = by_path(load("mvtec", "s3://mine/mvtec", **remote))[file]
    np.testing.assert_array_equal(changed, pillow(folder / file))
    bucket.rm("s3://mine/mvtec", recursive=True)
    assert any("is missing" in n for n in load("mvtec", "s3://mine/mvtec", **remote).notes)
    with pytest.raises(UserError, match="There is no folder s3://mine/other"):
        load("mvtec", "s3://mine/other", **remote)
    with pytest.raises(UserError, match="unknown scheme"):
        load("mvtec", "ftp://mine/mvtec")
    fsspec.register_implementation("az", "nowhere.To", clobber=True, errtxt="Install adlfs")
    for root, fields in ("az://mine/mvtec", {}), (folder, {"tfds_dir": "az://mine/tfds"}):
        with pytest.raises(UserError, match="cannot be reached: Install adlfs"):
            load("mvtec", root, **fields)


def test_archive_in_a_bucket(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "xztar", folder)
    bucket.put_file(archive, "s3://mine/bottle.tar.xz")
    loaded = load("mvtec", "s3://mine/bottle.tar.xz", tfds_dir="s3://mine/tfds")
    assert same(loaded, load("mvtec", folder))


def test_user_without_a_name_can_prepare_data(tmp_path, load, monkeypatch):
    """In a container that runs under a numeric user id, there is no account name."""

    def raise_unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", raise_unknown)
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "zip", folder)
    assert same(load("mvtec", folder), load("mvtec", archive))
