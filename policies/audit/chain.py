"""Checkpoints against the log they speak of: signatures, keys in force, roots, closing, cosignatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.audit import keys
from policies.audit.checkpoint import Checkpoint, note_bytes, note_key_hash
from policies.audit.scan import LogScan
from policies.audit.verdict import Failure, Rule
from policies.contract import Contract


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsFile:
    """The checkpoints of one log that one file holds."""

    name: str
    checkpoints: Sequence[Checkpoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainAnswer:
    """What the checkpoints of one log prove."""

    failures: tuple[Failure, ...]
    missing: tuple[str, ...]
    is_closed: bool


def check_chain(
    scan: LogScan, files: Sequence[CheckpointsFile], scans: Mapping[int, LogScan], contract: Contract
) -> ChainAnswer:
    """Whether these are checkpoints of exactly this log, and whether the last one closes it.

    Args:
        scan: of the log, with the roots at the checkpoints' sizes.
        files: the owner's checkpoints first, then copies that others kept.
        scans: of all logs by party id; they know which keys each party has had.
        contract: of the run.
    """
    failures: list[Failure] = []
    for file in files:
        for number, checkpoint in enumerate(file.checkpoints):
            place = f"{file.name} checkpoint {number}"
            earlier = file.checkpoints[number - 1] if number else None
            failures += _order_faults(checkpoint, earlier, scan, contract, place)
            failures += _signature_faults(checkpoint, scan, scans, contract, place)
    failures += _root_faults(scan, files)
    own = files[0].checkpoints[-1] if files and files[0].checkpoints else None
    missing = _closing_gaps(own, scan, scans, contract)
    is_closed = own is not None and own.is_closed and own.size == scan.num_records
    if own is not None and own.is_closed and own.size < scan.num_records:
        found = f"the log was closed at {own.size}"
        failures.append(_failure(Rule.RECORD_AFTER_CLOSE, f"{scan.path.name} record {own.size}", found))
    return ChainAnswer(failures=tuple(failures), missing=tuple(missing), is_closed=is_closed)


def _order_faults(
    checkpoint: Checkpoint, earlier: Checkpoint | None, scan: LogScan, contract: Contract, place: str
) -> list[Failure]:
    if (checkpoint.run, checkpoint.party) != (contract.run, scan.party):
        return [_failure(Rule.CHECKPOINT_MALFORMED, place, "it is of another run or another log")]
    if earlier is None:
        return []
    if checkpoint.size < earlier.size:
        found = f"size {checkpoint.size} after {earlier.size}"
        return [_failure(Rule.CHECKPOINT_MALFORMED, place, found)]
    if earlier.is_closed and (checkpoint.size != earlier.size or not checkpoint.is_closed):
        return [_failure(Rule.RECORD_AFTER_CLOSE, place, f"the log was closed at {earlier.size}")]
    return []


def _signature_faults(
    checkpoint: Checkpoint, scan: LogScan, scans: Mapping[int, LogScan], contract: Contract, place: str
) -> list[Failure]:
    note = note_bytes(checkpoint)
    by_name = {party.name: party_id for party_id, party in enumerate(contract.parties)}
    failures: list[Failure] = []
    owner_key = scan.log_key_at(checkpoint.size, contract.parties[scan.owner_id].log_key)
    signed_by_owner = False
    for line in checkpoint.signatures:
        party_id = by_name.get(line.name)
        known = _log_keys(party_id, scans, contract)
        key = next((k for k in known if note_key_hash(line.name, k) == line.key_hash), None)
        if key is None or not keys.holds(key, line.signature, note):
            failures.append(
                _failure(Rule.CHECKPOINT_SIGNATURE, place, f"the signature of `{line.name}` does not hold")
            )
        elif party_id == scan.owner_id and key != owner_key:
            found = f"`{line.name}` signed with a key that was not in force at size {checkpoint.size}"
            failures.append(_failure(Rule.REVOKED_KEY, place, found))
        elif party_id == scan.owner_id:
            signed_by_owner = True
    if not signed_by_owner and not failures:
        failures.append(_failure(Rule.CHECKPOINT_SIGNATURE, place, f"`{scan.party}` itself did not sign"))
    return failures


def _root_faults(scan: LogScan, files: Sequence[CheckpointsFile]) -> list[Failure]:
    failures: list[Failure] = []
    agreed = max(
        (c.size for f in files for c in f.checkpoints if scan.roots.get(c.size) == c.root), default=-1
    )
    roots: dict[int, set[bytes]] = {}
    for file in files:
        for checkpoint in file.checkpoints:
            roots.setdefault(checkpoint.size, set()).add(checkpoint.root)
    for file in files:
        last_good = 0
        for number, checkpoint in enumerate(file.checkpoints):
            place = f"{file.name} checkpoint {number}"
            if checkpoint.size > scan.num_records:
                found = f"{checkpoint.size:,} records were signed, the log has {scan.num_records:,}"
                failures.append(_failure(Rule.LOG_TRUNCATED, place, found))
            elif scan.roots[checkpoint.size] == checkpoint.root:
                last_good = checkpoint.size
            elif agreed >= checkpoint.size or len(roots[checkpoint.size]) > 1:
                found = f"another tree was signed for the first {checkpoint.size:,} records"
                failures.append(_failure(Rule.LOG_FORKED, place, found))
            else:
                place = f"{scan.path.name} records {last_good} to {checkpoint.size - 1}"
                failures.append(_failure(Rule.RECORD_CHANGED, place, "they are not those that were signed"))
                break  # every later root of this file differs for the same reason
    return failures


def _closing_gaps(
    own: Checkpoint | None, scan: LogScan, scans: Mapping[int, LogScan], contract: Contract
) -> list[str]:
    if own is None:
        return [f"a checkpoint of the log of `{scan.party}`"]
    if not own.is_closed:
        unsigned = scan.num_records - own.size
        tail = f"; {unsigned:,} records are not signed yet" if unsigned else ""
        return [f"the closing checkpoint of the log of `{scan.party}`{tail}"]
    witnesses = (0,) if scan.owner_id else tuple(range(1, len(contract.parties)))
    missing = []
    for party_id in witnesses:
        name = contract.parties[party_id].name
        current = _log_keys(party_id, scans, contract)[-1]
        hash_of_key = note_key_hash(name, current)
        if not any((line.name, line.key_hash) == (name, hash_of_key) for line in own.signatures):
            missing.append(f"the cosignature of `{name}` on the closing checkpoint of `{scan.party}`")
    return missing


def _log_keys(party_id: int | None, scans: Mapping[int, LogScan], contract: Contract) -> list[bytes]:
    if party_id is None:
        return []
    changes = scans[party_id].log_keys if party_id in scans else []
    return [contract.parties[party_id].log_key, *(change.new_key for change in changes)]


def _failure(rule: Rule, place: str, found: str) -> Failure:
    return Failure(rule=rule, place=place, found=found)
