"""Settings of the sync policy: typed, within bounds, and every fault of them told."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.files import load_inputs
from policies.errors import InputError
from policies.sync import SettingFault, SyncMethod, SyncSettings, sync_settings

EXAMPLE = Path(__file__).resolve().parents[2] / "planner" / "examples" / "two-hospitals-and-a-lab"


def test_nothing_written_is_the_default() -> None:
    assert sync_settings(()) == (SyncSettings(), [])


def test_every_setting_can_be_written() -> None:
    written = tuple((field.name, str(getattr(SyncSettings(), field.name))) for field in fields(SyncSettings))
    assert sync_settings(written) == (SyncSettings(), [])
    settings, faults = sync_settings((("method", "echelon-da"), ("local_steps", "50"), ("window_s", "2.5")))
    assert not faults
    assert settings == SyncSettings(method=SyncMethod.ECHELON_DA, local_steps=50, window_s=2.5)


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("method", "fixed", "one of echelon, echelon-da, diloco, overlapped-diloco, fedprox, fedbuff"),
        ("local_step", "3", "one of method, local_steps, "),
        ("local_steps", "2.5", "a whole number from 1 to 1e+09"),
        ("local_steps", "0", "a whole number from 1 to 1e+09"),
        ("window_s", "soon", "a number from 0.001 to 1e+09"),
        ("outer_momentum", "1", "a number from 0 to 0.999"),
        ("outer_momentum", "nan", "a number from 0 to 0.999"),
        ("staleness_power", "-0.5", "a number from 0 to 1"),
    ],
)
def test_what_can_not_be_used_is_told_with_its_limit(key: str, value: str, limit: str) -> None:
    settings, (fault,) = sync_settings(((key, value),))
    assert settings is None
    assert (fault.key, fault.value) == (key, value)
    assert fault.limit.startswith(limit)


def test_all_faults_come_at_once_and_contradictions_after_them() -> None:
    _, faults = sync_settings((("method", "fixed"), ("close_at", "-1")))
    assert [fault.key for fault in faults] == ["method", "close_at"]
    assert sync_settings((("method", "fedprox"),))[1] == [
        SettingFault(key="proximal", value="0", limit="above 0 under fedprox")
    ]
    written = (("method", "echelon-da"), ("local_steps", "5"))
    assert sync_settings(written)[1][0].limit == "local_steps_min to local_steps_max, 10 to 1000"


@given(
    st.lists(
        st.tuples(st.sampled_from([f.name for f in fields(SyncSettings)]), st.text(max_size=8)), max_size=6
    )
)
def test_no_text_is_taken_silently_for_another(written: list[tuple[str, str]]) -> None:
    settings, faults = sync_settings(written)
    assert (settings is None) == bool(faults)


def test_a_policy_file_is_refused_at_the_place_of_the_setting(tmp_path: Path) -> None:
    for name in ("fleet.yaml", "model.yaml", "policy.yaml"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text(encoding="utf-8"), encoding="utf-8")
    path = tmp_path / "policy.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("method: echelon", "method: eschelon"), encoding="utf-8"
    )
    with pytest.raises(InputError) as caught:
        load_inputs(tmp_path / "fleet.yaml", tmp_path / "model.yaml", path)
    (fault,) = caught.value.faults
    assert fault.place.endswith("sync.method")
    assert fault.value == "eschelon"
