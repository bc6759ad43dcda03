"""An explanation as text."""

from __future__ import annotations

from planner.explain.answer import Explanation

INDENT = "  "


def explanation_text(explanation: Explanation) -> str:
    """The headline, then each part under its title; parts of several boundaries carry the boundary's name."""
    lines = [explanation.headline]
    boundaries = {section.name.split(".")[0] for section in explanation.sections if "." in section.name}
    for section in explanation.sections:
        owner = f"{section.name.split('.')[0]}: " if len(boundaries) > 1 else ""
        lines += ["", f"{owner}{section.title}", *(INDENT + line for line in section.lines)]
    for conflict in explanation.conflicts:
        lines += ["", f"{conflict.boundary}: one method finds"]
        lines += [INDENT + line for line in conflict.because]
    if explanation.notes:
        lines += ["", *explanation.notes]
    return "\n".join(lines)
