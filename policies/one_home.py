"""The one-home guard: our packages must all come from one folder.

`planner`, `executors`, `costmodels` and `policies` are common words. Another distribution of such a name, or
a folder in the working directory, replaces a part of this product without a word. For a package that decides
what may cross a boundary that must be loud: the command line, every worker and the audit verifier call this
first.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from policies.errors import EchelonError

if TYPE_CHECKING:
    # Every process calls the guard first; this import would be most of what that takes.
    from importlib import metadata

PACKAGES = ("policies", "costmodels", "planner", "executors")


class ForeignPackageError(EchelonError, ImportError):
    """One of our packages would come from somewhere else, or has lost its `__init__.py`."""


def package_homes() -> dict[str, Path | None]:
    """The folder each package would be imported from; None when there is no such package or no `__init__.py`.

    Nothing is imported: a package in memory tells its own place, any other is looked up on the import path.
    """
    homes: dict[str, Path | None] = {}
    for name in PACKAGES:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is None and name not in sys.modules:
            spec = importlib.util.find_spec(name)
            origin = spec.origin if spec is not None and spec.has_location else None
        homes[name] = Path(origin).resolve().parent.parent if origin else None
    return homes


def require_one_home(homes: Mapping[str, Path | None] | None = None) -> Path:
    """The one folder that holds all four packages.

    Args:
        homes: what `package_homes` says, unless given.

    Raises:
        ForeignPackageError: `foreign-package`, naming every place, when there is more than one folder or a
            package is no regular one.
    """
    found = package_homes() if homes is None else homes
    places = set(found.values())
    if len(places) == 1 and None not in places:
        return next(place for place in places if place is not None)
    listing = ", ".join(f"`{name}` from {home or 'nowhere'}" for name, home in found.items())
    raise ForeignPackageError(
        "foreign-package",
        f"the packages of echelon do not share one folder: {listing}",
        hint=(
            "another package or a folder of the same name is in the way: use an environment of its own,"
            " leave the folder you are in, or install echelon again"
        ),
    )


def files_unlike_record(distribution: metadata.Distribution) -> tuple[str, ...]:
    """Installed files that are missing or differ from the hash in the distribution's RECORD, sorted by path.

    RECORD is read here, since `Distribution.files` leaves out missing files from Python 3.12 on.

    Args:
        distribution: as `importlib.metadata.distribution` finds it; files without a hash are left out.
    """
    unlike: list[str] = []
    for path, recorded in recorded_hashes(distribution).items():
        algorithm, _, value = recorded.partition("=")
        try:
            content = Path(str(distribution.locate_file(path))).read_bytes()
        except OSError:
            unlike.append(path)
            continue
        digest = hashlib.new(algorithm, content).digest()
        # Digests in RECORD are URL-safe base64 without padding (PyPA: "Recording installed projects").
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != value:
            unlike.append(path)
    return tuple(sorted(unlike))


def recorded_hashes(distribution: metadata.Distribution) -> dict[str, str]:
    """`algorithm=digest` by path, for every file whose RECORD line has a hash."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1 and row[1]}
