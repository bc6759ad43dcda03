"""What one more of everything is worth, from the multipliers of the certificate.

With a factor f and a multiplier mu_r per capacity row, the proof's bound is

    f (sum_r mu_r limit_r + rho R) - nu k        (weak duality, docs/certificate.md).

So one more device of a class moves it by f times the multipliers of the rows that count the device; where
price is minimised, the bound falls by the multipliers themselves. That is an upper estimate for replicas that
today's devices can form: what only a further device makes possible is not in it. How far the bound is from
the plan is told beside.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.explain.answer import Section
from planner.explain.view import BoundaryView
from planner.problem import CapacityRow, DeviceClass

NEXT_TOLD = 6


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Worth of one more unit per row and per replica, in the boundary's unit; `bound` is what they prove."""

    by_row: dict[str, float]
    replica: float
    bound: float

    def device(self, view: BoundaryView, device_class: DeviceClass) -> float:
        """Worth of one more device of a class: its own row and its pool's."""
        return sum(
            self.by_row.get(row.name, 0.0)
            for row in view.problem.rows
            if row.name != "price" and any(class_i == device_class.class_i for class_i, _ in row.coefficients)
        )


def prices_of(view: BoundaryView) -> Prices | None:
    """The prices in the plan's certificate; None where its proof has none."""
    multipliers = view.proof.get("prices")
    factor = float(view.proof.get("factor", 0.0))
    if not isinstance(multipliers, dict) or factor <= 0.0:
        return None
    scale = 1.0 if view.minimises else factor
    by_row = {name: scale * float(mu) for name, mu in multipliers.items()}
    rho, nu = float(view.proof.get("rho", 0.0)), float(view.proof.get("nu", 0.0))
    room = sum(by_row.get(row.name, 0.0) * row.limit for row in view.problem.rows)
    replicas = scale * rho * (view.problem.replicas_max or 0)
    if view.minimises:
        bound = (view.problem.objective.tokens_per_s_min or 0.0) / factor - room - replicas
    else:
        bound = room + replicas - nu * view.problem.replicas_min
    return Prices(by_row=by_row, replica=scale * rho, bound=bound)


def binding_section(view: BoundaryView, value: float) -> Section:
    """Which limits hold the plan back, the dearest first."""
    prices = prices_of(view)
    lines: list[str] = []
    rows = []
    for row in view.problem.rows:
        used = sum(weight * view.used[class_i] for class_i, weight in row.coefficients)
        worth = 0.0 if prices is None else prices.by_row.get(row.name, 0.0)
        rows.append((worth * row.limit, worth, used, row))
    for _, worth, used, row in sorted(rows, key=lambda item: -item[0]):
        if worth > 0.0:
            lines.append(_row_line(view, row, used, worth))
    if prices is not None and prices.replica > 0.0:
        limit = view.problem.replicas_max
        lines.append(f"replicas_max {limit}: one more is worth up to {_amount(view, prices.replica)}")
    if prices is None:
        lines.append("the certificate has no prices: --deep finds what each limit costs by solving again")
    else:
        apart = abs(prices.bound - value)
        if apart > 1e-6 * abs(value):
            beside = f"the {_amount(view, apart)} between that and the plan come on top of each figure"
            lines.append(f"these prices prove {_amount(view, prices.bound)}; {beside}")
    data = [
        {"row": row.name, "text": view.row_text(row), "used": used, "limit": row.limit, "worth": worth}
        for _, worth, used, row in rows
    ]
    return Section(name=f"{view.problem.name}.binding", title="what binds", lines=tuple(lines), data=data)


def _row_line(view: BoundaryView, row: CapacityRow, used: float, worth: float) -> str:
    state = "all" if used >= row.limit * (1.0 - 1e-9) else f"{used:g} of"
    more = f"one more is worth up to {_amount(view, worth)}"
    return f"{view.row_text(row)}: {state} {row.limit:g} in use, {more}"


def next_section(view: BoundaryView) -> Section | None:
    """Which device to add next, by what one more would bring and by what that costs."""
    prices = prices_of(view)
    if prices is None:
        return None
    ranked = ranked_classes(view, prices)
    lines = []
    for worth, device_class in ranked[:NEXT_TOLD]:
        usd = device_class.device.usd_per_hour
        per_usd = f", {worth / usd:,.0f} {view.unit} per USD/h" if usd > 0.0 and not view.minimises else ""
        host = f"; they come {device_class.host_size} to a host" if device_class.host_size > 1 else ""
        lines.append(f"{view.class_text(device_class)}: up to {_amount(view, worth)} each{per_usd}{host}")
    if not lines:
        lines.append("no further device of the kinds there are would help, as far as these prices tell")
    data = [
        {
            "class": device_class.class_i,
            "type": device_class.device.type_name,
            "site": view.problem.site_ids[device_class.site_i],
            "tier": view.tier(device_class.device.tier_i),
            "host_size": device_class.host_size,
            "worth_each": worth,
            "usd_per_hour": device_class.device.usd_per_hour,
        }
        for worth, device_class in ranked
    ]
    return Section(name=f"{view.problem.name}.next", title="what to add next", lines=tuple(lines), data=data)


def ranked_classes(view: BoundaryView, prices: Prices) -> list[tuple[float, DeviceClass]]:
    """Classes of which one more is worth anything, the best first."""
    worths = [(prices.device(view, device_class), device_class) for device_class in view.problem.classes]
    return sorted((item for item in worths if item[0] > 0.0), key=lambda item: (-item[0], item[1].class_i))


def _amount(view: BoundaryView, value: float) -> str:
    return f"{value:,.2f} USD/h" if view.minimises else f"{value:,.0f} {view.unit}"
