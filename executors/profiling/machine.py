"""What torch reaches on this machine, all of it: sustained rates per dtype, and what drivers say of GPUs."""

from __future__ import annotations

from costmodels.discover import DeviceRates, FrameworkRates
from executors.profiling.matmul import copy_bytes_per_s, sustained_rates
from executors.profiling.nvml import GpuState, gpu_states
from policies.errors import InputError


def framework_rates(*, probe_s: float) -> FrameworkRates:
    """Rates of all processors together and of each GPU, one after another.

    Raises:
        InputError: `no-torch` where it isn't installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "no-torch",
            "torch is not installed here, so its rates can't be measured",
            hint="install the `train` extra, or leave `--torch` out",
        ) from error
    states = {state.index: state for state in gpu_states()}
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return FrameworkRates(
        framework=f"torch {torch.__version__}",
        cpu=_rates(torch.device("cpu"), probe_s, None),
        gpus=tuple(_rates(torch.device("cuda", i), probe_s, states.get(i)) for i in range(num_gpus)),
    )


def _rates(device: object, probe_s: float, state: GpuState | None) -> DeviceRates:
    return DeviceRates(
        flop_per_s=tuple(sustained_rates(device, probe_s=probe_s).items()),
        memory_bytes_per_s=copy_bytes_per_s(device, probe_s=probe_s),
        notes=() if state is None else notes_of(state),
    )


def notes_of(state: GpuState) -> tuple[str, ...]:
    """What a person should know of a GPU before believing its rates."""
    told = [f"driver {state.driver}"]
    if state.power_limit_w is not None:
        told.append(f"power limit {state.power_limit_w:.0f} W")
    if state.max_sm_clock_hz is not None:
        told.append(f"clock up to {state.max_sm_clock_hz / 1e6:.0f} MHz")
    if state.pcie_generation is not None and state.pcie_width is not None:
        told.append(f"PCI Express {state.pcie_generation} x{state.pcie_width}")
    if state.num_nvlinks:
        told.append(f"{state.num_nvlinks} NVLinks active")
    found = [", ".join(told)]
    if state.mig:
        found.append("cut into MIG instances: the rates are those of one instance")
    if state.used_bytes > 0.02 * state.memory_bytes:
        found.append(f"{state.used_bytes / 2**30:.1f} GiB were in use by others while this was measured")
    return tuple(found)
