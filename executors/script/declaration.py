"""What a training script says it can do, read from its source without running it. No torch here.

A script declares it in one constant at its top level:

    ECHELON_CAN = {"pipeline": True, "zero": [0, 1]}

A script without one is taken for plain data parallelism on one stage.
"""

from __future__ import annotations

import ast
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from planner.execution import EXECUTORS
from planner.faults import SHOWN_CHARACTERS, nearest, refused
from policies.errors import Fault, InputError

CONSTANT = "ECHELON_CAN"
START = "executors.script.start"
"""The module that ranks run; it takes their place in the plan and then runs the script."""
FULL, LORA = "full", "lora"
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "executors": EXECUTORS,
    "zero": (0, 1, 2, 3),
    "dtypes": ("bf16", "fp16", "fp32"),
    "methods": (FULL, LORA),
}
"""What may stand in the lists of a declaration; every other key is true or false."""

HINT = f'write it like `{CONSTANT} = {{"pipeline": True, "zero": [0, 1]}}`; docs/scripts.md lists the keys'


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a script can do; the defaults are plain data parallelism on one stage.

    `executors` may start it. With `pipeline` it runs as several stages, cut where the plan cuts. `zero` are
    the levels of sharding it has, `tensor_parallel` says that it splits layers over devices. Stages may
    differ in their number of data-parallel ranks (`unequal_widths`), the ranks of a stage in their rows
    (`uneven_shares`). `recompute` keeps no activations of the layers that the plan names, `tied_embeddings`
    shares the word embedding between first and last stage. `dtypes` and `methods` are what it trains in and
    how. With `reports` it says when it is ready and when a step is done, so that stalls are noticed.
    """

    executors: tuple[str, ...] = EXECUTORS
    pipeline: bool = False
    zero: tuple[int, ...] = (0,)
    tensor_parallel: bool = False
    unequal_widths: bool = False
    uneven_shares: bool = False
    recompute: bool = False
    tied_embeddings: bool = False
    dtypes: tuple[str, ...] = CHOICES["dtypes"]
    methods: tuple[str, ...] = CHOICES["methods"]
    reports: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script as it is launched: its absolute path, its arguments and the folder it starts in.

    `sha256` is that of its text as the declaration `can` was read from it; `line` is where that stands, 0
    where the script has none.
    """

    path: str
    arguments: tuple[str, ...] = ()
    folder: str
    sha256: str
    can: Declaration
    line: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    @property
    def words(self) -> tuple[str, ...]:
        """What follows the run file on a rank's command line, for those who read process lists."""
        return ("--", self.path, *self.arguments)

    @property
    def place(self) -> str:
        """Where it says what it can do."""
        return f"{CONSTANT} in {self.name}:{self.line}" if self.line else f"{self.name} without {CONSTANT}"


def read_script(words: Sequence[str], folder: Path) -> Script:
    """The script that a command line names first, followed by its arguments.

    Args:
        words: what stands behind `--`; the path may be relative to `folder`.
        folder: where the script is to start.

    Raises:
        InputError: `no-such-script`, `bad-script` (no Python), `bad-declaration` with every fault.
    """
    if not words:
        raise InputError("no-such-script", "no script is named", hint="put its path behind `--`")
    path = Path(os.path.normpath(folder / words[0]))
    source = _source(path)
    can, line = _declared(_tree(path, source), str(path))
    return Script(
        path=str(path),
        arguments=tuple(words[1:]),
        folder=str(folder),
        sha256=script_sha256(source),
        can=can,
        line=line,
    )


def script_sha256(source: bytes) -> str:
    """The hash by which a run names its script."""
    return hashlib.sha256(source).hexdigest()


def _source(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
        found = "a folder" if path.is_dir() else "no such file"
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
    fault = Fault(place=str(path), value=found, limit="a Python file that can be read")
    hint = "give the script's path first, then its arguments"
    raise InputError("no-such-script", f"{path}: {found}", faults=[fault], hint=hint)


def _tree(path: Path, source: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # What Python has to say about the script's style, it says when the script runs.
            warnings.simplefilter("ignore")
            return ast.parse(source, filename=str(path))
    except SyntaxError as error:
        line, column, reason = error.lineno or 1, error.offset or 1, error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        line, column, reason = 1, 1, str(error) or "nested too deeply"
    where = f"{path}:{line}:{column}"
    raise InputError(
        "bad-script",
        f"{where}: {reason}",
        faults=[Fault(place=where, value=reason, limit="Python that this interpreter reads")],
        hint="a launch runs Python scripts; start any other program from one",
    )


def _declared(tree: ast.Module, path: str) -> tuple[Declaration, int]:
    """The declaration with its line; the default one and 0 where there is none."""
    stores = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == CONSTANT and not isinstance(node.ctx, ast.Load)
    ]
    if not stores:
        return Declaration(), 0
    values = [value for name, value in map(_assigned, tree.body) if name is stores[0]]
    if len(stores) > 1 or not values:
        node = stores[-1] if len(stores) > 1 else stores[0]
        limit = "one plain assignment at the top level of the script"
        fault = Fault(place=f"{path}:{node.lineno}", value=f"{CONSTANT} set here", limit=limit)
        raise _refused([fault], path)
    return _from_dict(values[0], path), stores[0].lineno


def _assigned(statement: ast.stmt) -> tuple[ast.expr | None, ast.expr]:
    """The one target of a plain assignment and its value; no target for any other statement."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0], statement.value
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return statement.target, statement.value
    return None, ast.Constant(None)


def _from_dict(value: ast.expr, path: str) -> Declaration:
    if not isinstance(value, ast.Dict):
        limit = "a dictionary written out here"
        raise _refused([Fault(place=f"{path}:{value.lineno}", value=_text(value), limit=limit)], path)
    known = {each.name for each in fields(Declaration)}
    faults: list[Fault] = []
    found_values: dict[str, Any] = {}
    for key_node, value_node in zip(value.keys, value.values, strict=True):
        node = key_node or value_node
        key = key_node.value if isinstance(key_node, ast.Constant) else None
        place = f"{path}:{node.lineno}"
        if not isinstance(key, str) or key not in known or key in found_values:
            told = "given twice" if key in found_values else "unknown key"
            told = told if isinstance(key, str) else "a key that is no text"
            hint = nearest(key, known) if isinstance(key, str) else ""
            where = f"{place}: {CONSTANT}[{_text(node)}]"
            faults.append(Fault(place=where, value=told, limit="", hint=hint))
            continue
        found_values[key] = _value(key, value_node, f"{place}: {CONSTANT}[{key!r}]", faults)
    if faults:
        raise _refused(faults, path)
    return Declaration(**found_values)


def _value(key: str, node: ast.expr, place: str, faults: list[Fault]) -> Any:
    """A literal that fits the key; None with a fault recorded where it doesn't."""
    choices = CHOICES.get(key)
    limit = "True or False" if choices is None else f"a list of {', '.join(map(repr, choices))}"
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        faults.append(Fault(place=place, value=_text(node), limit=f"{limit}, written out"))
        return None
    if choices is None:
        good = type(found) is bool
    else:
        # True is 1 to `in`.
        good = isinstance(found, list | tuple | set) and bool(found)
        good = good and all(type(each) is type(choices[0]) and each in choices for each in found)
    if not good:
        faults.append(Fault(place=place, value=_text(node), limit=limit))
        return None
    return found if choices is None else tuple(each for each in choices if each in found)


def _text(node: ast.expr) -> str:
    """The expression on one line, short."""
    try:
        text = ast.unparse(node)
    except RecursionError:
        return "a deeply nested expression"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _refused(faults: list[Fault], path: str) -> InputError:
    error = refused(faults, where=path)
    return InputError("bad-declaration", error.message, faults=error.faults, hint=HINT)
