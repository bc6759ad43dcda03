"""Why each device that runs nothing does so, class by class."""

from __future__ import annotations

from collections import defaultdict

from planner.explain.answer import Section
from planner.explain.prices import Prices, prices_of
from planner.explain.reach import Reached, countable, reach
from planner.explain.view import BoundaryView, plural
from planner.problem import DeviceClass, ObjectiveKind
from planner.spares import DEDICATED, NO_STAGE_FITS, NOT_CLEARED, POOLED


def idle_section(view: BoundaryView) -> Section:
    """One line per class and reason."""
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    for entry in view.planned.excluded:
        if entry.device in view.class_of:
            groups[(view.class_of[entry.device].class_i, entry.reason)].append(entry.device)
    prices = prices_of(view)
    other = any(reason not in (DEDICATED, POOLED, NOT_CLEARED, NO_STAGE_FITS) for _, reason in groups)
    found = reach(view.problem) if other and countable(view.problem) else None
    lines, data = [], []
    for (class_i, reason), devices in sorted(groups.items()):
        device_class = view.problem.classes[class_i]
        code, text = _why(view, device_class, reason, prices, found)
        lines.append(f"{view.class_text(device_class, len(devices))}: {text}")
        data.append({"devices": devices, "class": class_i, "reason": reason, "because": code, "text": text})
    if not lines:
        lines.append("every device runs")
    return Section(name=f"{view.problem.name}.idle", title="idle devices", lines=tuple(lines), data=data)


def _why(
    view: BoundaryView,
    device_class: DeviceClass,
    reason: str,
    prices: Prices | None,
    found: Reached | None,
) -> tuple[str, str]:
    """A code and a sentence."""
    if reason == DEDICATED:
        return "spare", "held back as the spare of a stage (policy: spares)"
    if reason == POOLED:
        worth = 0.0 if prices is None else prices.device(view, device_class)
        price = f"; running it would be worth up to {worth:,.0f} {view.unit}" if worth > 0.0 else ""
        return "pooled-spare", f"held back as spare of the pool (policy: spares){price}"
    if reason == NOT_CLEARED:
        lowest = view.tier(min(view.problem.tier_required))
        own = view.tier(device_class.device.tier_i)
        return "not-cleared", f"cleared for `{own}`, and every layer needs at least `{lowest}`"
    if reason == NO_STAGE_FITS:
        return (
            "memory",
            f"no cluster with it holds even one of the layers it may hold{_allowed(view, device_class)}",
        )
    return _not_needed(view, device_class, prices, found)


def _allowed(view: BoundaryView, device_class: DeviceClass) -> str:
    able = [i for i, t in enumerate(view.problem.tier_required) if t <= device_class.device.tier_i]
    if len(able) == view.problem.num_layers:
        return ""
    return f" ({plural(len(able), 'layer')} of {view.problem.num_layers})"


def _not_needed(
    view: BoundaryView, device_class: DeviceClass, prices: Prices | None, found: Reached | None
) -> tuple[str, str]:
    """Why a device that could run a stage runs none."""
    links = view.problem.links
    sites = {view.problem.templates[s.template_i].site_i for replica in view.replicas for s in replica.stages}
    own = device_class.site_i
    if all(links[own][s] is None and links[s][own] is None for s in sites if s != own) and own not in sites:
        return "no-link", "no link joins its site with one in use, and its site runs no replica alone"
    limit = _limit_reached(view, found)
    if limit is not None:
        return limit
    worth = None if prices is None else prices.device(view, device_class)
    if found is not None and not _more_replicas(view, found):
        tail = ""
        if worth == 0.0:
            tail = ", and at the proof's prices it adds nothing to the others"
        elif worth is not None:
            tail = f"; at the proof's prices it may be worth up to {worth:,.0f} {view.unit} elsewhere"
        return "left-over", f"what is idle holds no further replica{tail}"
    if found is not None:
        ratio = view.problem.speed_ratio_max
        if ratio is not None:
            held = f"to {ratio:g} times its own speed (speed_ratio_max)"
            return "speed-ratio", f"a further replica fits, but as the slowest it may hold the others {held}"
        return "missed", "a further replica fits: this plan is not the best, and a longer solve will use it"
    if worth == 0.0:
        return (
            "not-worth-it",
            "at the proof's prices it adds nothing: other devices bring more for every link and layer",
        )
    return "not-needed", "no better plan with it was found"


def _more_replicas(view: BoundaryView, found: Reached) -> bool:
    """Whether the devices left over hold another replica within every row."""
    for usage in found.minimal:
        together = {c: view.used[c] + n for c, n in enumerate(usage)}
        if all(n <= view.problem.classes[c].num_devices for c, n in together.items()) and all(
            sum(weight * together[c] for c, weight in row.coefficients) <= row.limit + 1e-9
            for row in view.problem.rows
        ):
            return True
    return False


def _limit_reached(view: BoundaryView, found: Reached | None) -> tuple[str, str] | None:
    """A demand of the user that alone keeps another replica out."""
    problem = view.problem
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        return "one-replica", "the one replica asked for is no faster with it"
    if problem.replicas_max is not None and len(view.replicas) >= problem.replicas_max:
        return (
            "replicas-max",
            f"replicas_max {problem.replicas_max} is reached, and the replicas are no faster with it",
        )
    if problem.objective.kind is ObjectiveKind.PRICE:
        return "price", "the tokens/s target is met without it, and it would only add to the price"
    row = next((row for row in problem.rows if row.name == "price"), None)
    if row is not None and found is not None:
        spent = sum(weight * view.used[class_i] for class_i, weight in row.coefficients)
        least = min(
            (
                sum(weight * usage[class_i] for class_i, weight in row.coefficients)
                for usage in found.minimal
                if all(
                    n <= c.num_devices - view.used[c.class_i]
                    for n, c in zip(usage, problem.classes, strict=True)
                )
            ),
            default=None,
        )
        if least is not None and spent + least > row.limit + 1e-9:
            return (
                "price-max",
                f"a further replica would exceed price_max ({spent:.2f} of {row.limit:g} USD/h are spent)",
            )
    return None
