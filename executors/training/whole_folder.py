"""Folders that appear with all their files or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from executors.training.disk import full_disk_named
from policies.errors import InputError


@contextmanager
def whole_folder(target: Path, mark: str) -> Iterator[Path]:
    """A folder to write into, which gets its name when everything in it is on disk.

    An earlier folder of that name is replaced if it holds a file called `mark`, which every folder written
    here must contain. When writing fails, nothing is left and an earlier folder stays as it was; a process
    killed while writing leaves a hidden `.<name>.partial`, which the next writer removes; one killed while
    replacing may leave the earlier folder as `.<name>.before`, which the next writer puts back.

    Raises:
        InputError: `folder-taken`: the target exists and is not ours.
        ExecutorFailedError: `disk-full`.
    """
    if target.exists() and not (target / mark).is_file() and not _is_empty_folder(target):
        raise InputError(
            "folder-taken",
            f"{target} exists and was not written by an earlier run (it has no {mark})",
            hint="name another folder",
        )
    partial = target.with_name(f".{target.name}.partial")
    _restore(target)
    with full_disk_named(target):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in sorted(partial.iterdir()):
                _flush(path)
            _flush(partial)
            _take_name(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _take_name(partial: Path, target: Path) -> None:
    """Put the finished folder in its place; the one before goes only after that."""
    before = _before(target)
    shutil.rmtree(before, ignore_errors=True)
    if target.exists():
        target.rename(before)
    try:
        partial.rename(target)
    except OSError:
        _restore(target)
        raise
    _flush(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def _restore(target: Path) -> None:
    """Give an earlier folder its name back, if a process was killed between taking and giving it."""
    if not target.exists() and _before(target).exists():
        _before(target).rename(target)


def _before(target: Path) -> Path:
    return target.with_name(f".{target.name}.before")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
