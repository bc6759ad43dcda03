"""How long this thread was ready to run while something else had its core. Linux; elsewhere nothing is known.

The kernel counts time on the run queue (`/proc/thread-self/schedstat`, second figure, nanoseconds). A quota
of the own control group keeps threads waiting there too: that is no disturbance but how fast the core
is, so it is taken off again (`cpu.stat`: `throttled_usec` of cgroup version 2, nanoseconds of
`throttled_time` in version 1). Where the group's statistics can't be read, nothing counts as a disturbance:
neither could be told from the other.
"""

from __future__ import annotations

from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


class Waiting:
    """Seconds lost to others since the last question, for the thread that asks."""

    def __init__(self, schedstat: Path = SCHEDSTAT, cpu_stat: Path | None = None) -> None:
        self._schedstat = schedstat
        self._cpu_stat = cpu_stat if cpu_stat is not None else own_cpu_stat()
        self._before = self._now()

    def taken_s(self) -> float:
        """Seconds on the run queue that no quota explains; 0 where the system doesn't tell."""
        before, self._before = self._before, self._now()
        if before is None or self._before is None:
            return 0.0
        queued_s, throttled_s = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, queued_s - throttled_s)

    def _now(self) -> tuple[float, float] | None:
        stopped_s = throttled_s(self._cpu_stat)
        try:
            queued_s = int(self._schedstat.read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return None
        return None if stopped_s is None else (queued_s, stopped_s)


def own_cpu_stat() -> Path | None:
    """The statistics of this process's control group; lines of its list are `number:controllers:path`."""
    try:
        lines = OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    first = next((names for names in paths if "cpu" in names.split(",")), None)
    if first is not None:
        return GROUPS / first / paths[first] / "cpu.stat"
    return GROUPS / paths[""] / "cpu.stat" if "" in paths else None


def throttled_s(cpu_stat: Path | None) -> float | None:
    """Seconds for which the control group's threads were kept from running by its quota; None: not told."""
    if cpu_stat is None:
        return None
    try:
        lines = cpu_stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split()[:2] for line in lines if len(line.split()) == 2)
    return int(values.get("throttled_usec", 0)) / 1e6 + int(values.get("throttled_time", 0)) / 1e9
