"""Logs against each other, and against a capture.

Every message sent was received as it was sent, and nothing else left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from policies.audit.capture import Capture
from policies.audit.ledger import iter_records
from policies.audit.record import BODY_BYTES, MESSAGE_START, RECORD_BYTES, SHAPE, Channel, RecordType
from policies.audit.scan import LogScan
from policies.audit.verdict import Failure, Rule
from policies.contract import Contract


def match_logs(
    scans: Mapping[int, LogScan], closed: frozenset[int], contract: Contract
) -> tuple[list[Failure], list[str]]:
    """Failures and gaps of the one-to-one match between each boundary's log and the coordinator's.

    A message that only one log has breaks a rule once both logs are closed; before, it is evidence to come.
    """
    failures: list[Failure] = []
    missing: list[str] = []
    if 0 not in scans:
        return failures, missing
    for boundary_id in range(1, len(contract.parties)):
        if boundary_id not in scans:
            continue
        for channel in Channel:
            sender, receiver = (boundary_id, 0) if channel is Channel.UP else (0, boundary_id)
            key = (boundary_id, int(channel))
            sent, received = scans[sender].channels[key], scans[receiver].channels[key]
            if (sent.num_messages, sent.digest.digest()) == (received.num_messages, received.digest.digest()):
                continue
            failure = _first_difference(scans[sender], scans[receiver], key)
            if failure.rule is Rule.COUNTERPART_MISMATCH or {sender, receiver} <= closed:
                failures.append(failure)
            else:
                missing.append(f"the rest of a log: {failure.place}, {failure.found}")
    return failures, missing


def match_capture(capture: Capture, scan: LogScan, contract: Contract, place: str) -> list[Failure]:
    """What the capture of a boundary's border says against the boundary's log."""
    failures: list[Failure] = []
    if capture.other_up_bytes:
        found = f"{capture.other_up_bytes:,} bytes left for elsewhere"
        failures.append(Failure(rule=Rule.SIDE_CHANNEL, place=place, found=found))
    if capture.num_connections > contract.overhead.max_connections:
        found = f"{capture.num_connections} connections, {contract.overhead.max_connections} allowed"
        failures.append(Failure(rule=Rule.EGRESS_UNLOGGED, place=place, found=found))
    sides = (
        (Channel.UP, capture.up_message_bytes, capture.up_wire_bytes),
        (Channel.DOWN, capture.down_message_bytes, capture.down_wire_bytes),
    )
    for channel, message_bytes, wire_bytes in sides:
        logged = scan.channels[(scan.owner_id, int(channel))]
        allowance = contract.overhead.allowance_bytes(
            logged_bytes=logged.num_bytes,
            num_messages=logged.num_messages,
            num_connections=min(capture.num_connections, contract.overhead.max_connections),
        )
        way = channel.name.lower()
        if capture.sees_messages and message_bytes != logged.num_bytes:
            rule = Rule.EGRESS_UNLOGGED if message_bytes > logged.num_bytes else Rule.EGRESS_MISSING
            found = f"{message_bytes:,} bytes of messages went {way}, {logged.num_bytes:,} were logged"
            failures.append(Failure(rule=rule, place=place, found=found))
        if not logged.num_bytes <= wire_bytes <= logged.num_bytes + allowance:
            rule = Rule.EGRESS_UNLOGGED if wire_bytes > logged.num_bytes else Rule.EGRESS_MISSING
            found = f"{wire_bytes:,} bytes went {way}, {logged.num_bytes:,} plus {allowance:,} allowed"
            failures.append(Failure(rule=rule, place=place, found=found))
    return failures


def _first_difference(sender: LogScan, receiver: LogScan, key: tuple[int, int]) -> Failure:
    pairs = zip_longest(_messages(sender, key), _messages(receiver, key))
    way = "up" if key[1] == Channel.UP else "down"
    for sent, received in pairs:
        if sent is None:
            place = f"{receiver.path.name} record {received[0]}"
            return Failure(
                rule=Rule.NOT_IN_SENDER_LOG, place=place, found=f"{sender.party} logged no such message {way}"
            )
        place = f"{sender.path.name} record {sent[0]}"
        if received is None:
            return Failure(
                rule=Rule.NOT_RECEIVED, place=place, found=f"{receiver.party} logged no such message {way}"
            )
        if sent[1] != received[1]:
            found = f"{receiver.path.name} record {received[0]} tells of another message {way}"
            return Failure(rule=Rule.COUNTERPART_MISMATCH, place=place, found=found)
    return Failure(
        rule=Rule.COUNTERPART_MISMATCH, place=sender.path.name, found="a log changed while it was read"
    )


def _messages(scan: LogScan, key: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    for index, record in enumerate(iter_records(scan.path)):
        if len(record) < RECORD_BYTES or record[1] == RecordType.KEY_STATEMENT:
            continue
        *_, channel_id, boundary_id, _ = SHAPE.unpack_from(record)
        if (boundary_id, channel_id) == key:
            yield index, record[MESSAGE_START:BODY_BYTES]
