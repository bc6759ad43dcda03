"""What `echelon discover` writes is accepted where it belongs: in a fleet file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodels.catalog import device_names
from costmodels.discover import CpuFacts, CpuRates, GpuFacts, MachineFacts, catalog_type, fleet_fragment
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
