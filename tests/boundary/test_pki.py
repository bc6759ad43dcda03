"""The PKI: private files private, nothing overwritten, statements that can't be altered."""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from boundary.net_cases import AGGREGATOR, MEMBER, RUN, identity, now, pki, trust
from executors.boundary.pki.administration import Authority, add, revoke, rotate, set_up
from executors.boundary.pki.certificates import identity_of, parse_certificate, parse_private, raw_public
from executors.boundary.pki.identities import Identity, Role, parse_identity
from executors.boundary.pki.layout import party_folder
from executors.boundary.pki.statements import (
    KEYS_SCHEMA,
    REVOKED_SCHEMA,
    KeyUse,
    parse_statement,
    sign_statement,
)
from executors.boundary.transport.trust import Trust, client_context, credentials_in, load_credentials
from policies.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PKI of its own, free to be changed."""
    shutil.copytree(pki(), tmp_path / "pki")
    return tmp_path / "pki"


def code_of(work: Callable[..., object], *args: object, **more: object) -> str:
    with pytest.raises(InputError) as refused:
        work(*args, **more)
    return refused.value.code


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_has_roots_parties_and_keys_and_all_of_it_is_private() -> None:
    names = {path.relative_to(pki()).as_posix() for path in files_of(pki())}
    assert {f"trust/{name}.root.pem" for name in ("global", "lab", "ward")} <= names
    assert {"authorities/lab/root.key", "parties/lab/participant/p3/tls.pem"} <= names
    aggregator = {path.name for path in party_folder(pki(), AGGREGATOR).iterdir()}
    assert aggregator == {"tls.pem", "identity.key", "log.key", "policy.key"}
    assert {path.stat().st_mode & 0o777 for path in files_of(pki())} == {0o600}
    assert {path.stat().st_mode & 0o077 for path in pki().rglob("*") if path.is_dir()} == {0}


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def make(boundaries: list[str], name: str = "pki") -> object:
        return set_up(tmp_path / name, run="r", boundaries=boundaries, num_participants=1, days=3, now=now())

    make(["lab"])
    before = files_of(tmp_path)
    assert code_of(lambda: make(["lab"])) == "folder-not-empty"
    assert code_of(lambda: make(["a/b"], "x")) == "bad-identity"
    assert code_of(lambda: make(["global"], "x")) == "bad-identity"
    assert code_of(lambda: make(["lab", "Lab"], "x")) == "name-twice"
    (tmp_path / "file").write_bytes(b"mine")
    assert code_of(lambda: make(["lab"], "file")) == "folder-not-empty"
    assert code_of(lambda: make(["lab"], "file/below")) == "file-not-writable"
    assert files_of(tmp_path) == before | {tmp_path / "file": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pki"]


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "echelon://",
        "http://r/b/participant/p",
        "echelon://r/b/participant",
        "echelon://r/b/participant/p/q",
        "echelon://r/b/boss/p",
        "echelon://r/global/participant/p",
        "echelon://r/b/coordinator/p",
        "echelon://r/../participant/p",
        "echelon://r/b/participant/p\n",
        "echelon://r/b/participant/\u0440",
        "echelon://r/b/participant/" + "p" * 65,
    ],
)
def test_what_is_no_identity_is_refused(uri: str) -> None:
    assert code_of(lambda: parse_identity(uri)) == "bad-identity"


def test_an_identity_reads_as_written() -> None:
    for who in (AGGREGATOR, MEMBER, identity("lab", "participant", "a.b-c_d")):
        assert parse_identity(who.uri) == who


def test_certificates_carry_the_identity_and_end_in_time() -> None:
    pem = (party_folder(pki(), MEMBER) / "tls.pem").read_bytes()
    certificate = parse_certificate(pem[pem.index(b"-----BEGIN CERT") :], place="")
    assert identity_of(certificate) == MEMBER
    assert timedelta(days=29) < certificate.not_valid_after_utc - now() < timedelta(days=30)
    certificate.verify_directly_issued_by(trust().roots["lab"])
    assert load_credentials(party_folder(pki(), MEMBER) / "tls.pem").identity == MEMBER


def present_key(folder: Path, who: Identity, use: KeyUse) -> str:
    entries = [entry for entry in Trust(folder / "trust").signing_keys(who, use) if not entry.until_s]
    assert len(entries) == 1
    return entries[0].key


def private_key(folder: Path, who: Identity, use: KeyUse) -> str:
    file = party_folder(folder, who) / f"{use}.key"
    return raw_public(parse_private(file.read_bytes(), place=str(file)).public_key()).hex()


@pytest.mark.parametrize("use", list(KeyUse))
def test_rotation_replaces_a_key_and_remembers_the_old_one(use: KeyUse, folder: Path) -> None:
    old = present_key(folder, AGGREGATOR, use)
    assert old == private_key(folder, AGGREGATOR, use)
    rotate(folder, "lab", Role.AGGREGATOR, "aggregator", use, days=9, now=now())
    new = present_key(folder, AGGREGATOR, use)
    assert old != new == private_key(folder, AGGREGATOR, use)
    first, second = Trust(folder / "trust").signing_keys(AGGREGATOR, use)
    assert (first.key, second.key, first.reason, second.until_s) == (old, new, "rotated", 0)
    assert 0 < first.since_s <= first.until_s == second.since_s


def test_tls_rotation_gives_a_pair_that_works(folder: Path) -> None:
    before = credentials_in(folder, MEMBER).tls_file.read_bytes()
    rotate(folder, "lab", Role.PARTICIPANT, "p0", "tls", days=9, now=now())
    own = credentials_in(folder, MEMBER)
    assert own.tls_file.read_bytes() != before
    assert own.tls_file.stat().st_mode & 0o777 == 0o600
    assert isinstance(client_context(own, Trust(folder / "trust")), ssl.SSLContext)
    assert not [path for path in own.tls_file.parent.iterdir() if path.name.startswith(".")]


def test_revocation_ends_certificates_and_keys(folder: Path) -> None:
    seen = Trust(folder / "trust")
    assert seen.statement("lab", REVOKED_SCHEMA).revoked == ()
    revoke(folder, "lab", Role.PARTICIPANT, "p0", reason="left", certificate=None, now=now())
    revoke(folder, "lab", Role.PARTICIPANT, "p0", reason="left", certificate=None, now=now())
    (entry,) = seen.statement("lab", REVOKED_SCHEMA).revoked
    assert (entry.serial, entry.holder, entry.reason) == ("*", "participant/p0", "left")
    assert [key.until_s > 0 for key in seen.signing_keys(MEMBER, KeyUse.IDENTITY)] == [True]


def test_a_party_joins_later_and_only_once(folder: Path) -> None:
    joined = add(folder, "lab", Role.PARTICIPANT, "p9", days=9, now=now())
    assert credentials_in(folder, joined).identity == joined
    assert present_key(folder, joined, KeyUse.IDENTITY)
    again = [
        lambda name=name: add(folder, "lab", Role.PARTICIPANT, name, days=9, now=now())
        for name in ("p9", "P9")
    ]
    assert [code_of(work) for work in again] == ["party-exists"] * 2


def test_what_is_not_there_can_not_be_changed(folder: Path) -> None:
    changes = {
        "no-such-party": lambda: rotate(folder, "lab", Role.PARTICIPANT, "p7", "tls", days=9, now=now()),
        "no-such-key": lambda: rotate(folder, "lab", Role.PARTICIPANT, "p0", "log", days=9, now=now()),
        "file-not-readable": lambda: add(folder, "mill", Role.PARTICIPANT, "p0", days=9, now=now()),
        "no-pki": lambda: add(folder / "trust", "lab", Role.PARTICIPANT, "p8", days=9, now=now()),
        "bad-reason": lambda: revoke(
            folder, "lab", Role.PARTICIPANT, "p0", reason="\n", certificate=None, now=now()
        ),
    }
    before = files_of(folder)
    assert {code_of(work) for work in changes.values()} == set(changes)
    assert files_of(folder) == before


def statement_of(folder: Path) -> tuple[bytes, Ed25519PublicKey]:
    key = Authority(folder, "lab").key.public_key()
    return (folder / "trust" / "lab.keys.json").read_bytes(), key


def test_no_bit_of_a_statement_can_be_changed() -> None:
    text, key = statement_of(pki())
    assert parse_statement(text, key, schema=KEYS_SCHEMA, place="").number == 2
    for position in range(0, len(text), 7):
        changed = bytearray(text)
        changed[position] ^= 1 << position % 8
        assert code_of(parse_statement, bytes(changed), key, schema=KEYS_SCHEMA, place="") == (
            "bad-statement"
        )


def test_a_statement_has_one_form_and_one_kind() -> None:
    text, key = statement_of(pki())
    document = json.loads(text)
    for other in (
        json.dumps(document).encode(),
        text + b" ",
        text.replace(b'"number":2', b'"number":2,"number":2'),
        json.dumps({**document, "extra": 1}, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        b"[" * 100_000,
        b"",
    ):
        assert code_of(parse_statement, other, key, schema=KEYS_SCHEMA, place="") == "bad-statement"
    assert code_of(lambda: parse_statement(text, key, schema=REVOKED_SCHEMA, place="")) == "bad-statement"
    foreign = Authority(pki(), "ward").key
    statement = parse_statement(text, key, schema=KEYS_SCHEMA, place="")
    signed = sign_statement(statement, foreign)
    assert code_of(lambda: parse_statement(signed, key, schema=KEYS_SCHEMA, place="")) == "bad-statement"


def test_an_earlier_edition_is_refused_also_after_a_restart(folder: Path) -> None:
    file = folder / "trust" / "lab.revoked.json"
    earlier, seen = file.read_bytes(), Trust(folder / "trust")
    revoke(folder, "lab", Role.PARTICIPANT, "p0", reason="left", certificate=None, now=now())
    seen.statement("lab", REVOKED_SCHEMA)
    file.write_bytes(earlier)
    assert code_of(lambda: seen.statement("lab", REVOKED_SCHEMA)) == "old-statement"
    restarted = Trust(folder / "trust", seen_numbers=seen.numbers())
    assert code_of(lambda: restarted.statement("lab", REVOKED_SCHEMA)) == "old-statement"


def test_one_boundarys_statement_does_not_stand_for_another(folder: Path) -> None:
    shutil.copy(folder / "trust" / "ward.revoked.json", folder / "trust" / "lab.revoked.json")
    assert code_of(lambda: Trust(folder / "trust").statement("lab", REVOKED_SCHEMA)) == "bad-statement"


def test_the_command_makes_keeps_and_refuses(cli: Callable[..., Any]) -> None:
    made = cli(
        "pki", "init", "keys", "--boundary", "lab", "--boundary", "ward", "--participants", "2", "--run", RUN
    )
    assert made.code == 0
    assert made.out.splitlines() == [
        f"echelon://{RUN}/global/coordinator/coordinator",
        f"echelon://{RUN}/lab/aggregator/aggregator",
        f"echelon://{RUN}/lab/participant/p0",
        f"echelon://{RUN}/lab/participant/p1",
        f"echelon://{RUN}/ward/aggregator/aggregator",
        f"echelon://{RUN}/ward/participant/p0",
        f"echelon://{RUN}/ward/participant/p1",
    ]
    who = ("--boundary", "lab", "--role", "participant", "--name", "p0")
    assert cli("pki", "rotate", "keys", *who, "--key", "identity").code == 0
    assert cli("pki", "revoke", "keys", *who, "--reason", "left").code == 0
    assert cli("pki", "add", "keys", "--boundary", "lab", "--role", "participant", "--name", "p2").code == 0
    refused = cli("pki", "init", "keys", "--boundary", "lab", "--format", "json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (3, "folder-not-empty")
    missing = cli("pki", "rotate", "keys", "--boundary", "lab", "--role", "participant", "--name", "p5")
    assert (missing.code, missing.err.splitlines()[0]) == (
        3,
        "error[no-such-party]: there is no participant lab/p5",
    )
