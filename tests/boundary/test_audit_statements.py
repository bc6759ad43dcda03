"""Statements about keys and checkpoints that hold for another party, run, moment or size are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boundary.audit_runs import CAPTURE_KEYS, POLICY_KEYS, Story, private_key, public_key
from policies.audit.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    parse_checkpoints,
    sign_checkpoint,
)
from policies.audit.key_statement import KeyAction, KeyRole, KeyStatement, encode_statement
from policies.audit.record import Channel, Kind
from policies.audit.verdict import Outcome, Rule, Scope, Verdict
from policies.audit.verify import verify_folder
from policies.contract import contract_sha256


def statement_of(story: Story, **changes: Any) -> bytes:
    """Clinic replaces its message key, but for `changes`; its policy key signs."""
    honest = KeyStatement(
        owner_id=1,
        action=KeyAction.ROTATE,
        role=KeyRole.MESSAGE,
        run=story.contract.run,
        contract_sha256=contract_sha256(story.contract),
        old_key=public_key("clinic", "message"),
        new_key=public_key("clinic", "next-message"),
    )
    return encode_statement(replace(honest, **changes), private_key("clinic", "policy"))


def with_statements(folder: Path, *changes: dict[str, Any]) -> Verdict:
    story = Story(1)
    story.diaries[1].records += [statement_of(story, **change) for change in changes]
    story.write(folder)
    return verify_folder(folder, POLICY_KEYS)


def test_an_honest_statement_passes(tmp_path: Path) -> None:
    assert with_statements(tmp_path, {}).outcome is Outcome.PASS


BACK = {"old_key": public_key("clinic", "next-message"), "new_key": public_key("clinic", "message")}


@pytest.mark.parametrize(
    "changes",
    [
        [{"owner_id": 2}],
        [{"run": bytes(16)}],
        [{"contract_sha256": bytes(32)}],
        [{"old_key": public_key("clinic", "log")}],
        [{}, {"new_key": public_key("clinic", "third")}],
        [{}, BACK],
    ],
    ids=[
        "other-owner",
        "other-run",
        "other-contract",
        "key-never-in-force",
        "key-no-longer-in-force",
        "old-key-again",
    ],
)
def test_a_statement_for_something_else_is_refused(tmp_path: Path, changes: list[dict[str, Any]]) -> None:
    verdict = with_statements(tmp_path, *changes)
    assert verdict.failures[0].rule is Rule.KEY_STATEMENT
    assert verdict.failures[0].place == f"clinic.log record {6 + len(changes) - 1}"


def test_a_checksum_that_does_not_fit_is_named_even_when_all_is_signed(tmp_path: Path) -> None:
    story = Story(1)
    record = story.diaries[1].records[2]
    story.diaries[1].records[2] = record[:-1] + bytes([record[-1] ^ 1])
    story.write(tmp_path)
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert [(f.rule, f.place) for f in verdict.failures] == [(Rule.RECORD_MALFORMED, "clinic.log record 2")]


def rewritten(folder: Path, change: Any) -> Verdict:
    """The verdict after `change` of clinic's checkpoints, given and returned as a list."""
    Story(3).write(folder)
    path = folder / "clinic.checkpoints"
    notes = change(parse_checkpoints(path.read_bytes()))
    path.write_bytes(b"".join(map(checkpoint_bytes, notes)))
    return verify_folder(folder, POLICY_KEYS)


def signed_by(note: Checkpoint, *names: str) -> Checkpoint:
    for name in names:
        note = sign_checkpoint(note, name, private_key(name, "log"))
    return note


def test_a_signature_of_the_right_key_over_something_else(tmp_path: Path) -> None:
    def exchange(notes: list[Checkpoint]) -> list[Checkpoint]:
        return [replace(notes[0], signatures=notes[1].signatures), *notes[1:]]

    assert rewritten(tmp_path, exchange).failures[0].rule is Rule.CHECKPOINT_SIGNATURE


def test_a_checkpoint_without_its_owners_signature(tmp_path: Path) -> None:
    def drop_owner(notes: list[Checkpoint]) -> list[Checkpoint]:
        return [signed_by(replace(notes[0], signatures=()), "coordinator"), *notes[1:]]

    verdict = rewritten(tmp_path, drop_owner)
    assert verdict.failures[0].rule is Rule.CHECKPOINT_SIGNATURE
    assert "`clinic` itself did not sign" in verdict.failures[0].found


def test_checkpoints_that_shrink(tmp_path: Path) -> None:
    verdict = rewritten(tmp_path, lambda notes: [notes[1], notes[0], *notes[2:]])
    assert verdict.failures[0].rule is Rule.CHECKPOINT_MALFORMED


@pytest.mark.parametrize("change", [{"run": bytes(16)}, {"party": "lab"}])
def test_a_checkpoint_of_another_run_or_log(tmp_path: Path, change: dict[str, Any]) -> None:
    def foreign(notes: list[Checkpoint]) -> list[Checkpoint]:
        return [signed_by(replace(notes[0], signatures=(), **change), "clinic", "coordinator"), *notes[1:]]

    verdict = rewritten(tmp_path, foreign)
    assert verdict.failures[0].rule is Rule.CHECKPOINT_MALFORMED
    assert "another run or another log" in verdict.failures[0].found


@pytest.mark.parametrize(
    "change",
    [{"run": bytes(16)}, {"contract_sha256": bytes(32)}, {"boundary": "lab"}, {"boundary": "coordinator"}],
)
def test_a_capture_of_another_run_contract_or_border(tmp_path: Path, change: dict[str, Any]) -> None:
    story = Story(1)
    story.write(tmp_path)
    story.capture(tmp_path, 1, **change)
    story.capture(tmp_path, 2)
    verdict = verify_folder(tmp_path, POLICY_KEYS, scope=Scope.EGRESS, capture_keys=CAPTURE_KEYS)
    assert (verdict.failures[0].rule, verdict.failures[0].place) == (Rule.CAPTURE, "clinic.capture.json")


def test_a_message_that_only_an_open_log_has_is_evidence_to_come(tmp_path: Path) -> None:
    """Received here, not yet in the copy of the sender's log: inconclusive, since that copy may be older."""
    story = Story(1)
    story.write(tmp_path)
    for name in ("clinic", "coordinator"):
        path = tmp_path / f"{name}.checkpoints"
        notes = parse_checkpoints(path.read_bytes())[:-1]
        path.write_bytes(b"".join(map(checkpoint_bytes, notes)))
    story.say(Kind.ABORT, 1, Channel.UP)
    (tmp_path / "coordinator.log").write_bytes(b"".join(story.diaries[0].records))
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any("the rest of a log" in text for text in verdict.missing)
