"""One scheduler for every sync policy: what is due now, with H as the controller has set it, and why."""

from __future__ import annotations

from executors.boundary.outer.account import ByteAccount
from executors.boundary.outer.policy import Due, Situation, SyncPolicy
from policies.drift import DriftDecision, DriftSignals, DriftState, decide


class Scheduler:
    """A policy at work: current H, the controller's memory and decisions, and the byte account.

    Attributes:
        policy: the settings.
        num_local_steps: H as it is now; changed by `observe` alone.
        decisions: every decision of the controller, in order.
        account: bytes so far.
    """

    def __init__(self, policy: SyncPolicy) -> None:
        self.policy = policy
        self.num_local_steps = policy.num_local_steps
        self.window_deadline_s: float | None = None
        self.decisions: list[DriftDecision] = []
        self.account = ByteAccount()
        self._state = DriftState(h=float(policy.num_local_steps))

    def due(self, situation: Situation) -> frozenset[Due]:
        """What is due in this situation; empty for wait."""
        return self.policy.due(situation, num_local_steps=self.num_local_steps)

    def observe(self, signals: DriftSignals) -> DriftDecision | None:
        """The controller's decision after an outer step, already in force; None where H is fixed."""
        if self.policy.drift is None:
            return None
        self._state, decision = decide(self.policy.drift, self._state, signals)
        self.num_local_steps = decision.num_local_steps
        self.window_deadline_s = decision.window_deadline_s
        self.decisions.append(decision)
        return decision
