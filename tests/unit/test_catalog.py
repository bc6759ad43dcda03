"""The catalog: every figure has a source, and figures stand in the order physics and vendors give them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from costmodels.catalog import (
    CATALOG_PATH,
    DeviceType,
    UnknownDeviceTypeError,
    catalog,
    device_names,
    device_type,
    link_bytes_per_s,
    source_documents,
    sustained_rules,
)

GIB = 2**30
ENTRIES = pytest.mark.parametrize("entry", catalog(), ids=lambda entry: str(entry.name))


def words(entry: DeviceType) -> list[str]:
    return [re.sub(r"[\s_-]+", "-", word.casefold()) for word in (entry.name, *entry.aliases)]


def test_the_catalog_covers_the_usual_devices() -> None:
    kinds = Counter(entry.kind for entry in catalog())
    assert kinds["gpu"] + kinds["accelerator"] >= 36
    assert kinds["cpu"] >= 8
    assert {entry.vendor for entry in catalog()} == {"NVIDIA", "AMD", "Intel"}


def test_no_name_or_alias_is_given_twice() -> None:
    spellings = Counter(word for entry in catalog() for word in words(entry))
    assert [word for word, count in spellings.items() if count > 1] == []


@ENTRIES
def test_every_figure_names_a_document(entry: DeviceType) -> None:
    figures = {"memory", "rate", "memory_bandwidth", "host_link"}
    figures |= {"peer_link"} if entry.peer_link is not None else set()
    sources = dict(entry.sources)
    assert set(sources) == figures
    documents = source_documents()
    for figure, source in sources.items():
        if entry.kind == "cpu" and figure == "memory":
            continue
        for part in source.split("; "):
            assert part.split(":")[0] in documents, part


def test_every_document_has_title_publisher_and_year_and_is_used() -> None:
    used = {part.split(":")[0] for e in catalog() for _, source in e.sources for part in source.split("; ")}
    for key, text in source_documents().items():
        assert key in used
        assert re.fullmatch(r".{8,}, (NVIDIA|AMD|Intel|PCI-SIG), 20[12]\d", text)


@ENTRIES
def test_figures_are_in_range_and_in_order(entry: DeviceType) -> None:
    rates = dict(entry.peak_flop_per_s)
    assert set(rates) <= {"bf16", "fp16", "fp32"}
    if entry.kind == "cpu":
        assert entry.memory_bytes == 0
        assert entry.peer_link is None
    else:
        assert 8 * GIB <= entry.memory_bytes <= 288 * GIB
    assert ("fp32" in rates) == (entry.kind != "accelerator")
    for dtype in ("bf16", "fp16"):
        assert rates.get(dtype, float("inf")) >= rates.get("fp32", 0.0)
    assert 5e11 <= min(rates.values()) <= max(rates.values()) <= 3e15
    assert 50e9 <= entry.memory_bytes_per_s <= 8e12
    assert 5e9 <= entry.host_link_bytes_per_s <= 450e9
    assert entry.device_link_bytes_per_s >= entry.host_link_bytes_per_s
    # A step reads weights at least once per use: no chip has more link than memory bandwidth.
    assert entry.device_link_bytes_per_s < entry.memory_bytes_per_s


@ENTRIES
def test_sustained_rates_follow_the_stated_rule(entry: DeviceType) -> None:
    frac, rule = sustained_rules()[entry.kind]
    assert rule
    assert entry.origin == "assumed"
    assert dict(entry.sustained_flop_per_s) == {
        dtype: pytest.approx(rate * frac) for dtype, rate in entry.peak_flop_per_s
    }


@pytest.mark.parametrize(
    "entry", [e for e in catalog() if e.kind == "cpu"], ids=lambda entry: str(entry.name)
)
def test_processor_figures_follow_from_cores_and_channels(entry: DeviceType) -> None:
    match = re.search(
        r"(\d+) cores x ([\d.]+) GHz x (\d+) FLOP per cycle in fp32(?:, (\d+) in bf16)?; "
        r"(\d+) channels x (\d+) MT/s x 8 bytes",
        entry.note,
    )
    assert match is not None
    cycles_per_s = int(match[1]) * float(match[2]) * 1e9
    expected = {"fp32": cycles_per_s * int(match[3])}
    if match[4] is not None:
        expected["bf16"] = cycles_per_s * int(match[4])
    assert dict(entry.peak_flop_per_s) == {dtype: pytest.approx(rate) for dtype, rate in expected.items()}
    assert entry.memory_bytes_per_s == pytest.approx(int(match[5]) * int(match[6]) * 8e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "memory_gib", "dtype", "rate", "bandwidth", "link"),
    [
        ("A100-80GB", 80, "bf16", 312e12, 2039e9, 300e9),
        ("H100-80GB", 80, "bf16", 989.5e12, 3350e9, 450e9),
        ("V100-32GB", 32, "fp16", 125e12, 900e9, 150e9),
        # 16 GB fitted, of which a sixteenth holds check bits: 15 GiB are seen.
        ("T4", 15, "fp16", 65e12, 300e9, 8e9 * 16 * 128 / 130 / 8),
        ("RTX-4090", 24, "bf16", 165.2e12, 1008e9, 16e9 * 16 * 128 / 130 / 8),
        ("MI300X", 192, "bf16", 1307.4e12, 5300e9, 448e9),
    ],
)
def test_well_known_figures(
    name: str, memory_gib: int, dtype: str, rate: float, bandwidth: float, link: float
) -> None:
    entry = device_type(name)
    assert entry.memory_bytes == memory_gib * GIB
    assert dict(entry.peak_flop_per_s)[dtype] == rate
    assert entry.memory_bytes_per_s == bandwidth
    assert entry.device_link_bytes_per_s == pytest.approx(link)


def test_chips_without_bf16_units_say_so() -> None:
    for name in ("K80", "P100-16GB", "V100-16GB", "T4", "RTX-2080-Ti", "CPU-EPYC-7763"):
        assert "bf16" not in dict(device_type(name).peak_flop_per_s)


def test_names_are_found_in_any_spelling() -> None:
    for entry in catalog():
        for word in (entry.name, *entry.aliases):
            assert device_type(word) is entry
            assert device_type(f" {word.upper()} ".replace("-", "_")) is entry
    assert device_type("nvidia a100-sxm4-80gb").name == "A100-80GB"


def test_names_fit_a_fleet_file() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) for name in device_names())
    assert len(set(device_names())) == len(catalog())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("A100", "A100-40GB"),
        ("H100", "H100-80GB"),
        ("RTX4090", "RTX-4090"),
        ("V100-64GB", "V100-16GB"),
        ("EPYC-7736", "CPU-EPYC-7763"),
        ("A100-80GB-SXM", "A100-80GB"),
    ],
)
def test_an_unknown_name_leads_to_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownDeviceTypeError) as caught:
        device_type(name)
    assert caught.value.code == "unknown-device-type"
    assert f"`{nearest}`" in caught.value.hint
    assert repr(name) in caught.value.message


@pytest.mark.parametrize("name", ["", "  ", "zzzzzzzzzzzz", "x" * 10_000])
def test_a_name_like_nothing_known_gets_a_way_out(name: str) -> None:
    with pytest.raises(UnknownDeviceTypeError) as caught:
        device_type(name)
    assert "give memory, rate and memory bandwidth" in caught.value.hint
    assert len(caught.value.message) < 200


def test_link_rates_are_lanes_times_rate_less_line_code() -> None:
    assert link_bytes_per_s("PCIe 3.0 x16") == pytest.approx(15.754e9, rel=1e-4)
    assert link_bytes_per_s("PCIe 5.0 x8") == link_bytes_per_s("PCIe 4.0 x16")


def test_the_file_is_written_the_way_a_program_would() -> None:
    content = json.loads(CATALOG_PATH.read_text(encoding="utf-8"))
    assert content["schema"] == "echelon/catalog/1"
    assert (
        CATALOG_PATH.read_text(encoding="utf-8") == json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    )


def table() -> str:
    """The table of entries as the manual prints it."""
    lines = ["| name | bf16 | fp16 | fp32 | memory | bandwidth | host link | peer link |", "|---" * 8 + "|"]
    for entry in catalog():
        rates = dict(entry.peak_flop_per_s)
        cells = [f"{rates[dtype] / 1e12:.4g}" if dtype in rates else "" for dtype in ("bf16", "fp16", "fp32")]
        peer = f"{entry.peer_link_bytes_per_s / 1e9:g}" if entry.peer_link_bytes_per_s is not None else ""
        memory = f"{entry.memory_bytes / GIB:g}" if entry.memory_bytes else ""
        bandwidth = f"{entry.memory_bytes_per_s / 1e9:g}"
        host = f"{entry.host_link}, {entry.host_link_bytes_per_s / 1e9:.3g}"
        cells += [memory, bandwidth, host, f"{entry.peer_link}, {peer}" if peer else ""]
        lines.append(f"| {entry.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_manual_lists_the_catalog_as_it_is() -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "catalog.md").read_text(encoding="utf-8")
    assert table() in manual
    assert all(f"- `{key}`: {text}\n" in manual for key, text in source_documents().items())
    assert all(rule_frac in (0.5, 0.4) for rule_frac, _ in sustained_rules().values())
