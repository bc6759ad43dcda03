"""How a fault is worded: values short and harmless, the nearest known name, and one error for all faults."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from policies.errors import Fault, InputError

_PLACE = re.compile(r"(.+?)(?::([0-9]+))?(?:: .*)?", re.DOTALL)
SHOWN_CHARACTERS = 60
LISTED_NAMES = 12


def show(value: object) -> str:
    """A value as a message may carry it: short, on one line, without control characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Cut before quoting, so that a text of megabytes is never copied.
        text = repr(value[: SHOWN_CHARACTERS + 1])
    elif isinstance(value, Mapping):
        text = "a mapping" if value else "an empty mapping"
    elif isinstance(value, list | tuple):
        text = f"a list of {len(value)}" if value else "an empty list"
    elif isinstance(value, int) and value.bit_length() > 200:
        text = "a whole number of more than 60 digits"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to `word`, or lists the known ones."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word[:100], names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    if not names:
        return ""
    listed = ", ".join(f"`{name}`" for name in names[:LISTED_NAMES])
    return f"known: {listed}" + (
        f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    )


def refused(faults: Iterable[Fault], *, where: str = "") -> InputError:
    """One error that lists every fault once, by file and line; `where` replaces the names of the files."""
    found = {fault: _file_and_line(fault) for fault in faults}
    files = list(dict.fromkeys(file for file, _ in found.values()))
    listed = sorted(found, key=lambda fault: (files.index(found[fault][0]), found[fault][1]))
    number = "1 fault" if len(listed) == 1 else f"{len(listed)} faults"
    return InputError("bad-input", f"{number} in {where or ', '.join(files)}", faults=listed)


def _file_and_line(fault: Fault) -> tuple[str, int]:
    """`fleet.yaml` and 12 for the place `fleet.yaml:12: hosts[3].memory`; line 0 where there is none."""
    match = _PLACE.fullmatch(fault.place)
    return (match[1], int(match[2] or 0)) if match else (fault.place, 0)
