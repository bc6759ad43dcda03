"""What `echelon discover` writes is accepted where it belongs: in a fleet file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from costmodels.catalog import device_names
from costmodels.discover import (
    CpuFacts,
    CpuRates,
    DeviceRates,
    FrameworkRates,
    GpuFacts,
    MachineFacts,
    catalog_type,
    fleet_fragment,
)
from executors.profiling.machine import notes_of
from executors.profiling.nvml import GpuState
from planner.files import load_fleet

HEAD = """\
schema: echelon/fleet/1
name: mine
tiers: [open]
boundaries: [home]
sites:
  - {name: my-site, boundary: home, fabric: 10 Gbit/s}
"""


def test_this_machine_joins_a_fleet(cli: Callable[..., Any]) -> None:
    assert cli("discover", "--probe-time", "0.01s", "-o", "entry.yaml").code == 0
    path = Path("fleet.yaml")
    path.write_text(HEAD + Path("entry.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    fleet = load_fleet(path)
    assert fleet.hosts
    assert all(device.memory_bytes > 0 and device.memory_bytes_per_s > 0 for device in fleet.devices)
    assert all(device.rate_flop_per_s("fp32") > 0 for device in fleet.devices)


def test_a_gpu_of_the_catalog_needs_nothing_filled_in(tmp_path: Path) -> None:
    gpu = GpuFacts(name="NVIDIA A100-SXM4-80GB", memory_bytes=81920 * 2**20, link_bytes_per_s=31.5e9)
    assert catalog_type(gpu, device_names()) is not None
    two = MachineFacts(
        host_name="two",
        cpu=CpuFacts(model_name="Maker X", num_sockets=2, num_cores=8),
        memory_bytes=2**36,
        gpus=(gpu, gpu),
        rates=CpuRates(matmul_flop_per_s=1e12, copy_bytes_per_s=1e11),
    )
    path = tmp_path / "fleet.yaml"
    path.write_text(HEAD + fleet_fragment(two, known_types=device_names()), encoding="utf-8")
    devices = [device for device in load_fleet(path).devices if device.type_name.startswith("A100")]
    assert [device.memory_bytes for device in devices] == [81920 * 2**20] * 2


def test_rates_of_torch_join_a_fleet(cli: Callable[..., Any]) -> None:
    pytest.importorskip("torch")
    assert cli("discover", "--torch", "--probe-time", "0.002s", "-o", "entry.yaml").code == 0
    entry = Path("entry.yaml").read_text(encoding="utf-8")
    assert "# measured: matrix products of torch, all cores" in entry
    path = Path("fleet.yaml")
    path.write_text(HEAD + entry, encoding="utf-8")
    device = load_fleet(path).devices[-1]
    assert {dtype for dtype, _ in device.flop_per_s} == {"fp32", "bf16"}
    assert device.memory_bytes_per_s > 0


def test_measured_gpus_need_no_catalog(tmp_path: Path) -> None:
    gpu = GpuFacts(name="Maker Z1", memory_bytes=2**36, link_bytes_per_s=None)
    rates = DeviceRates(
        flop_per_s=(("bf16", 4e14), ("fp32", 5e13)), memory_bytes_per_s=3e12, notes=("driver 1, slow",)
    )
    machine = MachineFacts(
        host_name="one",
        cpu=CpuFacts(model_name="Maker X", num_sockets=1, num_cores=8),
        memory_bytes=2**36,
        gpus=(gpu, gpu),
        rates=None,
        framework=FrameworkRates(
            framework="torch",
            cpu=replace(rates, notes=()),
            gpus=(rates, replace(rates, memory_bytes_per_s=1e9)),
        ),
    )
    text = fleet_fragment(machine, known_types=device_names())
    assert "# declared: driver 1, slow" in text
    path = tmp_path / "fleet.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    devices = [device for device in load_fleet(path).devices if device.type_name == "Maker-Z1"]
    assert [device.rate_flop_per_s("bf16") for device in devices] == [4e14] * 2
    assert devices[0].memory_bytes_per_s == 3e12


def test_without_torch_it_says_so(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = cli("discover", "--torch", "--probe-time", "0.002s")
    assert done.code == 3
    assert "error[no-torch]" in done.err
    assert cli("discover", "--probe-time", "0s").code == 0


def test_notes_say_what_spoils_a_rate() -> None:
    state = GpuState(
        index=0,
        name="Maker Z1",
        memory_bytes=2**36,
        used_bytes=2**33,
        power_limit_w=300.0,
        sm_clock_hz=None,
        max_sm_clock_hz=1.4e9,
        pcie_generation=4,
        pcie_width=16,
        num_nvlinks=2,
        mig=True,
        driver="550",
    )
    first, *more = notes_of(state)
    assert first == "driver 550, power limit 300 W, clock up to 1400 MHz, PCI Express 4 x16, 2 NVLinks active"
    assert len(more) == 2
