"""The offline auditor: logs, checkpoints, contract and public keys in, one verdict out.

    python -m policies.audit.verify FOLDER --key NAME=KEY ... [--scope egress --capture-key NAME=KEY ...]

It needs the standard library and `cryptography`. FOLDER holds `contract.json` and for each party
`NAME.log` and `NAME.checkpoints`, optionally `NAME.HOLDER.checkpoints` (a copy that HOLDER kept) and
`NAME.capture.json`. Exit code 0 is PASS, 8 FAIL, 10 INCONCLUSIVE, 2 a wrong call.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from policies.audit import keys
from policies.audit.canonical import MAX_DOCUMENT_BYTES
from policies.audit.capture import CAPTURE_SUFFIX, read_capture
from policies.audit.chain import ChainAnswer, CheckpointsFile, check_chain
from policies.audit.checkpoint import CheckpointRefusedError, parse_checkpoints
from policies.audit.ledger import CHECKPOINTS_SUFFIX, LOG_SUFFIX
from policies.audit.match import match_capture, match_logs
from policies.audit.scan import LogScan, scan_log
from policies.audit.verdict import (
    Failure,
    LogSummary,
    Rule,
    Scope,
    Verdict,
    error_of,
    in_rule_order,
    verdict_data,
    verdict_text,
)
from policies.contract import Contract, contract_sha256, parse_contract, verify_contract
from policies.errors import EchelonError, InputError
from policies.one_home import package_homes, require_one_home

CONTRACT_NAME = "contract.json"


class _Case:
    """One audit while it runs."""

    def __init__(self, folder: Path, contract: Contract, scope: Scope) -> None:
        self.folder = folder
        self.contract = contract
        self.scope = scope
        self.failures: list[Failure] = []
        self.missing: list[str] = []
        self.scans: dict[int, LogScan] = {}
        self.notes: dict[int, list[CheckpointsFile]] = {}
        self.blind: list[str] = []

    def read_logs(self) -> None:
        """Scan every log that is there, at the sizes its checkpoints speak of."""
        names = {party.name for party in self.contract.parties}
        for path in sorted(self.folder.glob(f"*{LOG_SUFFIX}")):
            if path.name.removesuffix(LOG_SUFFIX) not in names:
                self._fail(Rule.UNLISTED_LOG, path.name, "the contract names no such party")
        for party_id, party in enumerate(self.contract.parties):
            path = self.folder / f"{party.name}{LOG_SUFFIX}"
            self.notes[party_id] = self._read_notes(party.name)
            if not path.is_file():
                self.missing.append(f"the log of `{party.name}` ({path.name})")
                continue
            sizes = [c.size for file in self.notes[party_id] for c in file.checkpoints]
            scan = scan_log(path, self.contract, party_id, sizes)
            self.scans[party_id] = scan
            self.failures += scan.failures.values()

    def check_logs(self) -> None:
        """Checkpoints against their logs, then logs against each other."""
        answers: dict[int, ChainAnswer] = {}
        for party_id, scan in self.scans.items():
            answer = check_chain(scan, self.notes[party_id], self.scans, self.contract)
            answers[party_id] = answer
            self.failures += answer.failures
            self.missing += answer.missing
        closed = frozenset(party_id for party_id, answer in answers.items() if answer.is_closed)
        failures, missing = match_logs(self.scans, closed, self.contract)
        self.failures += failures
        self.missing += missing

    def check_egress(self, capture_keys: Mapping[str, bytes]) -> None:
        """Each boundary's log against the capture of its border."""
        taken = self._keys_of_parties()
        for party_id, party in enumerate(self.contract.parties):
            if party_id == 0:
                continue
            path = self.folder / f"{party.name}{CAPTURE_SUFFIX}"
            if party.name not in capture_keys:
                self.missing.append(f"the key of the process that captured the border of `{party.name}`")
            elif capture_keys[party.name] in taken:
                self.missing.append(f"a capture of `{party.name}` by a process that is none of the parties")
            elif not path.is_file():
                self.missing.append(f"a capture of the border of `{party.name}` ({path.name})")
            elif party_id in self.scans:
                self._check_capture(path, party_id, capture_keys[party.name])

    def verdict(self) -> Verdict:
        """All that was found."""
        return Verdict(
            scope=self.scope,
            failures=in_rule_order(self.failures),
            missing=tuple(self.missing),
            logs=tuple(_summary(scan) for scan in self.scans.values()),
            run=self.contract.run,
            contract_sha256=contract_sha256(self.contract),
            blind_captures=tuple(self.blind),
        )

    def _read_notes(self, name: str) -> list[CheckpointsFile]:
        own = self.folder / f"{name}{CHECKPOINTS_SUFFIX}"
        found = []
        for path in (own, *sorted(self.folder.glob(f"{name}.*{CHECKPOINTS_SUFFIX}"))):
            try:
                checkpoints = parse_checkpoints(path.read_bytes() if path.is_file() else b"")
            except CheckpointRefusedError as error:
                self._fail(Rule.CHECKPOINT_MALFORMED, path.name, error.message)
                checkpoints = []
            found.append(CheckpointsFile(name=path.name, checkpoints=checkpoints))
        return found

    def _check_capture(self, path: Path, party_id: int, key: bytes) -> None:
        contract = self.contract
        try:
            capture = read_capture(_read_document(path), key)
        except EchelonError as error:
            self._fail(Rule.CAPTURE, path.name, error.message)
            return
        bound = (contract.run, contract_sha256(contract), contract.parties[party_id].name)
        if (capture.run, capture.contract_sha256, capture.boundary) != bound:
            self._fail(Rule.CAPTURE, path.name, "it is of another run, contract or boundary")
            return
        if not capture.is_whole or capture.num_dropped_packets:
            self.missing.append(f"a capture of `{capture.boundary}` over the whole run without losses")
        if not capture.sees_messages:
            self.blind.append(capture.boundary)
        self.failures += match_capture(capture, self.scans[party_id], contract, path.name)

    def _keys_of_parties(self) -> set[bytes]:
        taken = set()
        for party in self.contract.parties:
            taken |= {party.policy_key, party.log_key, party.message_key}
        for scan in self.scans.values():
            taken |= {change.new_key for change in (*scan.log_keys, *scan.message_keys)}
        return taken

    def _fail(self, rule: Rule, place: str, found: str) -> None:
        self.failures.append(Failure(rule=rule, place=place, found=found))


def verify_folder(
    folder: Path,
    policy_keys: Mapping[str, bytes],
    *,
    scope: Scope = Scope.GATE,
    capture_keys: Mapping[str, bytes] | None = None,
) -> Verdict:
    """The verdict over the evidence in a folder.

    Args:
        folder: laid out as this module's docstring says.
        policy_keys: public policy keys by party name, which the auditor knows from elsewhere.
        scope: what the verdict is to speak of.
        capture_keys: public keys of the recorders by boundary name, for scope `egress`.

    Raises:
        InputError: `no-such-folder`.
    """
    if not folder.is_dir():
        raise InputError("no-such-folder", f"`{folder}` is no folder", hint="name the folder with the logs")
    path = folder / CONTRACT_NAME
    if not path.is_file():
        return Verdict(scope=scope, missing=(f"the contract ({CONTRACT_NAME})",))
    try:
        contract, signatures = parse_contract(_read_document(path))
        lacking = [party.name for party in contract.parties if party.name not in policy_keys]
        if lacking:
            return Verdict(scope=scope, missing=tuple(f"the policy key of `{name}`" for name in lacking))
        verify_contract(contract, signatures, policy_keys)
    except EchelonError as error:
        failure = Failure(rule=Rule.CONTRACT, place=CONTRACT_NAME, found=error.message)
        return Verdict(scope=scope, failures=(failure,))
    case = _Case(folder, contract, scope)
    case.read_logs()
    case.check_logs()
    if scope is Scope.EGRESS:
        case.check_egress(capture_keys or {})
    return case.verdict()


def parse_key_arguments(arguments: Sequence[str]) -> dict[str, bytes]:
    """Public keys by name from arguments of the form `NAME=KEY`.

    Raises:
        InputError: `bad-key`.
    """
    found: dict[str, bytes] = {}
    for argument in arguments:
        name, equals, key = argument.partition("=")
        if not equals or name in found:
            raise InputError("bad-key", f"`{argument}` is not NAME=KEY, or names a party twice")
        found[name] = keys.read_public_key(key)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verifier from the command line; what comes back is the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m policies.audit.verify", description="Verify a run's audit logs."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--key", action="append", default=[], metavar="NAME=KEY", help="policy key: hex or file"
    )
    parser.add_argument(
        "--capture-key", action="append", default=[], metavar="NAME=KEY", help="recorder's key"
    )
    parser.add_argument("--scope", choices=[scope.value for scope in Scope], default=Scope.GATE.value)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    given = parser.parse_args(argv)
    try:
        # An auditor may hold this package alone; those that are there must still share one folder.
        require_one_home({name: home for name, home in package_homes().items() if home or name == "policies"})
        verdict = verify_folder(
            given.folder,
            parse_key_arguments(given.key),
            scope=Scope(given.scope),
            capture_keys=parse_key_arguments(given.capture_key),
        )
    except EchelonError as error:
        sys.stderr.write(f"error[{error.code}]: {error.message}\n")
        return error.exit_code
    as_json = given.format == "json"
    data = json.dumps(verdict_data(verdict), indent=2, sort_keys=True) + "\n"
    sys.stdout.write(data if as_json else verdict_text(verdict))
    ending = error_of(verdict)
    return ending.exit_code if ending is not None else 0


def _read_document(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_DOCUMENT_BYTES + 1)


def _summary(scan: LogScan) -> LogSummary:
    up = bool(scan.owner_id)
    sent = sum(c.num_bytes for (_, way), c in scan.channels.items() if (way == 1) == up)
    return LogSummary(
        party=scan.party,
        num_records=scan.num_records,
        sent_bytes=sent,
        received_bytes=sum(c.num_bytes for c in scan.channels.values()) - sent,
        root=scan.roots[scan.num_records],
    )


if __name__ == "__main__":
    sys.exit(main())
