"""Evidence on paper: checkpoints, cosigning, keys, and single-bit changes of everything in a folder."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from boundary.audit_runs import CAPTURE_KEYS, POLICY_KEYS, Story, checkpoints_of, private_key, public_key
from policies.audit import keys
from policies.audit.checkpoint import (
    Checkpoint,
    CheckpointRefusedError,
    checkpoint_bytes,
    cosign_checkpoint,
    is_signed_by,
    parse_checkpoints,
    sign_checkpoint,
)
from policies.audit.record import RECORD_BYTES, RecordDamagedError, decode_record
from policies.audit.tree import consistency_proof, leaf_hash, root_of
from policies.audit.verdict import Outcome, Scope
from policies.audit.verify import parse_key_arguments, verify_folder
from policies.errors import InputError

RECORDS = Story(3).diaries[1].records
NOTES = checkpoints_of(RECORDS, "clinic", [4, 9])
NUM_CHANGES = 300


def write_captured_run(folder: Path) -> None:
    story = Story(2)
    story.write(folder)
    for boundary_id in (1, 2):
        story.capture(folder, boundary_id)


def test_no_single_bit_change_of_any_file_passes(tmp_path: Path) -> None:
    write_captured_run(tmp_path)

    def outcome() -> Outcome:
        return verify_folder(tmp_path, POLICY_KEYS, scope=Scope.EGRESS, capture_keys=CAPTURE_KEYS).outcome

    draw = random.Random(3)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 9
    for number in range(NUM_CHANGES):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        bit = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert outcome() is not Outcome.PASS, (path.name, bit)
        path.write_bytes(content)
    assert outcome() is Outcome.PASS


def test_every_cut_and_every_lost_line_is_no_pass(tmp_path: Path) -> None:
    write_captured_run(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        if path.name.endswith("capture.json"):
            continue
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        shorter = [content[: len(content) * part // 8] for part in range(8)] + [content + b"\0", content * 2]
        if path.suffix == ".checkpoints":
            shorter += [b"".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines))]
        for now in shorter:
            path.write_bytes(now)
            verdict = verify_folder(tmp_path, POLICY_KEYS)
            # Whole checkpoints before the closing one may be lost: what is left still proves the same.
            if path.suffix == ".checkpoints" and _is_closing_kept(now, content):
                continue
            assert verdict.outcome is not Outcome.PASS, path.name
        path.write_bytes(content)


def _is_closing_kept(now: bytes, content: bytes) -> bool:
    try:
        kept, whole = parse_checkpoints(now), parse_checkpoints(content)
    except CheckpointRefusedError:
        return False
    return bool(kept) and kept[-1] == whole[-1]


def test_checkpoints_are_read_as_they_were_written() -> None:
    content = b"".join(map(checkpoint_bytes, NOTES))
    assert parse_checkpoints(content) == NOTES
    assert parse_checkpoints(b"") == []
    text = content.decode()
    assert text.startswith(f"echelon/log/1/{bytes(range(16)).hex()}/clinic\n4\n")
    assert text.count("closed\n") == 1


def test_base64_has_one_form_only() -> None:
    """The last letter of a signature has two unused bits; setting them decodes to the same bytes."""
    text = checkpoint_bytes(NOTES[0]).decode()
    value = text.rstrip("\n").rpartition(" ")[2]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = value.rstrip("=")[-1]
    other = value.replace(last + "=", letters[letters.index(last) ^ 1] + "=")
    assert base64.b64decode(other) == base64.b64decode(value)
    with pytest.raises(CheckpointRefusedError):
        parse_checkpoints(text.replace(value, other).encode())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_break_the_reader_of_checkpoints(content: bytes) -> None:
    try:
        assert parse_checkpoints(content) == []
    except CheckpointRefusedError as error:
        assert error.code == "bad-checkpoint"  # noqa: PT017


def owned(size: int, records: list[bytes], *, is_closed: bool = False) -> Checkpoint:
    note = Checkpoint(
        run=bytes(16), party="clinic", size=size, root=root_of(records[:size]), is_closed=is_closed
    )
    return sign_checkpoint(note, "clinic", private_key("clinic", "log"))


def cosigned(new: Checkpoint, seen: Checkpoint | None, records: list[bytes]) -> Checkpoint:
    hashes = [leaf_hash(record) for record in records[: new.size]]
    proof = consistency_proof(hashes, seen.size) if seen and 0 < seen.size < new.size else []
    return cosign_checkpoint(
        new,
        seen=seen,
        proof=proof,
        owner_log_key=public_key("clinic", "log"),
        name="coordinator",
        key=private_key("coordinator", "log"),
    )


def test_a_counterpart_signs_what_continues_what_it_has_seen() -> None:
    first, second = owned(4, RECORDS), owned(9, RECORDS)
    done = cosigned(first, None, RECORDS)
    assert is_signed_by(done, "coordinator", public_key("coordinator", "log"))
    assert len(cosigned(second, first, RECORDS).signatures) == 2
    assert cosigned(second, second, RECORDS).size == 9
    closing = owned(9, RECORDS, is_closed=True)
    assert cosigned(closing, second, RECORDS).is_closed


def test_a_counterpart_refuses_forks_rollbacks_and_strangers() -> None:
    first, second, closing = owned(4, RECORDS), owned(9, RECORDS), owned(9, RECORDS, is_closed=True)
    forked = [*RECORDS[:2], RECORDS[3], RECORDS[2], *RECORDS[4:]]
    for new, seen, records in (
        (owned(9, forked), first, forked),
        (owned(4, forked), first, forked),
        (first, second, RECORDS),
        (owned(10, RECORDS), closing, RECORDS),
        (second, closing, RECORDS),
        (replace(second, run=bytes(16)), replace(first, run=bytes(range(16))), RECORDS),
    ):
        with pytest.raises(CheckpointRefusedError) as refused:
            cosigned(new, seen, records)
        assert refused.value.code == "log-forked"
    stranger = sign_checkpoint(replace(first, signatures=()), "clinic", private_key("lab", "log"))
    with pytest.raises(CheckpointRefusedError) as refused:
        cosigned(stranger, None, RECORDS)
    assert refused.value.code == "bad-signature"


def test_records_that_are_none_are_refused() -> None:
    for position in range(RECORD_BYTES):
        changed = bytearray(RECORDS[2])
        changed[position] ^= 0x10
        with pytest.raises(RecordDamagedError):
            decode_record(bytes(changed))
    with pytest.raises(RecordDamagedError):
        decode_record(RECORDS[2][:-1])


def test_keys_are_read_from_digits_files_and_pem(tmp_path: Path) -> None:
    key = private_key("clinic", "policy").public_key()
    value = keys.public_bytes(key)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "key.hex").write_text(value.hex() + "\n")
    for text in (value.hex(), str(tmp_path / "key.pem"), str(tmp_path / "key.hex")):
        assert parse_key_arguments([f"clinic={text}"]) == {"clinic": value}
    other = X25519PrivateKey.generate().public_key()
    (tmp_path / "other.pem").write_bytes(
        other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    for text in (
        "clinic",
        "clinic=",
        "clinic=ab",
        f"clinic={tmp_path / 'other.pem'}",
        f"clinic={tmp_path / 'noise'}",
    ):
        with pytest.raises(InputError) as refused:
            parse_key_arguments([text])
        assert refused.value.code == "bad-key"
    with pytest.raises(InputError, match="twice"):
        parse_key_arguments([f"clinic={value.hex()}"] * 2)
