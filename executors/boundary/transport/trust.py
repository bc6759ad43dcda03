"""What a process needs to know its peers: trust folder, its own TLS file, and the check of certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from executors.boundary.pki.certificates import (
    authority_of,
    certificate_pem,
    identity_of,
    parse_certificate,
    parse_private,
)
from executors.boundary.pki.identities import Identity
from executors.boundary.pki.layout import (
    ROOT_SUFFIX,
    TLS_FILE,
    keys_file,
    party_folder,
    read_small,
    revoked_file,
)
from executors.boundary.pki.statements import (
    KEYS_SCHEMA,
    REVOKED_SCHEMA,
    KeyEntry,
    KeyUse,
    Statement,
    parse_statement,
)
from executors.boundary.transport.reasons import Reason, RefusedError
from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who this process is, and the file with its TLS key and certificate."""

    identity: Identity
    tls_file: Path


def load_credentials(tls_file: Path) -> Credentials:
    """The credentials in a TLS file.

    Raises:
        InputError: it can't be read, or holds no certificate with an identity.
    """
    pem = read_small(tls_file, "TLS file")
    parse_private(pem[: pem.find(b"-----BEGIN CERTIFICATE")], place=str(tls_file))
    return Credentials(identity=identity_of(parse_certificate(pem, place=str(tls_file))), tls_file=tls_file)


def credentials_in(folder: Path, identity: Identity) -> Credentials:
    """The credentials of an identity in a PKI folder."""
    return load_credentials(party_folder(folder, identity) / TLS_FILE)


class Trust:
    """The roots of a run with their statements, read from a trust folder.

    Statements are read again at each check of a peer, so that a revocation holds for the next connection; an
    edition older than one seen before is refused. What a restart forgets is the number it has seen: keep
    `numbers()` in a journal and hand it to the next one.
    """

    def __init__(self, folder: Path, *, seen_numbers: dict[str, int] | None = None) -> None:
        """Read every root of the folder.

        Raises:
            InputError: `no-roots`, `roots-differ`, or a file is wrong.
        """
        self._folder = folder
        self._numbers = dict(seen_numbers or {})
        self.roots: dict[str, x509.Certificate] = {}
        self.run = ""
        for path in sorted(folder.glob(f"*{ROOT_SUFFIX}")):
            root = parse_certificate(read_small(path, "root certificate"), place=str(path))
            run, authority = authority_of(root)
            if authority != path.name.removesuffix(ROOT_SUFFIX) or self.run not in {"", run}:
                raise InputError(
                    "roots-differ", f"{path} is the root of {authority} in run {run}, not what its place says"
                )
            self.roots[authority], self.run = root, run
        if not self.roots:
            raise InputError("no-roots", f"{folder} holds no *{ROOT_SUFFIX}", hint="copy trust/ of the PKI")

    def numbers(self) -> dict[str, int]:
        """The highest edition of each statement seen so far, by `AUTHORITY SCHEMA`."""
        return dict(self._numbers)

    def check(self, certificate_der: bytes, *, now: datetime) -> Identity:
        """The identity of a peer whose certificate TLS has accepted.

        TLS takes a leaf below any of the roots; here its own boundary's root must have signed it, or one
        boundary could speak for another.

        Raises:
            RefusedError: naming the reason.
        """
        certificate = x509.load_der_x509_certificate(certificate_der)
        try:
            identity = identity_of(certificate)
        except InputError as error:
            raise RefusedError(Reason.BAD_IDENTITY, error.message) from error
        if identity.run != self.run:
            raise RefusedError(Reason.WRONG_RUN, f"{identity} is of run {identity.run}, this is {self.run}")
        root = self.roots.get(identity.boundary)
        if root is None:
            raise RefusedError(
                Reason.WRONG_BOUNDARY, f"{identity}: no root of {identity.boundary} is trusted"
            )
        try:
            certificate.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise RefusedError(
                Reason.WRONG_BOUNDARY, f"{identity} was not certified by {identity.boundary}"
            ) from error
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            end = certificate.not_valid_after_utc
            raise RefusedError(Reason.EXPIRED_CERTIFICATE, f"the certificate of {identity} ended at {end}")
        self._require_not_revoked(identity, f"{certificate.serial_number:x}")
        return identity

    def statement(self, authority: str, schema: str) -> Statement:
        """The present edition of an authority's statement.

        Raises:
            InputError: `bad-statement`, `old-statement`, or it can't be read.
        """
        path = (keys_file if schema == KEYS_SCHEMA else revoked_file)(self._folder, authority)
        key = self.roots[authority].public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise InputError("bad-statement", f"the root of {authority} has no Ed25519 key")
        statement = parse_statement(read_small(path, "statement"), key, schema=schema, place=str(path))
        if (statement.run, statement.authority) != (self.run, authority):
            raise InputError("bad-statement", f"{path} is by {statement.authority} for run {statement.run}")
        name = f"{authority} {schema}"
        if statement.number < self._numbers.get(name, 0):
            raise InputError(
                "old-statement",
                f"{path} is edition {statement.number}, edition {self._numbers[name]} has been seen",
                hint="fetch the present edition from the authority that signs it",
            )
        self._numbers[name] = statement.number
        return statement

    def signing_keys(self, identity: Identity, use: KeyUse) -> tuple[KeyEntry, ...]:
        """All keys an identity has had for a use, oldest first; `until_s` 0 marks the present one."""
        keys = self.statement(identity.boundary, KEYS_SCHEMA).keys
        return tuple(entry for entry in keys if (entry.holder, entry.use) == (identity.holder, str(use)))

    def _require_not_revoked(self, identity: Identity, serial: str) -> None:
        try:
            statement = self.statement(identity.boundary, REVOKED_SCHEMA)
        except InputError as error:
            # Without a good list nobody of that authority can be told from a revoked one.
            raise RefusedError(Reason.NO_REVOCATION_LIST, error.message) from error
        for entry in statement.revoked:
            if entry.holder == identity.holder and entry.serial in {"*", serial}:
                raise RefusedError(Reason.REVOKED, f"{identity} is revoked: {entry.reason}")


def server_context(credentials: Credentials, trust: Trust) -> ssl.SSLContext:
    """TLS 1.3 alone, a certificate of the client required, no session tickets."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials, trust)
    context.num_tickets = 0
    return context


def client_context(credentials: Credentials, trust: Trust) -> ssl.SSLContext:
    """TLS 1.3 alone. No host name is checked: the identity in the certificate is, by `Trust.check`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials, trust)


def _context(protocol: int, credentials: Credentials, trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(credentials.tls_file)
    context.load_verify_locations(
        cadata=b"".join(certificate_pem(root) for root in trust.roots.values()).decode("ascii")
    )
    return context
