"""The contract: what may cross a boundary in one run, in canonical JSON, signed by every party.

It is made from the policy and the run, signed with the policy keys, and its hash stands in every record of
every log. An auditor needs nothing but the contract, the logs and the parties' policy keys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import canonical, keys
from policies.audit.record import Channel, Kind
from policies.errors import AuditFailedError, PolicyRefusedError
from policies.policy import Policy

CONTRACT_SCHEMA = "echelon/contract/1"
DOMAIN = "echelon/contract/1"
HEADER_BYTES_MAX = 512
COHORT_FLOOR = 3
MAX_BOUNDARIES = 4096
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")

UP, DOWN = Channel.UP, Channel.DOWN
BOTH = (UP, DOWN)


class Ring(StrEnum):
    """How one value of a payload is written: an integer modulo 2^k, or an IEEE float."""

    Z2_16 = "z2-16"
    Z2_32 = "z2-32"
    Z2_64 = "z2-64"
    FLOAT32 = "float32"

    @property
    def value_bytes(self) -> int:
        """Bytes of one value."""
        return {"z2-16": 2, "z2-32": 4, "z2-64": 8, "float32": 4}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRule:
    """What messages of one kind look like: channels, size of the header, whether values follow."""

    kind: Kind
    channels: tuple[Channel, ...]
    header_bytes: int
    has_payload: bool = False


# Header sizes are those of the layouts in `policies.envelope`, which refuses to load when they differ.
KIND_RULES: Mapping[Kind, KindRule] = {
    rule.kind: rule
    for rule in (
        KindRule(kind=Kind.BOUNDARY_DELTA, channels=(UP,), header_bytes=289, has_payload=True),
        KindRule(kind=Kind.BOUNDARY_STATUS, channels=(UP,), header_bytes=184),
        KindRule(kind=Kind.GLOBAL_STATE, channels=(DOWN,), header_bytes=213, has_payload=True),
        KindRule(kind=Kind.SYNC_DIRECTIVE, channels=(DOWN,), header_bytes=163),
        KindRule(kind=Kind.JOIN, channels=BOTH, header_bytes=142),
        KindRule(kind=Kind.LEAVE, channels=BOTH, header_bytes=142),
        KindRule(kind=Kind.ACK, channels=BOTH, header_bytes=143),
        KindRule(kind=Kind.ABORT, channels=BOTH, header_bytes=142),
    )
}


class ContractRefusedError(AuditFailedError):
    """A contract is malformed, or not signed by all its parties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """The coordinator or a boundary, with its Ed25519 public keys (32 bytes each).

    `policy_key` signs contracts and key statements, `log_key` checkpoints, `message_key` messages.
    """

    name: str
    policy_key: bytes
    log_key: bytes
    message_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Declared bytes on the wire beyond the messages themselves, counted in each direction.

    wire_bytes <= logged_bytes + per_connection_bytes * connections + per_message_bytes * messages
                  + ceil(logged_bytes * per_mille / 1000),   connections <= max_connections
    """

    per_connection_bytes: int
    per_message_bytes: int
    per_mille: int
    max_connections: int

    def allowance_bytes(self, *, logged_bytes: int, num_messages: int, num_connections: int) -> int:
        """The most bytes that may be on the wire beyond `logged_bytes`."""
        proportional = -(-logged_bytes * self.per_mille // 1000)
        return (
            self.per_connection_bytes * num_connections + self.per_message_bytes * num_messages + proportional
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What may cross; positions in `boundaries`, counted from 1, are the boundary ids of records.

    `releases_per_window` is 1: a window's aggregate leaves at most once. `num_outer_rates` is how many outer
    rates the run has in its table; a directive names one by its position.
    """

    run: bytes
    policy_sha256: bytes
    coordinator: Party
    boundaries: tuple[Party, ...]
    metadata_cap_bytes: int
    manifest_sha256: bytes
    num_values: int
    ring: Ring
    min_cohort: int
    num_outer_rates: int
    overhead: Overhead
    releases_per_window: int = 1

    @property
    def payload_bytes(self) -> int:
        """Bytes of every payload: the number of values times the size of one."""
        return self.num_values * self.ring.value_bytes

    @property
    def parties(self) -> tuple[Party, ...]:
        """All parties by their id: the coordinator is 0."""
        return (self.coordinator, *self.boundaries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a contract needs to know beyond the policy.

    `run` is 16 random bytes, `manifest_sha256` the hash of the adapter's tensor names and shapes,
    `num_values` its number of parameters.
    """

    run: bytes
    coordinator: Party
    boundaries: tuple[Party, ...]
    manifest_sha256: bytes
    num_values: int
    ring: Ring = Ring.FLOAT32
    num_outer_rates: int = 1
    metadata_cap_bytes: int = 320
    overhead: Overhead


def make_contract(policy: Policy, run: Run) -> Contract:
    """The contract of a run under a policy; boundaries are put in the order of their names.

    Raises:
        PolicyRefusedError: `boundary-not-allowed`, `two-boundaries` or `cohort-too-small`.
        ContractRefusedError: `bad-contract`.
    """
    strangers = [p.name for p in run.boundaries if policy.boundaries and p.name not in policy.boundaries]
    if strangers:
        raise PolicyRefusedError("boundary-not-allowed", f"the policy does not name {', '.join(strangers)}")
    if len(run.boundaries) == 2 and not policy.accept_two_boundaries:
        raise PolicyRefusedError(
            "two-boundaries",
            "with 2 boundaries each can derive the other's delta from the new global model",
            hint="add a third boundary, or say `accept_two_boundaries: true` in the policy",
        )
    if policy.min_cohort < COHORT_FLOOR:
        raise PolicyRefusedError(
            "cohort-too-small", f"min_cohort is {policy.min_cohort}, the floor is {COHORT_FLOOR}"
        )
    taken = {field.name: getattr(run, field.name) for field in fields(Run) if field.name != "boundaries"}
    contract = Contract(
        policy_sha256=policy_sha256(policy),
        boundaries=tuple(sorted(run.boundaries, key=lambda party: party.name)),
        min_cohort=policy.min_cohort,
        **taken,
    )
    require_sound(contract)
    return contract


def policy_sha256(policy: Policy) -> bytes:
    """The hash of all a policy says; fractions are written in hexadecimal, absent values as empty lists."""
    return hashlib.sha256(canonical.canonical_bytes(canonical.plain_copy(asdict(policy)))).digest()


def require_sound(contract: Contract) -> None:
    """Refuse what could not be audited.

    Raises:
        ContractRefusedError: `bad-contract`, naming the term.
    """
    names = [party.name for party in contract.parties]
    in_order = names[1:] == sorted(names[1:])
    all_keys = [getattr(p, f) for p in contract.parties for f in ("policy_key", "log_key", "message_key")]
    widest = max(rule.header_bytes for rule in KIND_RULES.values())
    faults = [
        (len(contract.run) == 16, "the run id has 16 bytes"),
        (1 <= len(contract.boundaries) <= MAX_BOUNDARIES, f"1 to {MAX_BOUNDARIES} boundaries"),
        (all(NAME_PATTERN.fullmatch(name) for name in names), "names are a-z, 0-9 and hyphens, to 32"),
        (len(set(names)) == len(names) and in_order, "names differ, boundaries stand in their order"),
        (all(len(key) == keys.KEY_BYTES for key in all_keys), "keys have 32 bytes"),
        (len(set(all_keys)) == len(all_keys), "no key serves twice"),
        (len(contract.manifest_sha256) == 32 and any(contract.manifest_sha256), "the manifest has a hash"),
        (contract.num_values > 0, "a payload has values"),
        (contract.min_cohort >= COHORT_FLOOR, f"min_cohort is at least {COHORT_FLOOR}"),
        (contract.releases_per_window == 1, "a window is released once"),
        (contract.num_outer_rates > 0, "there is an outer rate"),
        (
            widest <= contract.metadata_cap_bytes <= HEADER_BYTES_MAX,
            f"metadata cap {widest} to {HEADER_BYTES_MAX}",
        ),
        (contract.overhead.max_connections > 0, "a connection is allowed"),
    ]
    for holds, term in faults:
        if not holds:
            raise _bad(f"the contract breaks a term: {term}")


def contract_document(contract: Contract) -> dict[str, Any]:
    """The contract as it is written in JSON."""
    return {
        "schema": CONTRACT_SCHEMA,
        "run": contract.run.hex(),
        "policy_sha256": contract.policy_sha256.hex(),
        "coordinator": _party_document(contract.coordinator),
        "boundaries": [_party_document(party) for party in contract.boundaries],
        "kinds": _kinds_document(),
        "metadata_cap_bytes": contract.metadata_cap_bytes,
        "manifest_sha256": contract.manifest_sha256.hex(),
        "num_values": contract.num_values,
        "payload_bytes": contract.payload_bytes,
        "ring": contract.ring.value,
        "min_cohort": contract.min_cohort,
        "releases_per_window": contract.releases_per_window,
        "num_outer_rates": contract.num_outer_rates,
        "overhead": asdict(contract.overhead),
    }


def contract_bytes(contract: Contract) -> bytes:
    """The canonical bytes of the contract, without signatures."""
    return canonical.canonical_bytes(contract_document(contract))


@lru_cache(maxsize=16)
def contract_sha256(contract: Contract) -> bytes:
    """The hash that every record and every message of the run carries."""
    return hashlib.sha256(contract_bytes(contract)).digest()


def sign_contract(contract: Contract, key: Ed25519PrivateKey) -> bytes:
    """One party's signature over the contract, by its policy key."""
    return keys.sign(key, DOMAIN, contract_bytes(contract))


def signed_contract_bytes(contract: Contract, signatures: Mapping[str, bytes]) -> bytes:
    """The file an auditor reads: the contract and the signatures by party name."""
    by_name = {name: signature.hex() for name, signature in signatures.items()}
    return canonical.canonical_bytes({"contract": contract_document(contract), "signatures": by_name})


def parse_contract(content: bytes) -> tuple[Contract, dict[str, bytes]]:
    """The contract and its signatures, which are still to be verified.

    Raises:
        NotCanonicalError: `not-canonical`.
        ContractRefusedError: `bad-contract`.
    """
    name = "the contract"
    outer = canonical.require_keys(
        canonical.parse_canonical(content, name=name), ("contract", "signatures"), name=name
    )
    contract = _contract_of(outer["contract"])
    require_sound(contract)
    if contract_document(contract) != outer["contract"]:
        raise _bad("the contract's kinds, sizes or schema are not those of this version")
    given = canonical.require_keys(
        outer["signatures"], [party.name for party in contract.parties], name="the signatures"
    )
    return contract, {
        party: canonical.require_hex(given, party, keys.SIGNATURE_BYTES, name="the signatures")
        for party in given
    }


def verify_contract(
    contract: Contract, signatures: Mapping[str, bytes], policy_keys: Mapping[str, bytes]
) -> None:
    """Refuse a contract that names another policy key than the ones given, or lacks a party's signature.

    Args:
        contract: as parsed.
        signatures: as parsed.
        policy_keys: public policy keys by party name, known from elsewhere; all parties must be among them.

    Raises:
        ContractRefusedError: `missing-key`, `wrong-key` or `bad-signature`, naming the party.
    """
    message = keys.signed_bytes(DOMAIN, contract_bytes(contract))
    for party in contract.parties:
        if party.name not in policy_keys:
            raise ContractRefusedError("missing-key", f"no policy key of `{party.name}` was given")
        if policy_keys[party.name] != party.policy_key:
            raise ContractRefusedError("wrong-key", f"the contract has another policy key of `{party.name}`")
        if not keys.holds(party.policy_key, signatures.get(party.name, b""), message):
            raise ContractRefusedError("bad-signature", f"`{party.name}` did not sign this contract")


def _contract_of(document: Any) -> Contract:
    name = "the contract"
    names = [
        "schema", "run", "policy_sha256", "coordinator", "boundaries", "kinds", "metadata_cap_bytes",
        "manifest_sha256", "num_values", "payload_bytes", "ring", "min_cohort", "releases_per_window",
        "num_outer_rates", "overhead",
    ]  # fmt: skip
    found = canonical.require_keys(document, names, name=name)
    if not isinstance(found["boundaries"], list) or found["ring"] not in list(Ring):
        raise _bad("`boundaries` is no list, or `ring` is unknown")
    limits = canonical.require_keys(found["overhead"], [f.name for f in fields(Overhead)], name="overhead")
    count = {
        key: canonical.require_count(found, key, name=name)
        for key in (
            "metadata_cap_bytes",
            "num_values",
            "min_cohort",
            "releases_per_window",
            "num_outer_rates",
        )
    }
    return Contract(
        run=canonical.require_hex(found, "run", 16, name=name),
        policy_sha256=canonical.require_hex(found, "policy_sha256", 32, name=name),
        coordinator=_party_of(found["coordinator"]),
        boundaries=tuple(_party_of(party) for party in found["boundaries"]),
        manifest_sha256=canonical.require_hex(found, "manifest_sha256", 32, name=name),
        ring=Ring(found["ring"]),
        overhead=Overhead(**{key: canonical.require_count(limits, key, name="overhead") for key in limits}),
        **count,
    )


def _party_document(party: Party) -> dict[str, str]:
    return {
        "name": party.name,
        "policy_key": party.policy_key.hex(),
        "log_key": party.log_key.hex(),
        "message_key": party.message_key.hex(),
    }


def _party_of(document: Any) -> Party:
    found = canonical.require_keys(document, [f.name for f in fields(Party)], name="a party")
    read = {
        key: canonical.require_hex(found, key, keys.KEY_BYTES, name="a party")
        for key in found
        if key != "name"
    }
    return Party(name=canonical.require_text(found, "name", name="a party"), **read)


def _kinds_document() -> list[dict[str, Any]]:
    return [
        {
            "kind": rule.kind.name,
            "code": rule.kind.value,
            "channels": [channel.name.lower() for channel in rule.channels],
            "header_bytes": rule.header_bytes,
            "payload": int(rule.has_payload),
        }
        for rule in KIND_RULES.values()
    ]


def _bad(message: str) -> ContractRefusedError:
    return ContractRefusedError("bad-contract", message, hint="make it again with this version of echelon")
