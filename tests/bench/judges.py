"""How the outcomes of a row of the benchmark are judged; a failed case never counts as met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import Outcome
from planner.examples.bundled import example_names

GIB = 2.0**30
PROVEN_FRAC = 1e-9
SAME_LOSS_FRAC = 1e-5
BASELINES = ("decomposition", "greedy", "equal-split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was measured, in words, and whether it meets what was asked; None where nothing was asked."""

    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked of every case of a row: seconds from process start, excess, first plan, memory."""

    deadline_s: float
    excess_frac: float
    first_plan_s: float | None = None
    peak_bytes: float | None = None

    @property
    def text(self) -> str:
        """The target as the table shows it."""
        proven = self.excess_frac <= PROVEN_FRAC
        parts = [
            "proven optimal" if proven else f"excess <= {self.excess_frac:.1%}",
            f"in {self.deadline_s:g} s",
        ]
        if self.first_plan_s is not None:
            parts.append(f"first plan {self.first_plan_s:g} s")
        if self.peak_bytes is not None:
            parts.append(f"under {self.peak_bytes / GIB:g} GiB")
        return ", ".join(parts)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """What went wrong, by case."""
    return [f"{outcome.case.name}: {outcome.failure}" for outcome in outcomes if outcome.failure]


def judge_solves(ask: Ask, outcomes: Sequence[Outcome]) -> Verdict:
    """The worst case decides; one proven impossible counts as proven and is told."""
    failed = failures(outcomes)
    if failed:
        return Verdict(measured=f"{len(failed)} failed: {failed[0]}", met=False)
    answers = [outcome.answer for outcome in outcomes]
    impossible = sum(bool(answer["infeasible"]) for answer in answers)
    solved = [outcome for outcome in outcomes if not outcome.answer["infeasible"]]
    met = all(outcome.wall_s <= ask.deadline_s for outcome in outcomes)
    words = []
    unproven = [o.case.name for o in solved if o.answer["excess_frac"] is None]
    if unproven:
        words.append(f"{len(unproven)} without plan or bound ({unproven[0]})")
        met = False
    excesses = [o.answer["excess_frac"] for o in solved if o.answer["excess_frac"] is not None]
    if excesses:
        worst = max(excesses)
        exact = "all proven optimal" if worst <= PROVEN_FRAC else f"worst excess {worst:.3%}"
        words.append(exact)
        met = met and worst <= ask.excess_frac
        reached = [o.answer["reached_s"] for o in solved]
        if all(at_s is not None for at_s in reached):
            words.append(f"reached after {max(reached):.1f} s")
    if impossible:
        words.append(f"{impossible} proven impossible")
    if ask.first_plan_s is not None:
        firsts = [o.answer["first_plan_s"] for o in solved]
        met = met and all(at_s is not None and at_s <= ask.first_plan_s for at_s in firsts)
    if ask.peak_bytes is not None:
        met = met and all(outcome.peak_bytes <= ask.peak_bytes for outcome in outcomes)
    return Verdict(measured=", ".join(words), met=met)


def judge_agreement(outcomes: Sequence[Outcome]) -> Verdict:
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    answer = outcomes[0].answer
    words = f"{answer['num_cases']} cases, {len(answer['solvers'])} solvers ({', '.join(answer['solvers'])})"
    agreed = bool(answer["agreed"])
    return Verdict(
        measured=f"{words}: {'all equal' if agreed else answer['last'][-1]}",
        met=agreed and answer["num_cases"] >= 200,
    )


def judge_baselines(outcomes: Sequence[Outcome]) -> Verdict:
    speed = {o.case.name: o.answer.get("value") for o in outcomes}
    words = []
    for name in example_names():
        ours = speed.get(f"{name} decomposition")
        ratios = []
        for solver in BASELINES[1:]:
            other = speed.get(f"{name} {solver}")
            ratio = f"{ours / other:.2f} x {solver}" if ours and other else f"{solver} has no plan"
            ratios.append(ratio if ours else "no plan")
        words.append(f"{name} {', '.join(ratios)}")
    failed = failures(outcomes)
    return Verdict(measured="; ".join(words + failed[:1]), met=False if failed else None)


def judge_chain(outcomes: Sequence[Outcome]) -> Verdict:
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    found = {outcome.case.name: outcome for outcome in outcomes}
    at_least = sum(o.answer["value"] >= o.answer["peer"] * (1.0 - 1e-9) for o in outcomes)
    worst = max(o.answer["excess_frac"] for o in outcomes)
    eight = found["fleet-8l4-30b"].answer["value"]
    mixed = found["fleet-10-mixed-30b"]
    proven_s = mixed.wall_s if mixed.answer["status"] == "optimal" else float("inf")
    met = at_least == len(outcomes) and eight >= 252.0 and proven_s <= 300.0
    words = (
        f"{at_least} of {len(outcomes)}, worst excess {worst:.2%}, 8l4 {eight:.1f} tokens/s, "
        f"10-mixed proven in {proven_s:.1f} s"
    )
    return Verdict(measured=words, met=met)


def judge_stage3d(outcomes: Sequence[Outcome]) -> Verdict:
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    worse = better = impossible = 0
    tight = True
    for outcome in outcomes:
        answer, name = outcome.answer, outcome.case.name
        ours, peer = answer["ours_s"], answer["peer_s"]
        impossible += answer["status"] == "infeasible"
        if peer is not None:
            worse += ours is None or ours > peer * (1.0 + 1e-9)
            better += ours is not None and ours < peer * (1.0 - 1e-6)
        settled = ours is not None or answer["status"] == "infeasible"
        excess = answer["excess_frac"]
        if "-80g-" in name and int(name.split("-k")[1].split("-")[0]) <= 64:
            settled = excess is not None and excess <= 0.05
        tight = tight and settled
    words = f"{worse} worse, {better} strictly better, {impossible} proven impossible"
    excesses = [o.answer["excess_frac"] for o in outcomes if o.answer["excess_frac"] is not None]
    return Verdict(
        measured=f"{words}, worst excess {max(excesses, default=0.0):.2%}",
        met=worse == 0 and better >= 1 and tight,
    )


def judge_measured(outcomes: Sequence[Outcome]) -> Verdict:
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    a = outcomes[0].answer
    limits = {
        "gh200_step_time_frac": 0.08,
        "gh200_memory_frac": 0.06,
        "gh200_memory_under_frac": 0.05,
        "a100_one_host_frac": 0.084,
        "a100_many_hosts_frac": 0.147,
    }
    low, high = a["a100_many_hosts_interval_frac"]
    words = (
        f"GH200 {a['gh200_step_time_frac']:.1%} time, {a['gh200_memory_frac']:.1%} memory (under by at most "
        f"{a['gh200_memory_under_frac']:.1%}); A100 one host {a['a100_one_host_frac']:.1%}, many "
        f"{a['a100_many_hosts_frac']:.1%} ({a['num_many_hosts_runs']} runs, 95 % of the mean {low:.1%} to "
        f"{high:.1%})"
    )
    return Verdict(measured=words, met=all(a[key] <= limit for key, limit in limits.items()))


def judge_overhead(outcomes: Sequence[Outcome]) -> Verdict:
    """The median ratio of the worse case decides; equal losses say that both did the same work."""
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    words, met = [], True
    for outcome in outcomes:
        a = outcome.answer
        same = a["losses_apart_frac"] <= SAME_LOSS_FRAC
        met = met and a["ratio"] <= 1.02 and a["num_pairs"] >= 10 and same
        speeds = [a[side]["median_tokens_per_s"] for side in ("beside_plain", "plain_1", "plain_2")]
        interval = f"{a['ratio_low'] - 1.0:+.2%} to {a['ratio_high'] - 1.0:+.2%}"
        words.append(
            f"{a['case']} {a['ratio'] - 1.0:+.2%} (95 % interval {interval}, {a['num_pairs']} pairs), "
            f"losses {'equal' if same else 'differ'}, {speeds[0]:.0f} tokens/s, "
            f"PyTorch {speeds[1]:.0f} on one core, {speeds[2]:.0f} data parallel on two"
        )
    return Verdict(measured="; ".join(words), met=met)


def judge_bad_input(outcomes: Sequence[Outcome]) -> Verdict:
    if failures(outcomes):
        return Verdict(measured=failures(outcomes)[0], met=False)
    answer = outcomes[0].answer
    wrong = answer["wrong"]
    first = "".join(f" ({name}: {why})" for name, why in list(wrong.items())[:1])
    right = answer["num_files"] - len(wrong)
    return Verdict(
        measured=f"{right} of {answer['num_files']} refused as they should be{first}",
        met=not wrong and answer["num_files"] >= 60,
    )
