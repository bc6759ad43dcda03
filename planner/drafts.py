"""A first fleet file from a DeepSpeed hostfile, or from what Slurm prints about its nodes.

Neither says everything a fleet file needs. What is missing is filled in and marked `# assumed`, so that the
draft loads at once and every guess can be found. Standard library and the device catalog only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from costmodels.catalog import device_names, device_type
from planner.faults import refused, show
from planner.hostnames import PatternError, compress_names, expand_pattern
from policies.errors import Fault, InputError

SLOTS_MAX = 64
ASSUMED_GPU = "A100-80GB"
ASSUMED_CPU = "CPU-Xeon-6248"
ASSUMED_CPU_MIB = 65_536

_HOSTFILE_LINE = re.compile(r"(\S+)\s+slots=([0-9]{1,4})")
_GRES = re.compile(r"gpu(?::([A-Za-z0-9._-]+))??(?::([0-9]{1,4}))?(?:\([^)]*\))?")
_FIELD = re.compile(r"(?:^|\s)([A-Za-z:/_]+)=(.*?)(?=\s+[A-Za-z:/_]+=|$)")
_BRANDS = ("nvidia", "geforce", "quadro", "tesla", "rtx", "amd", "intel", "instinct")
_VARIANT = re.compile(r"[0-9]+gb|sxm[0-9]?|pcie|nvl|hbm[0-9]e?")
_GONE_STATES = ("DOWN", "DRAIN", "FAIL", "FUTURE", "NOT_RESPONDING", "POWERED_DOWN", "UNKNOWN")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftDevices:
    """Equal devices of a host; `notes` say what is assumed, `memory_mib` is None for the catalog's."""

    type_name: str
    count: int
    memory_mib: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftHost:
    """A host as it was found; `gone` is the state that keeps it out of the draft, or empty."""

    name: str
    devices: tuple[DraftDevices, ...]
    gone: str = ""


def hosts_from_hostfile(text: str, *, place: str, device: str | None = None) -> list[DraftHost]:
    """Hosts of a DeepSpeed hostfile: `name slots=N`, comments after `#`.

    A hostfile does not say what its slots are: `device` names the catalog type, else one is assumed.

    Raises:
        InputError: `bad-input`, with every line that is no host, host given twice, and impossible slot count.
    """
    note = () if device else (f"assumed: the hostfile does not say which; {ASSUMED_GPU} stands in",)
    faults: list[Fault] = []
    hosts: dict[str, DraftHost] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#", 1)[0].strip()
        if not content:
            continue
        at = f"{place}:{number}"
        match = _HOSTFILE_LINE.fullmatch(content)
        name = match[1] if match else ""
        if match is None or not _is_host_name(name):
            faults.append(Fault(place=at, value=show(content), limit="`hostname slots=N`"))
        elif name in hosts:
            faults.append(Fault(place=at, value=f"`{name}` again", limit="each host once"))
        elif not 1 <= int(match[2]) <= SLOTS_MAX:
            faults.append(Fault(place=at, value=f"slots={match[2]}", limit=f"1 to {SLOTS_MAX} slots"))
        else:
            devices = DraftDevices(type_name=device or ASSUMED_GPU, count=int(match[2]), notes=note)
            hosts[name] = DraftHost(name=name, devices=(devices,))
    return _found(hosts, faults, place, "a line such as `gpu-1 slots=4`")


def hosts_from_slurm(text: str, *, place: str, device: str | None = None) -> list[DraftHost]:
    """Hosts of `scontrol show nodes` (also `--oneliner`), or of `sinfo -N -o '%N %c %m %G %t'` with header.

    Raises:
        InputError: `bad-input`, with every node that can't be read.
    """
    faults: list[Fault] = []
    records = _scontrol_records(text) if "NodeName=" in text else _sinfo_records(text, place, faults)
    hosts: dict[str, DraftHost] = {}
    for number, record in records:
        at = f"{place}:{number}"
        try:
            names = expand_pattern(record.get("NodeName", ""))
        except PatternError as error:
            value = show(record.get("NodeName", ""))
            faults.append(Fault(place=at, value=value, limit="a node name", hint=str(error)))
            continue
        devices = _slurm_devices(record, at, device, faults)
        gone = next((s for s in _GONE_STATES if s in record.get("State", "").upper()), "")
        # One line per partition: the same node comes several times.
        hosts |= {
            name: DraftHost(name=name, devices=devices, gone=gone) for name in names if name not in hosts
        }
    return _found(hosts, faults, place, "the output of `scontrol show nodes` or of `sinfo -N`")


def render_fleet(hosts: Sequence[DraftHost], *, name: str, origin: str) -> str:
    """A fleet file for the hosts; equal hosts share one pattern. `origin` says where they were found."""
    groups: dict[tuple[DraftDevices, ...], list[str]] = {}
    for host in hosts:
        if not host.gone:
            groups.setdefault(host.devices, []).append(host.name)
    lines = [
        f"# Drafted by `echelon init` from {origin}.",
        "# `assumed` marks what was not said there: check these before relying on a plan.",
        "schema: echelon/fleet/1",
        f"name: {name}",
        "tiers: [internal]  # assumed: one clearance for all; list them from the lowest to the highest",
        "boundaries: [home]  # assumed: one organisation",
        "sites:",
        "  - name: main  # assumed: all hosts stand in one place",
        "    boundary: home",
        "    fabric: 25 Gbit/s  # assumed: measure it between two hosts",
        "    latency: 20 us  # assumed",
        "hosts:",
    ]
    for devices, names in groups.items():
        for pattern in compress_names(names):
            lines += _host_lines(pattern, devices)
    gone = [f"{host.name} ({host.gone})" for host in hosts if host.gone]
    if gone:
        lines.append(f"# left out, since not in service: {', '.join(gone)}")
    return "\n".join(lines) + "\n"


def _host_lines(pattern: str, devices: Iterable[DraftDevices]) -> list[str]:
    lines = [
        f"  - name: {pattern}",
        "    site: main",
        "    tier: internal",
        "    price: 0 USD/h  # assumed: per device",
        "    devices:",
    ]
    for group in devices:
        notes = f"  # {'; '.join(group.notes)}" if group.notes else ""
        lines.append(f"      - type: {group.type_name}{notes}")
        lines.append(f"        count: {group.count}")
        if group.memory_mib is not None:
            lines.append(f"        memory: {group.memory_mib} MiB")
    return lines


def _scontrol_records(text: str) -> list[tuple[int, Mapping[str, str]]]:
    """Line number and fields of each node; a node begins at `NodeName=` and takes one line or several."""
    records: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("NodeName="):
            records.append((number, {}))
        if records:
            records[-1][1].update({key: value.strip() for key, value in _FIELD.findall(line.strip())})
    return list(records)


_SINFO_COLUMNS = {
    "NODELIST": "NodeName",
    "HOSTNAMES": "NodeName",
    "CPUS": "CPUTot",
    "MEMORY": "RealMemory",
    "GRES": "Gres",
    "STATE": "State",
    "SOCKETS": "Sockets",
    "AVAIL_FEATURES": "AvailableFeatures",
    "ACTIVE_FEATURES": "AvailableFeatures",
    "S:C:T": "S:C:T",
}


def _sinfo_records(text: str, place: str, faults: list[Fault]) -> list[tuple[int, Mapping[str, str]]]:
    """Line number and fields of each row under the header line that names NODELIST."""
    header: list[str] = []
    records: list[tuple[int, Mapping[str, str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not header:
            header = cells if {"NODELIST", "HOSTNAMES"} & set(cells) else []
            continue
        if not cells:
            continue
        if len(cells) < len(header):
            limit = f"{len(header)} columns as in the header"
            faults.append(Fault(place=f"{place}:{number}", value=f"{len(cells)} columns", limit=limit))
            continue
        # A last column such as REASON may hold several words; the others do not.
        record = {
            _SINFO_COLUMNS[title]: cell
            for title, cell in zip(header, cells, strict=False)
            if title in _SINFO_COLUMNS
        }
        if "S:C:T" in record:
            record["Sockets"] = record["S:C:T"].split(":")[0]
        records.append((number, record))
    return records


def _slurm_devices(
    record: Mapping[str, str], at: str, device: str | None, faults: list[Fault]
) -> tuple[DraftDevices, ...]:
    """GPUs by the node's GRES, or its CPU sockets when it has none."""
    groups: list[DraftDevices] = []
    for item in _split_gres(record.get("Gres", "")):
        match = _GRES.fullmatch(item)
        if match is None or int(match[2] or 1) > SLOTS_MAX:
            limit = f"`gpu:TYPE:COUNT` with at most {SLOTS_MAX}"
            faults.append(Fault(place=f"{at}: Gres", value=show(item), limit=limit))
            continue
        count = int(match[2] or 1)
        if count:
            type_name, notes = (device, ()) if device else catalog_guess(match[1] or "")
            groups.append(DraftDevices(type_name=type_name, count=count, notes=notes))
    return tuple(groups) or (_sockets(record),)


def _split_gres(text: str) -> list[str]:
    """The GPU items of `gpu:a100:4(S:0-1),gpu:t4:2`; commas inside brackets do not split."""
    items = re.findall(r"(?:[^,()]|\([^)]*\))+", text)
    return [item.strip() for item in items if item.strip().startswith("gpu")]


def _sockets(record: Mapping[str, str]) -> DraftDevices:
    """The processors of a node without GPUs, with the memory that Slurm gives out (in MiB)."""
    sockets = int(s) if (s := record.get("Sockets", "")).isdigit() and 1 <= int(s) <= SLOTS_MAX else 1
    memory = re.match(r"[0-9]{1,9}", record.get("RealMemory", ""))
    notes = [f"assumed: Slurm does not say which processor; {ASSUMED_CPU} stands in"]
    if "Sockets" not in record:
        notes.append("assumed: one socket")
    memory_mib = int(memory[0]) // sockets if memory else 0
    if not memory_mib:
        memory_mib = ASSUMED_CPU_MIB
        notes.append("assumed: its memory")
    return DraftDevices(type_name=ASSUMED_CPU, count=sockets, memory_mib=memory_mib, notes=tuple(notes))


def catalog_guess(found: str) -> tuple[str, tuple[str, ...]]:
    """The catalog name meant by a GRES type such as `nvidia_a100-sxm4-80gb`, with notes on what is assumed.

    A catalog name fits when its model words occur in the type. Of those that share most words with it, the
    one with the least memory and the slowest links is taken, so that a plan made from the draft fits anyway.
    """
    with suppress(InputError):
        return device_type(found).name, ()
    words = _words(found)
    fitting = [name for name in sorted(device_names()) if _is_model(name, words)]
    if not fitting:
        told = f"`{found}`" if found else "no type"
        return ASSUMED_GPU, (f"assumed: Slurm says {told}; {ASSUMED_GPU} stands in",)
    shared = {name: len(set(_words(name)) & set(words)) for name in fitting}
    variants = [name for name in fitting if shared[name] == max(shared.values())]
    best = min(variants, key=_least)
    others = [name for name in variants if name != best]
    if not others:
        return best, ()
    return best, (f"assumed: Slurm says `{found}`, which may also be {' or '.join(others)}",)


def _least(name: str) -> tuple[float, float, str]:
    """Order in which variants are preferred."""
    known = device_type(name)
    return known.memory_bytes, known.device_link_bytes_per_s, name


def _is_model(name: str, words: Sequence[str]) -> bool:
    """Whether the words of a GRES type name this model; `rtx3090` is as good as `rtx_3090`."""
    model = [word for word in _words(name) if word not in _BRANDS and not _VARIANT.fullmatch(word)]
    return bool(model) and (set(model) <= set(words) or any("".join(model) == _bare(word) for word in words))


def _bare(word: str) -> str:
    """A word without a brand before it."""
    return next((word.removeprefix(brand) for brand in _BRANDS if word.startswith(brand)), word)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _is_host_name(name: str) -> bool:
    try:
        return "[" not in name and expand_pattern(name) == [name]
    except PatternError:
        return False


def _found(
    hosts: Mapping[str, DraftHost], faults: Sequence[Fault], place: str, expected: str
) -> list[DraftHost]:
    """The hosts, unless something is wrong or nothing was found."""
    listed = list(faults)
    if not hosts and not listed:
        listed.append(Fault(place=place, value="no host in it", limit=expected))
    elif hosts and all(host.gone for host in hosts.values()):
        listed.append(Fault(place=place, value="no host in service", limit="at least one host in service"))
    if listed:
        raise refused(listed, where=place)
    return list(hosts.values())


def require_device(name: str) -> None:
    """Refuse a device type that the catalog does not have.

    Raises:
        InputError: the catalog's own error.
    """
    device_type(name)


DRAFTS: Mapping[str, Callable[..., list[DraftHost]]] = {
    "hostfile": hosts_from_hostfile,
    "slurm": hosts_from_slurm,
}
