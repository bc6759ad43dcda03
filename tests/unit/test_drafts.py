"""Fleet drafts from a hostfile and from Slurm: what was said is kept, what was not is marked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from costmodels.fleet import Fleet
from planner.drafts import DRAFTS, catalog_guess, hosts_from_hostfile, hosts_from_slurm, render_fleet
from planner.examples.bundled import example_folder
from planner.files import load_fleet
from policies.errors import InputError

UNIVERSITY = example_folder("university")
SINFO = """\
NODELIST   CPUS  MEMORY  GRES                                STATE  AVAIL_FEATURES
gpu-1      64    515000  gpu:a100:4(S:0-1)                   idle   ampere
gpu-1      64    515000  gpu:a100:4(S:0-1)                   idle   ampere
gpu-2      64    515000  gpu:t4:2,gpu:nvidia_h100_80gb_hbm3:1  mix    mixed
cpu-1      8     64000   (null)                              down*  old
cpu-2      8     64000   (null)                              idle   old
"""


def drafted(tmp_path: Path, kind: str, text: str, device: str | None = None) -> tuple[str, Fleet]:
    hosts = DRAFTS[kind](text, place="source", device=device)
    draft = render_fleet(hosts, name="my-fleet", origin="source")
    path = tmp_path / f"{kind}.yaml"
    path.write_text(draft, encoding="utf-8")
    return draft, load_fleet(path)


def inventory(fleet: Fleet) -> Counter[tuple[str, str, float]]:
    return Counter((device.host_id, device.type_name, device.memory_bytes) for device in fleet.devices)


def test_the_university_fleet_is_what_slurm_and_the_hostfile_give(tmp_path: Path) -> None:
    slurm, cluster = drafted(tmp_path, "slurm", (UNIVERSITY / "slurm.txt").read_text(encoding="utf-8"))
    hostfile = (UNIVERSITY / "hostfile").read_text(encoding="utf-8")
    _, desks = drafted(tmp_path, "hostfile", hostfile, device="RTX-4090")
    bundled = load_fleet(UNIVERSITY / "fleet.yaml")
    assert inventory(cluster) + inventory(desks) == inventory(bundled)
    assert "cpu-05 (DOWN)" in slurm, "a node out of service is named, not planned with"


def test_sinfo_rows_are_nodes_once_whatever_their_partitions(tmp_path: Path) -> None:
    draft, fleet = drafted(tmp_path, "slurm", SINFO)
    found = Counter((device.host_id, device.type_name) for device in fleet.devices)
    assert found == {
        ("gpu-1", "A100-40GB-PCIe"): 4,
        ("gpu-2", "T4"): 2,
        ("gpu-2", "H100-80GB"): 1,
        ("cpu-2", "CPU-Xeon-6248"): 1,
    }
    assert fleet.device_by_id["cpu-2/0"].memory_bytes == 64000 * 2**20
    assert "A100-80GB" in next(line for line in draft.splitlines() if "type: A100-40GB-PCIe" in line)
    assert "cpu-1 (DOWN)" in draft


def test_every_value_that_was_not_said_is_marked(tmp_path: Path) -> None:
    draft, _ = drafted(tmp_path, "hostfile", "a slots=2\nb slots=4  # new\n\n")
    for key in ("tiers", "boundaries", "name: main", "fabric", "latency", "price", "type"):
        lines = [line for line in draft.splitlines() if line.strip().lstrip("- ").startswith(key)]
        assert lines, key
        assert all("# assumed" in line for line in lines), key
    told, _ = drafted(tmp_path, "hostfile", "a slots=2\n", device="L4")
    assert "type: L4\n" in told


@pytest.mark.parametrize(
    ("found", "name", "is_sure"),
    [
        ("nvidia_a100-sxm4-80gb", "A100-80GB", True),
        ("NVIDIA-A100-PCIE-40GB", "A100-40GB-PCIe", True),
        ("a100", "A100-40GB-PCIe", False),
        ("tesla_v100", "V100-16GB-PCIe", False),
        ("rtx_3090", "RTX-3090", True),
        ("rtx3090", "RTX-3090", True),
        ("geforce_rtx_4090", "RTX-4090", True),
        ("t4", "T4", True),
        ("h200", "H200", True),
        ("fpga", "A100-80GB", False),
        ("", "A100-80GB", False),
    ],
)
def test_gres_types_are_matched_with_the_catalog(found: str, name: str, is_sure: bool) -> None:
    guess, notes = catalog_guess(found)
    assert (guess, not notes) == (name, is_sure)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", ["f"]),
        ("# nobody\n", ["f"]),
        ("a slots=2\na slots=2\n", ["f:2"]),
        ("a\nb slots=x\nc slots=0\nd slots=999\n-e slots=1\n", ["f:1", "f:2", "f:3", "f:4", "f:5"]),
        ("a[1-3] slots=2\n", ["f:1"]),
        ("\x1b[31m slots=2\n", ["f:1"]),
    ],
)
def test_bad_hostfiles_are_refused_line_by_line(text: str, places: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        hosts_from_hostfile(text, place="f")
    assert [fault.place for fault in caught.value.faults] == places


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", ["f"]),
        ("slurm_load_node error: Unable to contact slurm controller\n", ["f"]),
        ("NODELIST CPUS\n", ["f"]),
        ("NODELIST CPUS MEMORY\nn1 8\n", ["f:2"]),
        ("NODELIST GRES\nn1 gpu:a100:4000\nn[2-1] gpu:1\n", ["f:2: Gres", "f:3"]),
        ("NodeName=n1 Gres=gpu:!:2 State=IDLE\n", ["f:1: Gres"]),
        ("NodeName=n1 Gres=(null) State=DOWN\n", ["f"]),
    ],
)
def test_bad_slurm_output_is_refused(text: str, places: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        hosts_from_slurm(text, place="f")
    assert [fault.place for fault in caught.value.faults] == places


def test_one_line_per_node_reads_like_several() -> None:
    several = (UNIVERSITY / "slurm.txt").read_text(encoding="utf-8")
    one_line = "\n".join(" ".join(block.split()) for block in several.strip().split("\n\n")) + "\n"
    assert hosts_from_slurm(one_line, place="f") == hosts_from_slurm(several, place="f")
