"""What the driver's management library says of the GPUs here; nothing without it.

Reads only: settings of the accelerator stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU. Figures its driver doesn't tell are None; `mig` says whether it is cut into instances."""

    index: int
    name: str
    memory_bytes: int
    used_bytes: int
    power_limit_w: float | None
    sm_clock_hz: float | None
    max_sm_clock_hz: float | None
    pcie_generation: int | None
    pcie_width: int | None
    num_nvlinks: int | None
    mig: bool | None
    driver: str


def gpu_states() -> tuple[GpuState, ...]:
    """The GPUs that NVML knows; none where `pynvml` or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return tuple(_state(pynvml, i, driver) for i in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _state(pynvml: Any, index: int, driver: str) -> GpuState:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)

    def told(name: str, *arguments: Any) -> Any:
        try:
            return getattr(pynvml, name)(handle, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    power_mw = told("nvmlDeviceGetPowerManagementLimit")
    clocks = [
        told(name, pynvml.NVML_CLOCK_SM) for name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo")
    ]
    mig = told("nvmlDeviceGetMigMode")
    return GpuState(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        power_limit_w=None if power_mw is None else power_mw / 1e3,
        sm_clock_hz=None if clocks[0] is None else clocks[0] * 1e6,
        max_sm_clock_hz=None if clocks[1] is None else clocks[1] * 1e6,
        pcie_generation=told("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width=told("nvmlDeviceGetCurrPcieLinkWidth"),
        num_nvlinks=_num_active(pynvml, told),
        mig=None if mig is None else bool(mig[0]),
        driver=driver,
    )


def _num_active(pynvml: Any, told: Any) -> int | None:
    states = [told("nvmlDeviceGetNvLinkState", i) for i in range(getattr(pynvml, "NVML_NVLINK_MAX_LINKS", 0))]
    known = [state for state in states if state is not None]
    return sum(bool(state) for state in known) if known else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
