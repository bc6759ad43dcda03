"""What this machine is: sockets, memory and GPUs as declared by system and driver, and two measurements.

The answer is text for a person to put into a fleet file, each figure with its origin: `measured` just now,
`declared` by the system, or `assumed`. Reading is pure (text in, facts out); only `probe_machine` touches the
machine. Rates of GPUs are not measured here, since that takes a training framework (`FrameworkRates`, filled
in by the executors): without one they come from the device catalog.
"""

from __future__ import annotations

import csv
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np

from costmodels.units import format_bytes_per_s, format_flop_per_s

MATMUL_SIZE = 1536
COPY_BYTES = 256 * 2**20
SMI_TIMEOUT_S = 30.0
SMI_FIELDS = ("name", "memory.total", "pcie.link.gen.max", "pcie.link.width.max")
MIB = 2**20

# Usable bytes per second of one PCI Express lane and direction, by generation: transfer rate times line code
# (8b/10b up to 2, 128b/130b from 3 to 5, 242b/256b flits in 6), PCI-SIG base specifications.
PCIE_LANE_BYTES_PER_S = {1: 250e6, 2: 500e6, 3: 984.6e6, 4: 1969.2e6, 5: 3938.5e6, 6: 7562.5e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """The processors of a machine, as the system declares them."""

    model_name: str
    num_sockets: int
    num_cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU, as its driver declares it; the link is the fastest its slot can do, None when unknown."""

    name: str
    memory_bytes: int
    link_bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRates:
    """Sustained rates of all sockets together, measured."""

    matmul_flop_per_s: float
    copy_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """Sustained rates of one device under a training framework, measured.

    `flop_per_s` holds (dtype, rate) pairs. `notes` are what its driver says of it.
    """

    flop_per_s: tuple[tuple[str, float], ...]
    memory_bytes_per_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkRates:
    """What a training framework reaches: all processors together, and each GPU in the driver's order."""

    framework: str
    cpu: DeviceRates
    gpus: tuple[DeviceRates, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """Everything found out about one machine. `rates` is None when nothing was measured.

    `framework` holds what a training framework measured, where one was asked to.
    """

    host_name: str
    cpu: CpuFacts
    memory_bytes: int
    gpus: tuple[GpuFacts, ...]
    rates: CpuRates | None
    framework: FrameworkRates | None = None


def cpu_from_cpuinfo(text: str, *, fallback_name: str, fallback_cores: int) -> CpuFacts:
    """Processors from the text of Linux' `/proc/cpuinfo`; other systems and ARM lack some lines."""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    sockets = set(re.findall(r"^physical id\s*:\s*(\d+)$", text, flags=re.MULTILINE))
    # Two hardware threads of one core share its arithmetic units, so cores are counted, not threads.
    cores = set(
        re.findall(r"^physical id\s*:\s*(\d+)$(?:\n.+)*?\ncore id\s*:\s*(\d+)$", text, flags=re.MULTILINE)
    )
    return CpuFacts(
        model_name=names[0].strip() if names else fallback_name,
        num_sockets=max(1, len(sockets)),
        num_cores=len(cores) or fallback_cores,
    )


def memory_from_meminfo(text: str) -> int | None:
    """Bytes of main memory from the text of Linux' `/proc/meminfo`."""
    match = re.search(r"^MemTotal:\s*(\d+) kB$", text, flags=re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def gpus_from_smi(text: str) -> tuple[GpuFacts, ...]:
    """GPUs from `nvidia-smi --query-gpu=<SMI_FIELDS> --format=csv,noheader,nounits`; memory there is in MiB.

    A line whose memory is no number (a GPU in a fault state) is left out.
    """
    gpus: list[GpuFacts] = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(SMI_FIELDS):
            continue
        memory_mib, generation, width = (_count(cell) for cell in row[1:])
        if memory_mib is None:
            continue
        lane_bytes_per_s = PCIE_LANE_BYTES_PER_S.get(generation or 0)
        link = lane_bytes_per_s * width if lane_bytes_per_s and width else None
        gpus.append(GpuFacts(name=row[0].strip(), memory_bytes=memory_mib * MIB, link_bytes_per_s=link))
    return tuple(gpus)


def measure_rates(*, probe_s: float, size: int = MATMUL_SIZE, copy_bytes: int = COPY_BYTES) -> CpuRates:
    """Sustained fp32 matrix multiplication and memory copy over all cores, about `probe_s` seconds each."""
    return CpuRates(
        matmul_flop_per_s=measure_matmul_flop_per_s(probe_s=probe_s, size=size),
        copy_bytes_per_s=measure_copy_bytes_per_s(probe_s=probe_s, copy_bytes=copy_bytes),
    )


def measure_matmul_flop_per_s(*, probe_s: float, size: int) -> float:
    """fp32 operations per second of numpy's matrix product; 2 n^3 for an n x n product."""
    rng = np.random.default_rng(0)
    left, right = rng.random((2, size, size), dtype=np.float32)
    out = np.empty_like(left)
    num_rounds, elapsed_s = _repeat(lambda: np.matmul(left, right, out=out), probe_s=probe_s)
    return 2.0 * size**3 * num_rounds / elapsed_s


def measure_copy_bytes_per_s(*, probe_s: float, copy_bytes: int) -> float:
    """Bytes per second read plus written while copying arrays far larger than any cache, one thread per core.

    Counted as STREAM's "copy" does: 2 bytes moved for each byte copied (McCalpin, 1995).
    """
    num_threads = cpu_count() or 1
    source = np.ones(copy_bytes // 8, dtype=np.float64)
    target = np.zeros_like(source)
    chunks = list(zip(np.array_split(target, num_threads), np.array_split(source, num_threads), strict=True))
    with ThreadPoolExecutor(num_threads) as pool:

        def copy_all() -> None:
            for _ in pool.map(lambda chunk: np.copyto(chunk[0], chunk[1]), chunks):
                pass

        num_rounds, elapsed_s = _repeat(copy_all, probe_s=probe_s)
    return 2.0 * source.nbytes * num_rounds / elapsed_s


def probe_machine(*, probe_s: float) -> MachineFacts:
    """Facts about the machine this runs on. With `probe_s` 0 nothing is timed."""
    cores = cpu_count() or 1
    cpu = cpu_from_cpuinfo(
        _read_text("/proc/cpuinfo"),
        fallback_name=platform.processor() or platform.machine() or "cpu",
        fallback_cores=cores,
    )
    limits = [memory_from_meminfo(_read_text("/proc/meminfo")), _cgroup_limit_bytes()]
    known = [limit for limit in limits if limit is not None]
    return MachineFacts(
        host_name=platform.node() or "this-host",
        cpu=cpu,
        memory_bytes=min(known) if known else 0,
        gpus=gpus_from_smi(_smi_text()),
        rates=measure_rates(probe_s=probe_s) if probe_s > 0 else None,
    )


def fleet_fragment(facts: MachineFacts, *, known_types: Collection[str] = ()) -> str:
    """The machine's entry for the list `hosts` of a fleet file, with the origin of each figure as a comment.

    Args:
        facts: what `probe_machine` found.
        known_types: names in the device catalog. A GPU that is none of them gets a line to fill in.
    """
    lines = [
        "# For a fleet file; `site` is yours to fill in, and `tier` where the fleet has more than one.",
        "# measured: timed on this machine; declared: said by its system or driver; assumed: check it.",
        "hosts:",
        f"  - name: {plain_name(facts.host_name)}",
        "    site: my-site",
    ]
    links = [gpu.link_bytes_per_s for gpu in facts.gpus if gpu.link_bytes_per_s is not None]
    if links:
        rate = format_bytes_per_s(min(links))
        lines.append(f"    link: {rate}  # assumed: PCI Express maximum of the slot; NVLink is faster")
    lines.append("    devices:")
    for gpu in dict.fromkeys(facts.gpus):
        rates = _gpu_rates(facts, gpu)
        lines += _gpu_lines(gpu, count=facts.gpus.count(gpu), known_types=known_types, rates=rates)
    return "\n".join([*lines, *_cpu_lines(facts)]) + "\n"


def catalog_type(gpu: GpuFacts, known_types: Collection[str]) -> str | None:
    """The longest catalog name whose words all occur in the driver's name, or None.

    A size such as `80GB` need not stand in the driver's name, but must agree with the memory within 10 %.
    """
    words = set(_words(gpu.name))
    memory_gb = gpu.memory_bytes / 1e9
    fitting: list[str] = []
    for name in known_types:
        wanted = _words(name)
        sizes = [int(word[:-2]) for word in wanted if re.fullmatch(r"\d+gb", word)]
        others = [word for word in wanted if not re.fullmatch(r"\d+gb", word)]
        if others and words.issuperset(others) and all(abs(size - memory_gb) <= 0.1 * size for size in sizes):
            fitting.append(name)
    return max(fitting, key=lambda name: (len(_words(name)), name), default=None)


def plain_name(text: str) -> str:
    """`text` as a name a fleet file accepts: letters, digits, `.`, `_`, `-`, at most 64."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].rstrip("-._") or "unnamed"


def _gpu_rates(facts: MachineFacts, gpu: GpuFacts) -> DeviceRates | None:
    """The measured rates of the first GPU of this kind; None where none was measured."""
    measured = facts.framework.gpus if facts.framework is not None else ()
    position = facts.gpus.index(gpu)
    return measured[position] if position < len(measured) else None


def _rate_lines(rates: DeviceRates, how: str) -> list[str]:
    by_dtype = ", ".join(f"{dtype}: {format_flop_per_s(rate)}" for dtype, rate in rates.flop_per_s)
    return [
        f"        rate: {{{by_dtype}}}  # measured: {how}",
        f"        memory_bandwidth: {format_bytes_per_s(rates.memory_bytes_per_s)}  # measured: copies",
        *(f"        # declared: {note}" for note in rates.notes),
    ]


def _gpu_lines(
    gpu: GpuFacts, *, count: int, known_types: Collection[str], rates: DeviceRates | None
) -> list[str]:
    name = catalog_type(gpu, known_types)
    lines = [
        f"      - type: {name or plain_name(gpu.name)}  # declared: {gpu.name}",
        f"        count: {count}",
        f"        memory: {gpu.memory_bytes // MIB} MiB  # declared: nvidia-smi",
    ]
    if rates is not None:
        lines += _rate_lines(rates, "matrix products of torch")
    elif name is None:
        lines += [
            "        # not in the device catalog: fill in rates and bandwidth from its data sheet",
            "        # rate: {bf16: 100 TFLOP/s, fp32: 20 TFLOP/s}",
            "        # memory_bandwidth: 1000 GB/s",
        ]
    return lines


def _cpu_lines(facts: MachineFacts) -> list[str]:
    sockets = facts.cpu.num_sockets
    lines = [
        f"      - type: {plain_name(facts.cpu.model_name)}  # declared: {facts.cpu.num_cores} cores in all",
        f"        count: {sockets}",
        f"        memory: {facts.memory_bytes // sockets // MIB} MiB  # declared: main memory per socket",
    ]
    if facts.framework is not None:
        whole = facts.framework.cpu
        one = DeviceRates(
            flop_per_s=tuple((dtype, rate / sockets) for dtype, rate in whole.flop_per_s),
            memory_bytes_per_s=whole.memory_bytes_per_s / sockets,
        )
        return [*lines, *_rate_lines(one, "matrix products of torch, all cores")]
    if facts.rates is None:
        return [*lines, "        # rate and memory_bandwidth were not measured"]
    flop_per_s = format_flop_per_s(facts.rates.matmul_flop_per_s / sockets)
    bytes_per_s = format_bytes_per_s(facts.rates.copy_bytes_per_s / sockets)
    return [
        *lines,
        f"        rate: {{fp32: {flop_per_s}}}  # measured: matrix product of size {MATMUL_SIZE}, all cores",
        f"        memory_bandwidth: {bytes_per_s}  # measured: copy of {COPY_BYTES // MIB} MiB, all cores",
    ]


def _repeat(work: Callable[[], object], *, probe_s: float) -> tuple[int, float]:
    """Rounds done and seconds taken, for at least `probe_s` seconds after one round that is not counted."""
    work()
    num_rounds = 0
    start_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - start_s) < probe_s or num_rounds == 0:
        work()
        num_rounds += 1
    return num_rounds, max(elapsed_s, 1e-9)


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r" *[0-9]{1,9} *", text) else None


def _words(text: str) -> Sequence[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cgroup_limit_bytes() -> int | None:
    """The container's memory limit (cgroup version 2, then 1), or None when there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read_text(path).strip()
        # Version 1 writes a number near 2^63 for "no limit".
        if re.fullmatch(r"[0-9]{1,20}", text) and int(text) < 2**60:
            return int(text)
    return None


def _smi_text() -> str:
    """What `nvidia-smi` says, or nothing where it is absent, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    argv = [program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
