"""What this process holds: resident memory on a processor, memory in use on a GPU."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def held_bytes(device: Any) -> int:
    """Bytes now. Of a GPU everything in use counts, whoever holds it: measure on an idle one."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    try:
        return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return _max_rss_bytes()


def peak_bytes(device: Any) -> int:
    """The most since `forget_peak`; of a GPU with what its driver and libraries hold."""
    if device.type == "cuda":
        import torch

        beside = held_bytes(device) - torch.cuda.memory_reserved(device)
        return int(torch.cuda.max_memory_reserved(device) + beside)
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return _max_rss_bytes() if line is None else int(line.split()[1]) * 1024


def forget_peak(device: Any) -> None:
    """Count the peak anew where the system can: the value 5 of clear_refs, man page proc(5)."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return


def _max_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
