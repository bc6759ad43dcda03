"""The contract: one canonical form, signed by all parties, closed terms."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.audit_runs import NAMES, POLICY_KEYS, contract_of_run, party, private_key, public_key, run_terms
from policies.audit.canonical import NotCanonicalError, canonical_bytes, parse_canonical
from policies.contract import (
    KIND_RULES,
    Contract,
    ContractRefusedError,
    Ring,
    contract_bytes,
    contract_document,
    contract_sha256,
    make_contract,
    parse_contract,
    policy_sha256,
    require_sound,
    sign_contract,
    signed_contract_bytes,
    verify_contract,
)
from policies.errors import EchelonError, PolicyRefusedError
from policies.policy import Policy, SpillOver

POLICY = Policy(min_cohort=3, accept_two_boundaries=True)
CONTRACT = contract_of_run()
SIGNATURES = {name: sign_contract(CONTRACT, private_key(name, "policy")) for name in NAMES}
CONTENT = signed_contract_bytes(CONTRACT, SIGNATURES)


def test_a_contract_is_read_as_it_was_written_and_verified() -> None:
    contract, signatures = parse_contract(CONTENT)
    assert (contract, signatures) == (CONTRACT, SIGNATURES)
    verify_contract(contract, signatures, POLICY_KEYS)
    assert contract.payload_bytes == 4000
    assert [rule["kind"] for rule in contract_document(contract)["kinds"]] == [
        kind.name for kind in KIND_RULES
    ]


def test_every_party_must_have_signed_with_the_known_key() -> None:
    for name in NAMES:
        forged = {**SIGNATURES, name: sign_contract(CONTRACT, private_key(name, "log"))}
        with pytest.raises(ContractRefusedError, match=f"`{name}` did not sign"):
            verify_contract(CONTRACT, forged, POLICY_KEYS)
        with pytest.raises(ContractRefusedError, match=f"another policy key of `{name}`"):
            verify_contract(CONTRACT, SIGNATURES, {**POLICY_KEYS, name: public_key(name, "log")})
        known = {other: key for other, key in POLICY_KEYS.items() if other != name}
        with pytest.raises(ContractRefusedError, match=f"no policy key of `{name}`"):
            verify_contract(CONTRACT, SIGNATURES, known)


def test_every_single_bit_change_of_a_contract_is_refused() -> None:
    for bit in range(0, 8 * len(CONTENT), 7):
        changed = bytearray(CONTENT)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EchelonError):
            verify_contract(*parse_contract(bytes(changed)), POLICY_KEYS)


def test_two_boundaries_a_small_cohort_and_strangers_are_refused_by_policy() -> None:
    with pytest.raises(PolicyRefusedError) as refused:
        make_contract(replace(POLICY, accept_two_boundaries=False), run_terms())
    assert refused.value.code == "two-boundaries"
    three = run_terms(boundaries=tuple(party(name) for name in ("lab", "clinic", "port")))
    contract = make_contract(replace(POLICY, accept_two_boundaries=False), three)
    assert [p.name for p in contract.boundaries] == ["clinic", "lab", "port"]
    for change, code in (
        ({"min_cohort": 2}, "cohort-too-small"),
        ({"boundaries": ("clinic",)}, "boundary-not-allowed"),
    ):
        with pytest.raises(PolicyRefusedError) as refused:
            make_contract(replace(POLICY, **change), run_terms())
        assert refused.value.code == code


BAD_TERMS: list[dict[str, Any]] = [
    {"run": bytes(15)},
    {"boundaries": ()},
    {"boundaries": (party("lab"), party("clinic"))},
    {"boundaries": (party("clinic"), party("clinic"))},
    {"boundaries": (party("Clinic"),)},
    {"boundaries": (replace(party("clinic"), log_key=bytes(31)),)},
    {"boundaries": (replace(party("clinic"), log_key=public_key("clinic", "message")),)},
    {"coordinator": replace(party("coordinator"), name="../up")},
    {"manifest_sha256": bytes(32)},
    {"num_values": 0},
    {"min_cohort": 2},
    {"releases_per_window": 2},
    {"num_outer_rates": 0},
    {"metadata_cap_bytes": 288},
    {"metadata_cap_bytes": 100_000},
    {"overhead": replace(CONTRACT.overhead, max_connections=0)},
]


@pytest.mark.parametrize("change", BAD_TERMS)
def test_terms_that_could_not_be_audited_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ContractRefusedError, match="breaks a term"):
        require_sound(replace(CONTRACT, **change))
    signed = signed_contract_bytes(replace(CONTRACT, **change), SIGNATURES)
    with pytest.raises(EchelonError):
        parse_contract(signed)


EDITS: list[Callable[[Any], Any]] = [
    lambda d: d["contract"].update(note="hello"),
    lambda d: d["contract"]["kinds"][0].update(header_bytes=300),
    lambda d: d["contract"]["kinds"].append(dict(d["contract"]["kinds"][0], kind="DEVICE_UPDATE", code=9)),
    lambda d: d["contract"].update(payload_bytes=8000),
    lambda d: d["contract"].update(schema="echelon/contract/2"),
    lambda d: d["contract"].update(ring="float64"),
    lambda d: d["contract"].pop("min_cohort"),
    lambda d: d["contract"]["boundaries"][0].update(site="hall 3"),
    lambda d: d["signatures"].pop("lab"),
    lambda d: d["signatures"].update(stranger="00" * 64),
    lambda d: d["signatures"].update(lab="00" * 63),
]


def test_unknown_keys_other_kinds_and_other_sizes_are_refused() -> None:
    for edit in EDITS:
        document = json.loads(CONTENT)
        edit(document)
        with pytest.raises(EchelonError):
            parse_contract(canonical_bytes(document))


def test_each_term_moves_the_hash() -> None:
    changes: list[dict[str, Any]] = [
        {"run": bytes(16)},
        {"policy_sha256": bytes(32)},
        {"num_values": 7},
        {"ring": Ring.Z2_32},
        {"min_cohort": 5},
        {"num_outer_rates": 9},
        {"metadata_cap_bytes": 300},
        {"overhead": replace(CONTRACT.overhead, per_mille=21)},
        {"boundaries": CONTRACT.boundaries[:1]},
    ]
    hashes = {contract_sha256(replace(CONTRACT, **change)) for change in changes}
    assert len(hashes | {contract_sha256(CONTRACT)}) == len(changes) + 1
    read = [Contract(**{**_fields(CONTRACT), **change}) for change in changes]
    assert len({contract_bytes(contract) for contract in read}) == len(changes)


def _fields(contract: Contract) -> dict[str, Any]:
    return {name: getattr(contract, name) for name in contract.__dataclass_fields__}


def test_each_word_of_a_policy_moves_its_hash() -> None:
    policies = [
        POLICY,
        replace(POLICY, name="other"),
        replace(POLICY, drop_tolerance=2),
        replace(POLICY, speed_ratio_max=1.5),
        replace(POLICY, speed_ratio_max=1.25),
        replace(POLICY, boundaries=("clinic", "lab")),
        replace(POLICY, spill_over=SpillOver(owners=("cloud",))),
        replace(POLICY, tokens_tier="geheim-ü"),
    ]
    assert len({policy_sha256(policy) for policy in policies}) == len(policies)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"a": 1}', b'{"a":1}\n', b'{"a":1.0}', b'{"a":1e2}',
        b'{"a":NaN}', b'{"a":true}', b'{"a":null}', b'{"a":"\xc3\xbc"}', b'{"a":"\\u00fc"}', b'{"a":"\\n"}',
        b'{"a":"\\u0041"}', b'{"a":9007199254740992}', b'{"a":-0}', b"[" * 12 + b"]" * 12, b"[" * 5000,
        b'{"\\u0000":1}',
    ],
)  # fmt: skip
def test_whatever_is_not_canonical_is_refused(content: bytes) -> None:
    with pytest.raises(NotCanonicalError):
        parse_canonical(content, name="it")


PLAIN = st.recursive(
    st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcXYZ_", max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_canonical_documents_come_back(document: Any) -> None:
    try:
        content = canonical_bytes(document)
    except NotCanonicalError as error:
        assert "nested deeper" in error.message  # noqa: PT017
        return
    assert parse_canonical(content, name="it") == document


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_break_the_reader(content: bytes) -> None:
    try:
        document = parse_canonical(content, name="it")
    except NotCanonicalError:
        return
    assert canonical_bytes(document) == content
