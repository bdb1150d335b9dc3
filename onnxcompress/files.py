"""Files appear whole or not at all, and paths stay where they belong.

Every file that this package writes goes through ``write_atomic``: the bytes go to a temporary file in the same folder
(a rename is atomic only within one filesystem), reach the disk, and take the final name in one step. Whatever fails,
a full disk included, leaves the old file as it was and nothing half-written beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onnxcompress.errors import ModelError, SettingError

Content = bytes | bytearray | memoryview | Iterable[bytes | memoryview]

WHAT_TO_DO = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomic(path: str | os.PathLike[str], data: Content) -> None:
    """Write `data` (bytes, or pieces of bytes in order) as the file `path`: the whole file or nothing.

    An existing file keeps its permissions; a symbolic link keeps pointing at what it points at. SettingError where the
    folder is missing, is not writable or is full, or where `path` is a folder or a device. An exception from the
    iterable itself passes through, and nothing is written.
    """
    write_atomic_together({path: data})


def write_atomic_together(contents: Mapping[str | os.PathLike[str], Content]) -> None:
    """Write several files, all or none: all contents reach the disk under temporary names before the first rename.

    A filesystem has no rename of several files in one step. If a later rename fails, the earlier ones are undone; only
    a loss of power between two renames can leave some files new and others old. Errors as for `write_atomic`.
    """
    with contextlib.ExitStack() as temporaries:
        ready = []
        for path, data in contents.items():
            with _said(path):
                target = _target(path)
            ready.append((path, target, temporaries.enter_context(_written(path, target, data))))
        with contextlib.ExitStack() as undo:
            for path, target, temporary in ready:
                with _said(path):
                    if len(ready) > 1:
                        undo.push(_Restore(target))
                    os.replace(temporary, target)


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Called before any work: SettingError where `path` is one of the `inputs` (by name, symbolic or hard link), or
    where it could not be written at all (missing folder, folder not writable, a folder or a device)."""
    with _said(path):
        target = _target(path)
    for given in inputs:
        same = os.path.realpath(given) == str(target)
        with contextlib.suppress(OSError):  # one of the two does not exist: only the names can be the same
            same = same or os.path.samefile(given, target)
        if same:
            raise SettingError(f"{_show(path)}: the output is also an input ({_show(given)}); choose another name")


def inside(folder: str | os.PathLike[str], relative: str) -> Path:
    """The path of `relative` (as found inside a model file) below `folder`; ModelError if it leaves it.

    Symbolic links count as what they point at, so that a link cannot lead out of the folder either. The file need not
    exist.
    """
    root = Path(os.path.realpath(folder))
    reason = None
    if not relative or "\0" in relative:
        reason = "is not a file name"
    elif os.path.isabs(relative) or relative.startswith("\\") or ":" in relative[:2]:
        reason = "is an absolute path"
    else:
        path = Path(os.path.realpath(root / relative))
        if path != root and path.is_relative_to(root):
            return path
        reason = "lies outside the model's folder"
    raise ModelError(f"{root}: external data path {relative!r} {reason}; copy that file beside the model")


def cache_folder() -> Path:
    """Where fetched files are kept: $ONNXCOMPRESS_CACHE, or ~/.cache/onnxcompress. Made where it is missing."""
    named = os.environ.get("ONNXCOMPRESS_CACHE")
    folder = Path(named).expanduser() if named else Path.home() / ".cache" / "onnxcompress"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"{folder}: the cache folder cannot be made ({error.strerror}); set ONNXCOMPRESS_CACHE to another one"
        ) from error
    return folder


def _target(path: str | os.PathLike[str]) -> Path:
    """The real file behind `path`, after the checks that need no writing."""
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise SettingError(f"{os.fspath(path)!r}: not a file name; give the name of the file to write")
    target = Path(os.path.realpath(path))
    shown = _show(path)
    if target.is_dir():
        raise SettingError(f"{shown}: is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise SettingError(f"{shown}: the folder {str(target.parent)!r} does not exist; make it first")
    if target.exists() and not target.is_file():
        raise SettingError(f"{shown}: is not a regular file; choose another name")  # a rename would replace the device
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SettingError(f"{shown}: the folder {str(target.parent)!r} is not writable; {WHAT_TO_DO[errno.EACCES]}")
    return target


@contextlib.contextmanager
def _written(path: str | os.PathLike[str], target: Path, data: Content) -> Iterator[Path]:
    """A temporary file beside `target` that holds `data`; gone when the context is left, unless it was renamed."""
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"  # short: the name of the target may be at the limit
    pieces = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    try:
        with _said(path):
            file = open(temporary, "xb")  # noqa: SIM115  (closed by the with below)
        with file:
            for piece in pieces:
                with _said(path):
                    file.write(piece)
            with _said(path):
                file.flush()
                os.fsync(file.fileno())
                if target.exists():
                    os.chmod(temporary, target.stat().st_mode & 0o7777)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


class _Restore:
    """An exit callback: brings the old `target` (or its absence) back if an exception passes."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.existed = target.exists()
        self.kept = target.parent / f".{secrets.token_hex(8)}.old"
        if self.existed:
            with contextlib.suppress(OSError):  # a filesystem without hard links keeps no copy
                os.link(target, self.kept)

    def __call__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None and self.kept.exists():
            os.replace(self.kept, self.target)
        elif kind is not None and not self.existed:
            self.target.unlink(missing_ok=True)
        self.kept.unlink(missing_ok=True)  # POSIX: a rename onto another link of the same file leaves both names


@contextlib.contextmanager
def _said(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the operating system says into one line with the user's own path."""
    try:
        yield
    except OSError as error:
        advice = WHAT_TO_DO.get(error.errno or 0, "choose another place")
        raise SettingError(f"{_show(path)}: cannot be written ({error.strerror or error}); {advice}") from error


def _show(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).replace("\n", "\\n")
