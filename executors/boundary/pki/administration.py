"""What an authority does with a PKI folder (see `layout`): set it up, add parties, rotate and revoke."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from executors.boundary.pki.certificates import (
    authority_of,
    certificate_pem,
    make_leaf,
    make_root,
    parse_certificate,
    parse_private,
    private_pem,
    raw_public,
)
from executors.boundary.pki.identities import GLOBAL, Identity, Role
from executors.boundary.pki.layout import (
    SIGNING_KEYS,
    TLS_FILE,
    TRUST,
    keys_file,
    make_private_folder,
    one_at_a_time,
    party_folder,
    read_small,
    replace_file,
    revoked_file,
    root_file,
    root_key_file,
    write_new,
)
from executors.boundary.pki.statements import (
    KEYS_SCHEMA,
    REVOKED_SCHEMA,
    KeyEntry,
    KeyUse,
    RevokedEntry,
    Statement,
    parse_statement,
    sign_statement,
)
from policies.errors import InputError

TLS = "tls"
"""What `rotate` calls the pair of TLS key and certificate."""


class Authority:
    """One authority of a PKI folder with its root key in hand."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read root key, root certificate and statements.

        Raises:
            InputError: a file is missing or wrong.
        """
        self.folder = folder
        self.trust = folder / TRUST
        key_file = root_key_file(folder, name)
        self.key: Ed25519PrivateKey = parse_private(read_small(key_file, "root key"), place=str(key_file))
        certificate_file = root_file(self.trust, name)
        pem = read_small(certificate_file, "root certificate")
        self.root: x509.Certificate = parse_certificate(pem, place=str(certificate_file))
        self.run, self.name = authority_of(self.root)
        if raw_public(self.key.public_key()) != raw_public(self.root.public_key()):  # type: ignore[arg-type]
            raise InputError("bad-key", f"{key_file} is not the key of {certificate_file}")

    def statement(self, schema: str) -> Statement:
        """The present statement of keys or of revocations."""
        path = (keys_file if schema == KEYS_SCHEMA else revoked_file)(self.trust, self.name)
        text = read_small(path, "statement")
        return parse_statement(text, self.key.public_key(), schema=schema, place=str(path))

    def publish(self, statement: Statement) -> None:
        """Sign the next edition of a statement and put it in the place of the present one."""
        path = (keys_file if statement.schema == KEYS_SCHEMA else revoked_file)(self.trust, self.name)
        replace_file(path, sign_statement(replace(statement, number=statement.number + 1), self.key))

    def identity(self, role: Role, name: str) -> Identity:
        """An identity under this authority."""
        return Identity(run=self.run, boundary=self.name, role=role, name=name)

    def tls_pem(self, identity: Identity, *, now: datetime, days: int) -> bytes:
        """A new TLS key with its certificate."""
        key = Ed25519PrivateKey.generate()
        leaf = make_leaf(identity, key.public_key(), self.key, self.root, now=now, days=days)
        return private_pem(key) + certificate_pem(leaf)


def set_up(
    folder: Path, *, run: str, boundaries: Sequence[str], num_participants: int, days: int, now: datetime
) -> list[Identity]:
    """Make a whole PKI: a root for the coordinator and for each boundary, and all their parties.

    Participants are called p0, p1 and so on. All of it appears at once, or nothing does.

    Raises:
        InputError: `folder-not-empty`, `file-not-writable`, `bad-identity`, `name-twice`.
    """
    wanted = [Identity(run=run, boundary=GLOBAL, role=Role.COORDINATOR, name="coordinator")]
    for boundary in boundaries:
        wanted.append(Identity(run=run, boundary=boundary, role=Role.AGGREGATOR, name="aggregator"))
        names = [f"p{index}" for index in range(num_participants)]
        wanted += [Identity(run=run, boundary=boundary, role=Role.PARTICIPANT, name=name) for name in names]
    # Names become files, and some file systems do not tell capitals from small letters.
    if len({boundary.lower() for boundary in boundaries}) != len(boundaries):
        raise InputError("name-twice", f"boundaries {', '.join(boundaries)}: two are called the same")
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(
            "folder-not-empty", f"{folder} exists and is not an empty folder", hint="name another folder"
        )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        make_private_folder(beside)
        for authority in (GLOBAL, *boundaries):
            _set_up_authority(beside, run, authority, now=now, days=days)
            _enrol(Authority(beside, authority), [i for i in wanted if i.boundary == authority], now, days)
        beside.replace(folder)
    except OSError as error:
        raise InputError(
            "file-not-writable", f"can't fill {folder}: {error.strerror or error}", hint="name another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return wanted


def add(folder: Path, boundary: str, role: Role, name: str, *, days: int, now: datetime) -> Identity:
    """Add a party to an authority, with all keys its role has.

    Raises:
        InputError: `party-exists`, or the folder is not a PKI with that authority.
    """
    with one_at_a_time(folder):
        authority = Authority(folder, boundary)
        identity = authority.identity(role, name)
        present = {entry.holder.lower() for entry in authority.statement(KEYS_SCHEMA).keys}
        if identity.holder.lower() in present or party_folder(folder, identity).exists():
            raise InputError(
                "party-exists", f"there is a {identity} already", hint="`echelon pki rotate` renews its keys"
            )
        _enrol(authority, [identity], now, days)
    return identity


def rotate(
    folder: Path, boundary: str, role: Role, name: str, what: str, *, days: int, now: datetime
) -> Identity:
    """Replace one key of a party: `tls`, `identity`, `log` or `policy`. The old private key is then gone.

    A signing key's old public half stays in the key statement with the time at which it ended, so that what
    it signed before can still be checked. An old TLS certificate stays good until it expires or is revoked.

    Raises:
        InputError: `no-such-party`, `no-such-key`.
    """
    with one_at_a_time(folder):
        authority = Authority(folder, boundary)
        identity = _require_party(authority, role, name)
        place = party_folder(folder, identity)
        if what == TLS:
            replace_file(place / TLS_FILE, authority.tls_pem(identity, now=now, days=days))
            return identity
        if what not in SIGNING_KEYS[role]:
            known = ", ".join([TLS, *SIGNING_KEYS[role]])
            raise InputError("no-such-key", f"{identity} has no `{what}` key", hint=f"it has {known}")
        key, statement = Ed25519PrivateKey.generate(), authority.statement(KEYS_SCHEMA)
        at_s = _unix_s(now)
        ended = tuple(
            replace(entry, until_s=at_s, reason="rotated")
            if (entry.holder, entry.use, entry.until_s) == (identity.holder, what, 0)
            else entry
            for entry in statement.keys
        )
        # The key goes first: a crash in between leaves a key nobody knows, and the next rotation mends that.
        replace_file(place / f"{what}.key", private_pem(key))
        authority.publish(replace(statement, keys=(*ended, _entry(identity, KeyUse(what), key, at_s))))
    return identity


def revoke(
    folder: Path,
    boundary: str,
    role: Role,
    name: str,
    *,
    reason: str,
    certificate: Path | None,
    now: datetime,
) -> Identity:
    """Revoke a party, all its certificates and signing keys; or with `certificate` only that one.

    Raises:
        InputError: `no-such-party`, `bad-reason`, `bad-certificate`.
    """
    if not reason.isascii() or not reason.isprintable() or not 0 < len(reason) <= 200:
        raise InputError("bad-reason", "a reason is 1 to 200 printable ASCII characters")
    with one_at_a_time(folder):
        authority = Authority(folder, boundary)
        identity = _require_party(authority, role, name)
        serial, at_s = "*", _unix_s(now)
        if certificate is not None:
            pem = read_small(certificate, "certificate")
            serial = f"{parse_certificate(pem, place=str(certificate)).serial_number:x}"
        revoked = authority.statement(REVOKED_SCHEMA)
        entry = RevokedEntry(serial=serial, holder=identity.holder, reason=reason, at_s=at_s)
        if all((entry.serial, entry.holder) != (old.serial, old.holder) for old in revoked.revoked):
            authority.publish(replace(revoked, revoked=(*revoked.revoked, entry)))
        if certificate is None:
            keys = authority.statement(KEYS_SCHEMA)
            ended = tuple(
                replace(key, until_s=at_s, reason=reason)
                if (key.holder, key.until_s) == (identity.holder, 0)
                else key
                for key in keys.keys
            )
            authority.publish(replace(keys, keys=ended))
    return identity


def _set_up_authority(folder: Path, run: str, name: str, *, now: datetime, days: int) -> None:
    key, root = make_root(run, name, now=now, days=days)
    trust = folder / TRUST
    write_new(root_key_file(folder, name), private_pem(key))
    write_new(root_file(trust, name), certificate_pem(root))
    for schema, path in ((KEYS_SCHEMA, keys_file(trust, name)), (REVOKED_SCHEMA, revoked_file(trust, name))):
        write_new(path, sign_statement(Statement(schema=schema, run=run, authority=name, number=1), key))


def _enrol(authority: Authority, identities: Sequence[Identity], now: datetime, days: int) -> None:
    """Write the private files of new parties, then publish their public keys."""
    statement = authority.statement(KEYS_SCHEMA)
    entries: list[KeyEntry] = []
    for identity in identities:
        place = party_folder(authority.folder, identity)
        write_new(place / TLS_FILE, authority.tls_pem(identity, now=now, days=days))
        for use in SIGNING_KEYS[identity.role]:
            key = Ed25519PrivateKey.generate()
            write_new(place / f"{use}.key", private_pem(key))
            entries.append(_entry(identity, use, key, _unix_s(now)))
    authority.publish(replace(statement, keys=(*statement.keys, *entries)))


def _entry(identity: Identity, use: KeyUse, key: Ed25519PrivateKey, since_s: int) -> KeyEntry:
    public = raw_public(key.public_key()).hex()
    return KeyEntry(use=str(use), holder=identity.holder, key=public, since_s=since_s, until_s=0, reason="")


def _require_party(authority: Authority, role: Role, name: str) -> Identity:
    identity = authority.identity(role, name)
    holders = sorted({entry.holder for entry in authority.statement(KEYS_SCHEMA).keys})
    if identity.holder not in holders:
        raise InputError(
            "no-such-party",
            f"there is no {identity}",
            hint=f"{authority.name} has {', '.join(holders[:12])}{' and more' if len(holders) > 12 else ''}",
        )
    return identity


def _unix_s(now: datetime) -> int:
    return int(now.astimezone(UTC).timestamp())
