"""Where things lie in a PKI folder, and how its files are written.

trust/AUTHORITY.root.pem        root certificate          public: every process gets a copy of trust/,
trust/AUTHORITY.keys.json       who signs with which key  and the trust folders of several authorities
trust/AUTHORITY.revoked.json    what is no longer good    may be put together by copying files
authorities/AUTHORITY/root.key  the authority's own key   stays with it
parties/AUTHORITY/ROLE/NAME/    tls.pem (key and certificate), identity.key, log.key, policy.key
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from executors.boundary.pki.identities import Identity, Role
from executors.boundary.pki.statements import KeyUse
from policies.errors import InputError

TRUST = "trust"
TLS_FILE = "tls.pem"
ROOT_SUFFIX = ".root.pem"
MAX_FILE_BYTES = 8 << 20

SIGNING_KEYS: dict[Role, tuple[KeyUse, ...]] = {
    Role.COORDINATOR: (KeyUse.IDENTITY, KeyUse.LOG),
    Role.AGGREGATOR: (KeyUse.IDENTITY, KeyUse.LOG, KeyUse.POLICY),
    Role.PARTICIPANT: (KeyUse.IDENTITY,),
}


def root_file(folder: Path, authority: str) -> Path:
    """The root certificate of an authority in a trust folder."""
    return folder / f"{authority}{ROOT_SUFFIX}"


def keys_file(folder: Path, authority: str) -> Path:
    """The key statement of an authority in a trust folder."""
    return folder / f"{authority}.keys.json"


def revoked_file(folder: Path, authority: str) -> Path:
    """The revocation list of an authority in a trust folder."""
    return folder / f"{authority}.revoked.json"


def root_key_file(folder: Path, authority: str) -> Path:
    """The private root key of an authority in a PKI folder."""
    return folder / "authorities" / authority / "root.key"


def party_folder(folder: Path, identity: Identity) -> Path:
    """Where the private files of an identity lie in a PKI folder."""
    return folder / "parties" / identity.boundary / identity.role / identity.name


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, all for their owner alone."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist, readable by its owner alone, and see it to the disk.

    Raises:
        InputError: `file-exists`.
    """
    make_private_folder(path.parent)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise InputError("file-exists", f"would overwrite {path}", hint="name another folder") from error
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Put a new edition in the place of a file: a reader sees the old or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    write_new(beside, data)
    beside.replace(path)


def read_small(path: Path, what: str) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: `file-not-readable`, or `file-too-large` beyond `MAX_FILE_BYTES`.
    """
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            data = file.read(min(num_bytes, MAX_FILE_BYTES) + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("file-not-readable", f"can't read {what} {path}: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError("file-too-large", f"{what} {path} is above {MAX_FILE_BYTES:,} bytes")
    return data


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a PKI folder for a change; another change waits for it.

    Raises:
        InputError: `no-pki`, where the folder is none.
    """
    try:
        fd = os.open(folder / "authorities", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            "no-pki",
            f"{folder} is no PKI folder: it has no authorities/",
            hint="`echelon pki init` makes one",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
