from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodels import units
from costmodels.discover import (
    MIB,
    CpuFacts,
    CpuRates,
    GpuFacts,
    MachineFacts,
    catalog_type,
    cpu_from_cpuinfo,
    fleet_fragment,
    gpus_from_smi,
    measure_rates,
    memory_from_meminfo,
    plain_name,
    probe_machine,
)

TWO_SOCKETS = "".join(
    f"processor\t: {4 * socket + 2 * core + thread}\nmodel name\t: Maker X 9000 @ 2.0GHz\ncpu MHz\t: 2000.0\n"
    f"physical id\t: {socket}\nsiblings\t: 4\ncore id\t\t: {core}\ncpu cores\t: 2\nflags\t\t: fpu\n\n"
    for socket in (0, 1)
    for core in (0, 1)
    for thread in (0, 1)
)
SMI = """\
NVIDIA A100-SXM4-80GB, 81920, 4, 16
NVIDIA A100-SXM4-80GB, 81920, 4, 16
Tesla T4, 15360, 3, 8
NVIDIA H200, 143771, 9, 16
Broken, [GPU is lost], [N/A], [N/A]
Odd, 1024, [N/A], 16
"""


def machine(**changes: object) -> MachineFacts:
    """A machine with two sockets and three GPUs of two kinds."""
    facts: dict[str, object] = {
        "host_name": "gpu 1.example",
        "cpu": CpuFacts(model_name="Maker X 9000 @ 2.0GHz", num_sockets=2, num_cores=8),
        "memory_bytes": 64 * 2**30,
        "gpus": gpus_from_smi(SMI)[:3],
        "rates": CpuRates(matmul_flop_per_s=3e12, copy_bytes_per_s=200e9),
    }
    return MachineFacts(**(facts | changes))  # type: ignore[arg-type]


def test_sockets_and_cores_are_counted_not_threads() -> None:
    assert cpu_from_cpuinfo(TWO_SOCKETS, fallback_name="x", fallback_cores=8) == CpuFacts(
        model_name="Maker X 9000 @ 2.0GHz", num_sockets=2, num_cores=4
    )


@pytest.mark.parametrize("text", ["", "processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\n"])
def test_a_system_that_says_little_counts_as_one_socket(text: str) -> None:
    assert cpu_from_cpuinfo(text, fallback_name="aarch64", fallback_cores=2) == CpuFacts(
        model_name="aarch64", num_sockets=1, num_cores=2
    )


def test_main_memory_is_read_in_kibibytes() -> None:
    assert memory_from_meminfo("MemTotal:       24684096 kB\nMemFree:  1 kB\n") == 24684096 * 1024
    assert memory_from_meminfo("nothing") is None


def test_gpus_are_read_from_the_driver_and_lost_ones_left_out() -> None:
    gpus = gpus_from_smi(SMI)
    assert [(gpu.name, gpu.memory_bytes) for gpu in gpus] == [
        ("NVIDIA A100-SXM4-80GB", 81920 * MIB),
        ("NVIDIA A100-SXM4-80GB", 81920 * MIB),
        ("Tesla T4", 15360 * MIB),
        ("NVIDIA H200", 143771 * MIB),
        ("Odd", 1024 * MIB),
    ]
    # Generation 4 x16 carries 31.5 GB/s each way, 3 x8 carries 7.9; an unknown generation says nothing.
    assert [gpu.link_bytes_per_s for gpu in gpus] == pytest.approx(
        [31.5072e9, 31.5072e9, 7.8768e9, None, None]
    )


@given(st.text(max_size=60))
@example("x, ², 4, 16")
@example("x, " + "9" * 5000 + ", 4, 16")
@example('"x, 1, 4, 16')
@example("x, 1\x00, 4, 16")
def test_no_answer_of_the_driver_breaks_the_reader(text: str) -> None:
    assert all(gpu.memory_bytes >= 0 for gpu in gpus_from_smi(text))


def test_the_fragment_gives_each_figure_its_origin() -> None:
    text = fleet_fragment(machine(), known_types=["A100-80GB", "A100-40GB", "T4"])
    assert text.splitlines() == [
        "# For a fleet file; `site` is yours to fill in, and `tier` where the fleet has more than one.",
        "# measured: timed on this machine; declared: said by its system or driver; assumed: check it.",
        "hosts:",
        "  - name: gpu-1.example",
        "    site: my-site",
        "    link: 7.88 GB/s  # assumed: PCI Express maximum of the slot; NVLink is faster",
        "    devices:",
        "      - type: A100-80GB  # declared: NVIDIA A100-SXM4-80GB",
        "        count: 2",
        "        memory: 81920 MiB  # declared: nvidia-smi",
        "      - type: T4  # declared: Tesla T4",
        "        count: 1",
        "        memory: 15360 MiB  # declared: nvidia-smi",
        "      - type: Maker-X-9000-2.0GHz  # declared: 8 cores in all",
        "        count: 2",
        "        memory: 32768 MiB  # declared: main memory per socket",
        "        rate: {fp32: 1.5 TFLOP/s}  # measured: matrix product of size 1536, all cores",
        "        memory_bandwidth: 100 GB/s  # measured: copy of 256 MiB, all cores",
    ]


def test_a_gpu_outside_the_catalog_gets_lines_to_fill_in() -> None:
    text = fleet_fragment(machine(rates=None))
    assert "type: NVIDIA-A100-SXM4-80GB" in text
    assert text.count("not in the device catalog") == 2
    assert "were not measured" in text


@pytest.mark.parametrize(
    ("name", "memory_gib", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", 40, "A100-40GB"),
        ("NVIDIA A100 PCIe", 80, "A100-80GB"),
        ("Tesla V100-SXM2-16GB", 16, "V100-16GB"),
        ("NVIDIA GeForce RTX 3090", 24, "RTX-3090"),
        ("NVIDIA A10", 22.5, "A10"),
        ("NVIDIA A100-PCIE-20GB", 20, None),
        ("Radeon", 16, None),
    ],
)
def test_the_drivers_name_leads_to_the_catalogs(name: str, memory_gib: float, expected: str | None) -> None:
    known = ["A100-80GB", "A100-40GB", "V100-16GB", "V100-32GB", "RTX-3090", "A10", "A10G", "16GB"]
    gpu = GpuFacts(name=name, memory_bytes=int(memory_gib * 2**30), link_bytes_per_s=None)
    assert catalog_type(gpu, known) == expected


@given(st.text(max_size=200))
def test_any_text_becomes_a_name_that_a_fleet_file_accepts(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", plain_name(text))


def test_this_machine_becomes_quantities_that_can_be_read() -> None:
    facts = probe_machine(probe_s=0)
    assert facts.rates is None
    assert facts.memory_bytes > 0
    rates = measure_rates(probe_s=1e-9, size=64, copy_bytes=2**20)
    assert 0 < rates.matmul_flop_per_s < 1e18
    assert 0 < rates.copy_bytes_per_s < 1e18
    text = fleet_fragment(replace(facts, rates=rates))
    rate = re.search(r"fp32: (.*?)}", text)
    bandwidth = re.search(r"memory_bandwidth: (.*?)  #", text)
    memory = re.search(r"memory: (.*?)  #", text)
    assert rate is not None
    assert bandwidth is not None
    assert memory is not None
    assert units.parse_flop_per_s(rate[1]) > 0
    assert units.parse_bytes_per_s(bandwidth[1]) > 0
    assert units.parse_bytes(memory[1]) > 0
