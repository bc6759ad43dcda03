"""Whoever should not be here is told why, on both sides, by name; nobody else can keep the others out."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boundary.net_cases import (
    AGGREGATOR,
    COORDINATOR,
    ECHO,
    MAX_ECHO_BYTES,
    MEMBER,
    RUN,
    caller,
    credentials,
    end_in,
    identity,
    now,
    pki,
    serving,
    trust,
)
from executors.boundary.deadlines import WaitEndedError
from executors.boundary.pki.administration import Authority, revoke, rotate, set_up
from executors.boundary.pki.certificates import certificate_pem, make_leaf, make_root, private_pem
from executors.boundary.pki.identities import Identity, Role
from executors.boundary.transport.connection import BrokenError
from executors.boundary.transport.frames import HEADER
from executors.boundary.transport.reasons import RefusedError
from executors.boundary.transport.server import Limits, admits_aggregators
from executors.boundary.transport.trust import Credentials, Trust, credentials_in, load_credentials
from policies.errors import EchelonError

pytestmark = pytest.mark.net


def forged(
    folder: Path,
    who: Identity,
    *,
    signed_by: str = "lab",
    days: int = 30,
    shift: timedelta = timedelta(),
) -> Credentials:
    """A certificate that the root of `signed_by` really signs, though it should not."""
    authority = Authority(pki(), signed_by)
    key = Ed25519PrivateKey.generate()
    leaf = make_leaf(who, key.public_key(), authority.key, authority.root, now=now() + shift, days=days)
    file = folder / "forged.pem"
    file.write_bytes(private_pem(key) + certificate_pem(leaf))
    return load_credentials(file)


def stranger(folder: Path, who: Identity) -> Credentials:
    """A certificate of a root that nobody knows."""
    root_key, root = make_root(RUN, who.boundary, now=now(), days=30)
    key = Ed25519PrivateKey.generate()
    leaf = make_leaf(who, key.public_key(), root_key, root, now=now(), days=30)
    file = folder / "stranger.pem"
    file.write_bytes(private_pem(key) + certificate_pem(leaf))
    return load_credentials(file)


def other_run(folder: Path) -> Credentials:
    return forged(folder, Identity(run="another", boundary="lab", role=Role.PARTICIPANT, name="p0"))


WARD_MEMBER = identity("ward", "participant", "p0")

CLIENTS: dict[str, tuple[Callable[[Path], Credentials], str]] = {
    "of an unknown root": (lambda folder: stranger(folder, MEMBER), "untrusted-certificate"),
    "expired": (
        lambda folder: forged(folder, MEMBER, days=1, shift=timedelta(days=-9)),
        "expired-certificate",
    ),
    "not yet valid": (lambda folder: forged(folder, MEMBER, shift=timedelta(days=9)), "expired-certificate"),
    "of another boundary": (lambda folder: credentials(WARD_MEMBER), "wrong-boundary"),
    "certified by another boundary": (
        lambda folder: forged(folder, MEMBER, signed_by="ward"),
        "wrong-boundary",
    ),
    "an aggregator where participants belong": (lambda folder: credentials(AGGREGATOR), "wrong-role"),
    "the coordinator, whose certificate is a server's only": (
        lambda folder: credentials(COORDINATOR),
        "wrong-role",
    ),
    "of another run": (other_run, "wrong-run"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_a_client_that_should_not_be_here_learns_why(case: str, tmp_path: Path) -> None:
    make, reason = CLIENTS[case]
    with serving(tmp_path) as (server, desk):
        with pytest.raises(RefusedError) as refused:
            caller(server.port, own=make(tmp_path)).connect()
        fault = desk.wait_for_fault(f"refused-{reason}")
        assert desk.connections == [], "the handler never saw it"
    # The alert for a certificate that is not good yet is the one for any bad certificate.
    told = "untrusted-certificate" if case == "not yet valid" else reason
    assert refused.value.code == f"refused-{told}"
    assert refused.value.by_peer
    assert not getattr(fault, "by_peer", True)


def test_a_client_without_a_certificate_learns_why(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, desk):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(
            cadata="".join(certificate_pem(root).decode() for root in trust().roots.values())
        )
        with (
            socket.create_connection(("127.0.0.1", server.port)) as sock,
            context.wrap_socket(sock) as tls,
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
        ):
            tls.recv(1)
        desk.wait_for_fault("refused-no-certificate")


def test_an_older_tls_is_not_spoken(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, desk):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", server.port)) as sock, pytest.raises(ssl.SSLError):
            context.wrap_socket(sock)
        desk.wait_for_fault("refused-tls-failed")


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (identity("ward", "aggregator"), "wrong-boundary"),
        (identity("lab", "aggregator", "another"), "bad-identity"),
        (COORDINATOR, "wrong-boundary"),
    ],
    ids=str,
)
def test_a_server_that_is_not_the_one_called_is_refused(
    expected: Identity, reason: str, tmp_path: Path
) -> None:
    with serving(tmp_path) as (server, desk):
        with pytest.raises(RefusedError) as refused:
            caller(server.port, expected=expected).connect()
        fault = desk.wait_for_fault(f"refused-{reason}")
    assert refused.value.code == f"refused-{reason}"
    assert not refused.value.by_peer
    assert isinstance(fault, RefusedError)
    assert fault.by_peer, "the server is told as well"


def test_a_participant_cannot_pose_as_a_server(tmp_path: Path) -> None:
    """Its certificate is a client's; the name in it would not do either."""
    with (
        serving(tmp_path, who=MEMBER) as (server, _),
        pytest.raises(RefusedError) as refused,
    ):
        caller(server.port, who=identity("lab", "participant", "p1"), expected=MEMBER).connect()
    assert refused.value.code == "refused-wrong-role"


def test_the_coordinator_lets_in_the_aggregators_of_all_boundaries(tmp_path: Path) -> None:
    with serving(tmp_path, who=COORDINATOR, admits=admits_aggregators) as (server, _):
        for boundary in ("lab", "ward"):
            who = identity(boundary, "aggregator")
            connection = caller(server.port, who=who, expected=COORDINATOR).connect()
            connection.close()
        with pytest.raises(RefusedError) as refused:
            caller(server.port, expected=COORDINATOR).connect()
    assert refused.value.code == "refused-wrong-role"


def test_revocation_holds_for_the_next_connection_and_rotation_renews(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    shutil.copytree(pki(), folder)
    p1 = identity("lab", "participant", "p1")
    with serving(tmp_path / "in", trusting=Trust(folder / "trust")) as (server, desk):

        def connect(own: Credentials) -> None:
            caller(server.port, own=own).connect().close()

        old_file = tmp_path / "old.pem"
        shutil.copy(credentials_in(folder, MEMBER).tls_file, old_file)
        old = load_credentials(old_file)
        connect(old)
        rotate(folder, "lab", Role.PARTICIPANT, "p0", "tls", days=30, now=now())
        connect(credentials_in(folder, MEMBER))
        connect(old)
        revoke(folder, "lab", Role.PARTICIPANT, "p0", reason="stolen", certificate=old_file, now=now())
        with pytest.raises(RefusedError) as refused:
            connect(old)
        assert refused.value.code == "refused-revoked"
        connect(credentials_in(folder, MEMBER))
        revoke(folder, "lab", Role.PARTICIPANT, "p1", reason="left", certificate=None, now=now())
        with pytest.raises(RefusedError) as refused:
            connect(credentials_in(folder, p1))
        assert refused.value.code == "refused-revoked"
        assert "left" in desk.wait_for_fault("refused-revoked").message or len(desk.faults) == 2


def test_without_a_sound_revocation_list_nobody_comes_in(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    shutil.copytree(pki(), folder)
    file = folder / "trust" / "lab.revoked.json"
    earlier = file.read_bytes()
    with serving(tmp_path / "in", trusting=Trust(folder / "trust")) as (server, _):
        revoke(folder, "lab", Role.PARTICIPANT, "p1", reason="left", certificate=None, now=now())
        caller(server.port).connect().close()
        for text in (earlier, b"{}", file.read_bytes().replace(b"left", b"gone")):
            file.write_bytes(text)
            with pytest.raises(RefusedError) as refused:
                caller(server.port).connect()
            assert refused.value.code == "refused-no-revocation-list"


def test_strangers_can_not_keep_others_out(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(num_strangers=3, introduce_s=60.0)) as (server, _):
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(12)]
        connection = caller(server.port).connect()
        connection.send(ECHO, b"here", end_in(5))
        assert connection.receive(end_in(5)).body == b"here"
        for sock in idle[:9]:
            sock.settimeout(10.0)
            assert sock.recv(1) == b"", "the oldest are dropped"
        connection.close()
        for sock in idle:
            sock.close()


def test_a_stranger_that_says_nothing_is_dropped(tmp_path: Path) -> None:
    with (
        serving(tmp_path, limits=Limits(introduce_s=0.2)) as (server, desk),
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        fault = desk.wait_for_fault("deadline-passed")
        sock.settimeout(10.0)
        while sock.recv(1000):
            pass
    assert isinstance(fault, WaitEndedError)
    assert fault.awaited.startswith("a stranger at 127.0.0.1:")


def test_one_peer_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(num_per_peer=2)) as (server, _):
        kept = [caller(server.port).connect() for _ in range(2)]
        with pytest.raises(RefusedError) as refused:
            caller(server.port).connect()
        assert refused.value.code == "refused-too-many-connections"
        caller(server.port, who=identity("lab", "participant", "p1")).connect().close()
        kept.pop().close()
        caller(server.port).with_retries(lambda connection: None, end=end_in(10))
        kept.pop().close()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (HEADER.pack(2, ECHO, 0, 0), "wrong-version"),
        (HEADER.pack(1, ECHO, 7, 0), "bad-frame"),
        (HEADER.pack(1, 200, 0, 0), "unexpected-frame"),
        (HEADER.pack(1, ECHO, 0, MAX_ECHO_BYTES + 1), "too-large"),
        (HEADER.pack(1, ECHO, 0, 2**32 - 1), "too-large"),
    ],
)
def test_a_frame_that_can_not_be_is_refused_at_its_header(header: bytes, reason: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (server, desk):
        connection = caller(server.port).connect()
        connection._push(connection._tls.seal(header), end_in(5))
        with pytest.raises(RefusedError) as refused:
            connection.receive(end_in(10))
        desk.wait_for_fault(f"refused-{reason}")
        connection.abandon()
    assert refused.value.code == f"refused-{reason}"


def test_a_server_that_stops_says_so_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        connection = caller(server.port).connect()
        server.stop()
        with pytest.raises(RefusedError) as refused:
            connection.receive(end_in(10))
        assert refused.value.code == "refused-shutting-down"
        with pytest.raises(BrokenError) as broken:
            caller(server.port).connect()
        assert str(AGGREGATOR) in broken.value.message
        connection.abandon()


def test_roots_of_two_runs_are_not_taken_together(tmp_path: Path) -> None:
    folder = tmp_path / "trust"
    shutil.copytree(pki() / "trust", folder)
    set_up(tmp_path / "b", run="second", boundaries=["mill"], num_participants=0, days=3, now=now())
    shutil.copy(tmp_path / "b" / "trust" / "mill.root.pem", folder)
    with pytest.raises(EchelonError) as error:
        Trust(folder)
    assert error.value.code == "roots-differ"
