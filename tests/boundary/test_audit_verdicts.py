"""Every way to break a run's evidence has a verdict of its own; an honest run passes.

The parties hold their own keys, so a lie is told here with fitting checksums, roots and signatures wherever
the liar could make them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boundary.audit_runs import (
    CAPTURE_KEYS,
    NAMES,
    POLICY_KEYS,
    Story,
    checkpoints_of,
    private_key,
    public_key,
    write_contract,
)
from policies.audit.checkpoint import Checkpoint, checkpoint_bytes, parse_checkpoints, sign_checkpoint
from policies.audit.key_statement import KeyAction, KeyRole, KeyStatement, encode_statement
from policies.audit.keys import key_id
from policies.audit.record import Channel, Kind
from policies.audit.verdict import Outcome, Rule, Scope, Verdict
from policies.audit.verify import verify_folder
from policies.contract import contract_sha256

Lie = Callable[[Story], None]


def verdict_on(folder: Path, story: Story) -> Verdict:
    story.write(folder)
    return verify_folder(folder, POLICY_KEYS)


def decided(verdict: Verdict) -> Rule | None:
    return verdict.failures[0].rule if verdict.failures else None


def test_an_honest_run_passes_at_the_gate(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, Story())
    assert verdict.outcome is Outcome.PASS, verdict
    assert [log.num_records for log in verdict.logs] == [36, 18, 18]
    assert any("another way than the guard" in text for text in verdict.unproven)


def swap(story: Story, first: int, second: int) -> None:
    records = story.diaries[1].records
    records[first], records[second] = records[second], records[first]


def drop_from_both(story: Story) -> None:
    index = story.diaries[1].find(Kind.BOUNDARY_DELTA, 1)
    gone = story.diaries[1].records.pop(index)[6:240]
    story.diaries[0].records = [r for r in story.diaries[0].records if r[6:240] != gone]


def drop_last_from(owner_id: int) -> Lie:
    def lie(story: Story) -> None:
        index = story.diaries[owner_id].find(Kind.LEAVE)
        del story.diaries[owner_id].records[index]

    return lie


def repeat(story: Story) -> None:
    index = story.diaries[1].find(Kind.BOUNDARY_DELTA)
    story.diaries[1].records.insert(index, story.diaries[1].records[index])


def swap_in_both(story: Story) -> None:
    swap(story, 1, 2)
    one, two = (r[6:240] for r in story.diaries[1].records[1:3])
    log = story.diaries[0].records
    places = [next(i for i, r in enumerate(log) if r[6:240] == told) for told in (one, two)]
    log[places[0]], log[places[1]] = log[places[1]], log[places[0]]


LIES: list[tuple[Rule, Lie]] = [
    (Rule.COHORT_TOO_SMALL, lambda s: s.both(1, Kind.BOUNDARY_DELTA, cohort_size=1)),
    (Rule.WINDOW_RELEASED_TWICE, lambda s: s.both(1, Kind.BOUNDARY_DELTA, 2, epoch=1)),
    (Rule.PAYLOAD_SIZE, lambda s: s.both(1, Kind.BOUNDARY_DELTA, payload_bytes=8000)),
    (Rule.PAYLOAD_SIZE, lambda s: s.both(1, Kind.BOUNDARY_STATUS, payload_bytes=4000)),
    (Rule.WRONG_MANIFEST, lambda s: s.both(1, Kind.BOUNDARY_DELTA, manifest_sha256=bytes(range(32)))),
    (Rule.HEADER_SIZE, lambda s: s.both(1, Kind.BOUNDARY_STATUS, header_bytes=192)),
    (Rule.METADATA_CAP, lambda s: s.both(1, Kind.BOUNDARY_STATUS, header_bytes=5000)),
    (Rule.PARTICIPANT_PAYLOAD, lambda s: s.both(1, Kind.BOUNDARY_DELTA, participant_payload_bytes=4000)),
    (Rule.OTHER_CONTRACT, lambda s: s.both(1, Kind.BOUNDARY_DELTA, contract_sha256=bytes(32))),
    (Rule.OTHER_CONTRACT, lambda s: s.both(1, Kind.BOUNDARY_DELTA, run=bytes(16))),
    (Rule.WRONG_MESSAGE_KEY, lambda s: s.both(1, Kind.BOUNDARY_DELTA, signer=bytes(8))),
    (Rule.FIELD_NOT_ALLOWED, lambda s: s.both(1, Kind.BOUNDARY_STATUS, roster_root=bytes(range(32)))),
    (Rule.FIELD_NOT_ALLOWED, lambda s: s.both(1, Kind.BOUNDARY_STATUS, cohort_size=4)),
    (Rule.WRONG_CHANNEL, lambda s: s.both(1, Kind.BOUNDARY_STATUS, kind=Kind.SYNC_DIRECTIVE)),
    (Rule.WRONG_COUNTERPART, lambda s: s.diaries[1].edit(3, counterpart_id=2)),
    (Rule.WRONG_COUNTERPART, lambda s: s.diaries[1].edit(3, boundary_id=2)),
    (Rule.WRONG_OWNER, lambda s: s.diaries[1].edit(3, owner_id=2)),
    (Rule.COUNTERPART_MISMATCH, lambda s: s.diaries[1].edit(2, payload_sha256=bytes(range(32)))),
    (Rule.NOT_IN_SENDER_LOG, drop_last_from(1)),
    (Rule.NOT_RECEIVED, drop_last_from(0)),
    (Rule.SEQUENCE_GAP, drop_from_both),
    (Rule.SEQUENCE_DUPLICATE, repeat),
    (Rule.SEQUENCE_REORDERED, swap_in_both),
]


@pytest.mark.parametrize(("rule", "lie"), LIES, ids=[f"{rule}-{i}" for i, (rule, _) in enumerate(LIES)])
def test_a_lie_that_its_teller_signed_is_named(tmp_path: Path, rule: Rule, lie: Lie) -> None:
    story = Story()
    lie(story)
    verdict = verdict_on(tmp_path, story)
    assert decided(verdict) is rule, verdict.failures
    assert ".log record " in verdict.failures[0].place


def test_an_unknown_kind_or_version_is_named(tmp_path: Path) -> None:
    for position, value, rule in ((6, 77, Rule.UNKNOWN_KIND), (0, 9, Rule.RECORD_MALFORMED)):
        story = Story()
        record = bytearray(story.diaries[1].records[3])
        record[position] = value
        story.diaries[1].records[3] = bytes(record)
        assert rule in {failure.rule for failure in verdict_on(tmp_path, story).failures}


def honest_folder(folder: Path) -> Story:
    story = Story()
    story.write(folder)
    return story


def test_a_record_changed_by_someone_without_the_key(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    story.diaries[2].edit(4, base_version=3)
    (tmp_path / "lab.log").write_bytes(b"".join(story.diaries[2].records))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert decided(verdict) is Rule.RECORD_CHANGED
    assert verdict.failures[0].place == "lab.log records 0 to 4"


def test_a_truncated_log(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    (tmp_path / "lab.log").write_bytes(b"".join(story.diaries[2].records[:-1]))
    assert decided(verify_folder(tmp_path, POLICY_KEYS)) is Rule.LOG_TRUNCATED


def test_a_record_after_the_closing_one(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    story.say(Kind.ABORT, 1, Channel.UP)
    name = NAMES[1]
    (tmp_path / f"{name}.log").write_bytes(b"".join(story.diaries[1].records))
    path = tmp_path / f"{name}.checkpoints"
    later = checkpoints_of(story.diaries[1].records, name, [])
    path.write_bytes(path.read_bytes() + b"".join(map(checkpoint_bytes, later)))
    assert decided(verify_folder(tmp_path, POLICY_KEYS)) is Rule.RECORD_AFTER_CLOSE


def test_records_behind_the_closing_checkpoint_are_no_pass(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    story.say(Kind.ABORT, 1, Channel.UP)
    for owner_id in (0, 1):
        (tmp_path / f"{NAMES[owner_id]}.log").write_bytes(b"".join(story.diaries[owner_id].records))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert decided(verdict) is Rule.RECORD_AFTER_CLOSE


def test_two_faces_of_one_log(tmp_path: Path) -> None:
    honest_folder(tmp_path)
    kept = parse_checkpoints((tmp_path / "clinic.checkpoints").read_bytes())
    other = Story()
    other.both(1, Kind.BOUNDARY_DELTA, 1, base_version=0)
    other.write(tmp_path)
    assert verify_folder(tmp_path, POLICY_KEYS).outcome is Outcome.PASS
    copy = tmp_path / "clinic.lab.checkpoints"
    copy.write_bytes(b"".join(map(checkpoint_bytes, kept[:-1])))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert decided(verdict) is Rule.LOG_FORKED
    assert verdict.failures[0].place == "clinic.lab.checkpoints checkpoint 1"


@pytest.mark.parametrize("signer", ["coordinator", "clinic"])
def test_a_signature_that_does_not_hold(tmp_path: Path, signer: str) -> None:
    honest_folder(tmp_path)
    path = tmp_path / "clinic.checkpoints"
    first, *rest = parse_checkpoints(path.read_bytes())
    forged = sign_checkpoint(first, signer, private_key("stranger", "log"))
    path.write_bytes(b"".join(map(checkpoint_bytes, [forged, *rest])))
    assert decided(verify_folder(tmp_path, POLICY_KEYS)) is Rule.CHECKPOINT_SIGNATURE


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_checkpoint(tmp_path: Path, cut: int) -> None:
    honest_folder(tmp_path)
    path = tmp_path / "clinic.checkpoints"
    path.write_bytes(path.read_bytes()[:-cut])
    assert decided(verify_folder(tmp_path, POLICY_KEYS)) is Rule.CHECKPOINT_MALFORMED


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contract.json", "the contract"),
        ("lab.log", "the log of `lab`"),
        ("coordinator.log", "the log of `coordinator`"),
        ("lab.checkpoints", "a checkpoint of the log of `lab`"),
    ],
)
def test_a_missing_file_is_inconclusive(tmp_path: Path, name: str, words: str) -> None:
    honest_folder(tmp_path)
    (tmp_path / name).unlink()
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any(words in text for text in verdict.missing)


def test_a_missing_policy_key_is_inconclusive_and_a_wrong_one_fails(tmp_path: Path) -> None:
    honest_folder(tmp_path)
    some = {name: POLICY_KEYS[name] for name in NAMES[:2]}
    assert verify_folder(tmp_path, some).missing == ("the policy key of `lab`",)
    assert decided(verify_folder(tmp_path, {**POLICY_KEYS, "lab": public_key("lab", "log")})) is Rule.CONTRACT


def test_a_log_that_is_not_closed_or_not_cosigned_is_inconclusive(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    path = tmp_path / "clinic.checkpoints"
    *earlier, last = parse_checkpoints(path.read_bytes())
    path.write_bytes(b"".join(map(checkpoint_bytes, earlier)))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "1 records are not signed yet" in verdict.missing[0]
    alone = sign_checkpoint(
        checkpoints_of(story.diaries[1].records, "clinic", [])[-1], "clinic", private_key("clinic", "log")
    )
    own = [line for line in last.signatures if line.name == "clinic"]
    path.write_bytes(checkpoint_bytes(type(alone)(**{**fields_of(alone), "signatures": tuple(own)})))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.missing == ("the cosignature of `coordinator` on the closing checkpoint of `clinic`",)


def fields_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in type(checkpoint).__dataclass_fields__}


def test_a_log_of_nobody_in_the_contract(tmp_path: Path) -> None:
    honest_folder(tmp_path)
    shutil.copy(tmp_path / "lab.log", tmp_path / "shadow.log")
    assert decided(verify_folder(tmp_path, POLICY_KEYS)) is Rule.UNLISTED_LOG


def statement(story: Story, role: KeyRole, action: KeyAction, *, signer: str = "policy") -> bytes:
    return encode_statement(
        KeyStatement(
            owner_id=1,
            action=action,
            role=role,
            run=story.contract.run,
            contract_sha256=contract_sha256(story.contract),
            old_key=public_key("clinic", role.name.lower()),
            new_key=public_key("clinic", f"next-{role.name.lower()}"),
        ),
        private_key("clinic", signer),
    )


def story_with_new_keys(role: KeyRole, action: KeyAction, *, signer: str = "policy") -> Story:
    """Clinic replaces a key before the first window's delta; later messages are signed with the new one."""
    story = Story(0)
    record = statement(story, role, action, signer=signer)
    story.diaries[1].records.append(record)
    if role is KeyRole.MESSAGE:
        story.signers[1] = key_id(public_key("clinic", "next-message"))
    story.say(Kind.BOUNDARY_DELTA, 1, Channel.UP, epoch=1)
    return story


@pytest.mark.parametrize("action", list(KeyAction))
def test_a_replaced_key_serves_from_its_statement_on(tmp_path: Path, action: KeyAction) -> None:
    assert verdict_on(tmp_path, story_with_new_keys(KeyRole.MESSAGE, action)).outcome is Outcome.PASS
    story = story_with_new_keys(KeyRole.LOG, action)
    story.write(tmp_path, log_roles={1: "next-log"})
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.PASS, verdict


def test_a_revoked_key_no_longer_signs(tmp_path: Path) -> None:
    story = story_with_new_keys(KeyRole.LOG, KeyAction.REVOKE)
    assert decided(verdict_on(tmp_path, story)) is Rule.REVOKED_KEY
    story = story_with_new_keys(KeyRole.MESSAGE, KeyAction.REVOKE)
    story.both(1, Kind.BOUNDARY_DELTA, signer=key_id(public_key("clinic", "message")))
    assert decided(verdict_on(tmp_path, story)) is Rule.WRONG_MESSAGE_KEY


def test_a_cosignature_with_a_revoked_key_does_not_close_a_log(tmp_path: Path) -> None:
    story = story_with_new_keys(KeyRole.LOG, KeyAction.REVOKE)
    story.write(tmp_path, log_roles={1: "next-log"})
    notes = checkpoints_of(story.diaries[0].records, "coordinator", [])
    (tmp_path / "coordinator.checkpoints").write_bytes(b"".join(map(checkpoint_bytes, notes)))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.missing == ("the cosignature of `clinic` on the closing checkpoint of `coordinator`",)


def test_a_statement_by_another_key_than_the_policy_key(tmp_path: Path) -> None:
    story = story_with_new_keys(KeyRole.MESSAGE, KeyAction.ROTATE, signer="log")
    assert decided(verdict_on(tmp_path, story)) is Rule.KEY_STATEMENT


def egress(folder: Path) -> Verdict:
    return verify_folder(folder, POLICY_KEYS, scope=Scope.EGRESS, capture_keys=CAPTURE_KEYS)


def captured(folder: Path, **changes: Any) -> Verdict:
    story = honest_folder(folder)
    story.capture(folder, 1, **changes)
    story.capture(folder, 2)
    return egress(folder)


def test_an_honest_run_with_captures_passes_at_the_egress(tmp_path: Path) -> None:
    assert captured(tmp_path).outcome is Outcome.PASS
    blind = captured(tmp_path, sees_messages=0, up_message_bytes=0, down_message_bytes=0)
    assert blind.outcome is Outcome.PASS
    assert len(blind.unproven) == len(captured(tmp_path).unproven) + 1


def test_egress_without_a_capture_is_inconclusive(tmp_path: Path) -> None:
    honest_folder(tmp_path)
    verdict = egress(tmp_path)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "a capture of the border of `clinic` (clinic.capture.json)" in verdict.missing
    no_keys = verify_folder(tmp_path, POLICY_KEYS, scope=Scope.EGRESS)
    assert no_keys.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (Rule.SIDE_CHANNEL, {"other_up_bytes": 1}),
        (Rule.EGRESS_UNLOGGED, {"up_message_bytes": 18_177}),
        (Rule.EGRESS_UNLOGGED, {"up_wire_bytes": 90_000}),
        (Rule.EGRESS_UNLOGGED, {"num_connections": 17}),
        (Rule.EGRESS_MISSING, {"up_message_bytes": 18_175}),
        (Rule.EGRESS_MISSING, {"up_wire_bytes": 18_175}),
        (Rule.CAPTURE, {"is_whole": 2}),
    ],
)
def test_a_capture_against_the_logs(tmp_path: Path, rule: Rule, changes: dict[str, int]) -> None:
    assert decided(captured(tmp_path, **changes)) is rule


@pytest.mark.parametrize("changes", [{"is_whole": 0}, {"num_dropped_packets": 3}])
def test_a_capture_with_holes_is_inconclusive(tmp_path: Path, changes: dict[str, int]) -> None:
    assert captured(tmp_path, **changes).outcome is Outcome.INCONCLUSIVE


def test_a_capture_must_be_signed_by_its_recorder_and_not_by_a_party(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    story.capture(tmp_path, 1, role="log")
    story.capture(tmp_path, 2)
    assert decided(egress(tmp_path)) is Rule.CAPTURE
    own = {**CAPTURE_KEYS, "clinic": public_key("clinic", "log")}
    verdict = verify_folder(tmp_path, POLICY_KEYS, scope=Scope.EGRESS, capture_keys=own)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "none of the parties" in verdict.missing[0]


def test_a_contract_that_one_party_did_not_sign(tmp_path: Path) -> None:
    story = honest_folder(tmp_path)
    write_contract(tmp_path, story.contract)
    content = (tmp_path / "contract.json").read_text(encoding="ascii")
    signature = content.rpartition(':"')[2]
    (tmp_path / "contract.json").write_text(content.replace(signature, "0" * 128 + signature[128:]))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert decided(verdict) is Rule.CONTRACT
    assert "`lab` did not sign" in verdict.failures[0].found
