"""Every way to break a run's evidence has a verdict of its own; an honest run passes."""

from __future__ import annotations

from pathlib import Path

from audit_runs import CAPTURE_KEYS, POLICY_KEYS, Story

from policies.audit.verdict import Outcome, Scope
from policies.audit.verify import verify_folder


def test_an_honest_run_passes_at_the_gate(tmp_path: Path) -> None:
    Story().write(tmp_path)
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.PASS, verdict
    assert [log.num_records for log in verdict.logs] == [36, 18, 18]


def test_an_honest_run_with_captures_passes_at_the_egress(tmp_path: Path) -> None:
    story = Story()
    story.write(tmp_path)
    for boundary_id in (1, 2):
        story.capture(tmp_path, boundary_id)
    verdict = verify_folder(tmp_path, POLICY_KEYS, scope=Scope.EGRESS, capture_keys=CAPTURE_KEYS)
    assert verdict.outcome is Outcome.PASS, verdict
