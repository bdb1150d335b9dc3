"""Files appear whole or not at all, and the error names the user's path."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxcompress import files
from onnxcompress.errors import ModelError, SettingError


def test_bytes_and_pieces_arrive_whole(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", b"one")
    files.write_atomic(str(tmp_path / "b"), iter([b"t", b"", b"wo"]))
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_failing_iterable_leaves_the_old_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no more")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ValueError, match="no more"):
        files.write_atomic(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_device_is_not_replaced() -> None:
    if not os.path.exists("/dev/null"):
        pytest.skip("no /dev/null on this system")
    with pytest.raises(SettingError, match="not a regular file"):
        files.write_atomic("/dev/null", b"x")
    assert not Path("/dev/null").is_file()


def test_a_write_that_fails_half_way(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SettingError, match="a: cannot be written"):
            files.write_atomic(tmp_path / "a", iter([b"x" * 60_000] * 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_the_system_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files.os, failing, full)
    said = r"a: cannot be written \(No space left on device\); free some space"
    with pytest.raises(SettingError, match=said) as caught:
        files.write_atomic(tmp_path / "a", b"new")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_together_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_bytes(b"old")
    names = [tmp_path / "old", tmp_path / "new", tmp_path / "last"]
    real = os.replace

    def last_fails(source: Path, target: Path) -> None:
        if target.name == "last":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", last_fails)
        with pytest.raises(SettingError, match="last: cannot be written"):
            files.write_atomic_together({name: b"x" for name in names})
    assert (tmp_path / "old").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old"]
    files.write_atomic_together({name: b"x" for name in names})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"x", "new": b"x", "last": b"x"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "a", {b"a" * 100_000, b"b" * 100_000}
    path.write_bytes(b"a" * 100_000)
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in sorted(contents):
            files.write_atomic(path, content)
    done.set()
    reader.join()
    assert seen <= contents


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/a", "not exist; make it first"), ("folder", "is a folder"), ("", "not a file"), ("\0", "not a file")],
)
def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=message):
        files.write_atomic(name, b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SettingError, match="is not writable; choose a folder that you may write to"):
        files.check_output(tmp_path / "a", [])


def test_permissions_links_and_long_names_survive(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    files.write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    files.write_atomic(tmp_path / ("n" * 255), b"long")
    with pytest.raises(SettingError, match="choose a shorter name"):
        files.write_atomic(tmp_path / ("n" * 256), b"long")


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("relative", ["w.bin", "sub/w.bin", "sub/../w.bin", "./w.bin", "a..b"])
def test_inside_accepts(tmp_path: Path, relative: str) -> None:
    assert files.inside(tmp_path, relative).is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    "relative", ["../w.bin", "a/../../w.bin", "/etc/passwd", "C:\\w.bin", "\\\\host\\w", "", ".", "a\0b", "out/p"]
)
def test_inside_refuses(tmp_path: Path, relative: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "out").symlink_to("/etc")
    with pytest.raises(ModelError, match="copy that file beside the model"):
        files.inside(folder, relative)


def test_inside_a_folder_with_a_brother_of_the_same_beginning(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m2").mkdir()
    with pytest.raises(ModelError, match="outside"):
        files.inside(tmp_path / "m", "../m2/w.bin")


def test_output_equal_to_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    (tmp_path / "soft").symlink_to(model)
    os.link(model, tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    for output in ("model.onnx", "soft", "hard", "./model.onnx", tmp_path / "model.onnx"):
        with pytest.raises(SettingError, match="also an input"):
            files.check_output(output, [model])
    with pytest.raises(SettingError, match="also an input"):
        files.check_output("missing.onnx", [tmp_path / "missing.onnx"])
    files.check_output("other.onnx", [model, tmp_path / "missing.onnx"])
    assert not (tmp_path / "other.onnx").exists()


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXCOMPRESS_CACHE", str(tmp_path / "a" / "b"))
    assert files.cache_folder() == tmp_path / "a" / "b" and files.cache_folder().is_dir()
    monkeypatch.delenv("ONNXCOMPRESS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "onnxcompress"
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ONNXCOMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(SettingError, match="ONNXCOMPRESS_CACHE"):
        files.cache_folder()
