"""Certificates and keys: Ed25519 throughout, one root per authority, leaves one step below it.

Pure: what comes back is objects and PEM bytes. Extensions follow RFC 5280, so that OpenSSL's strict mode
holds.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from executors.boundary.pki.identities import SCHEME, Identity, Role, parse_identity
from policies.errors import InputError

CLOCK_SKEW = timedelta(hours=1)
"""How far behind the issuer's clock a verifier's may be."""


def make_root(
    run: str, authority: str, *, now: datetime, days: int
) -> tuple[Ed25519PrivateKey, x509.Certificate]:
    """A new root key of an authority (a boundary's name, or `global`) and its self-signed certificate."""
    key = Ed25519PrivateKey.generate()
    subject = _common_name(f"echelon root {authority}")
    builder = _builder(subject, subject, key.public_key(), key.public_key(), now=now, days=days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(is_root=True), critical=True)
    builder = builder.add_extension(_uri(f"{SCHEME}://{run}/{authority}"), critical=False)
    return key, builder.sign(key, None)


def make_leaf(
    identity: Identity,
    key: Ed25519PublicKey,
    root_key: Ed25519PrivateKey,
    root: x509.Certificate,
    *,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """The certificate of an identity for TLS. Participants are clients only, a coordinator a server only."""
    purposes = {
        Role.COORDINATOR: [ExtendedKeyUsageOID.SERVER_AUTH],
        Role.AGGREGATOR: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        Role.PARTICIPANT: [ExtendedKeyUsageOID.CLIENT_AUTH],
    }[identity.role]
    subject = _common_name(f"{identity.boundary} {identity.role}")
    builder = _builder(subject, root.subject, key, root_key.public_key(), now=now, days=days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(is_root=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    builder = builder.add_extension(_uri(identity.uri), critical=False)
    return builder.sign(root_key, None)


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity a certificate spells: its one URI.

    Raises:
        InputError: `bad-identity`.
    """
    uris = _uris(certificate)
    if len(uris) != 1:
        raise InputError("bad-identity", f"the certificate has {len(uris)} URIs, 1 is wanted")
    return parse_identity(uris[0])


def authority_of(root: x509.Certificate) -> tuple[str, str]:
    """Run and authority that a root certificate spells.

    Raises:
        InputError: `bad-root`.
    """
    uris = _uris(root)
    parts = uris[0].removeprefix(f"{SCHEME}://").split("/") if len(uris) == 1 else []
    if len(parts) != 2 or not uris[0].startswith(f"{SCHEME}://"):
        raise InputError("bad-root", f"not a root of a run: its URIs are {uris}")
    return parts[0], parts[1]


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """The key as unencrypted PKCS 8; the file's mode is its protection."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def parse_private(pem: bytes, *, place: str) -> Ed25519PrivateKey:
    """The Ed25519 key in a PEM text.

    Raises:
        InputError: `bad-key`.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InputError("bad-key", f"{place} holds no private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("bad-key", f"{place} holds a {type(key).__name__}, an Ed25519 key is wanted")
    return key


def parse_certificate(pem: bytes, *, place: str) -> x509.Certificate:
    """The certificate in a PEM text.

    Raises:
        InputError: `bad-certificate`.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InputError("bad-certificate", f"{place} holds no certificate: {error}") from error


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    issuer_key: Ed25519PublicKey,
    *,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _common_name(text: str) -> x509.Name:
    # X.520 allows 64 characters; the URI, not the name, says who it is.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier) if len(names) else []


def _usage(*, is_root: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_root,
        crl_sign=is_root,
        encipher_only=False,
        decipher_only=False,
    )
