"""Windows over journals on disk: sums come out, and what was burnt stays burnt after a restart."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from boundary.secagg_house import House, Run, expected_sum
from executors.boundary.journal import Journal, JournalError
from executors.boundary.secagg.descriptor import sign_descriptor
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.window_journal import WindowJournal


def test_a_value_is_kept_once_and_an_epoch_only_grows(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.db")) as journal:
        kept = WindowJournal(journal)
        assert (kept.seen("update", "u1"), kept.highest_epoch("run/ward")) == (None, -1)
        kept.record("update", "u1", b"scope")
        kept.record("update", "u1", b"scope")
        with pytest.raises(JournalError, match="another value"):
            kept.record("update", "u1", b"another scope")
        kept.begin_epoch("run/ward", 3)
        with pytest.raises(RefusedError) as caught:
            kept.begin_epoch("run/ward", 3)
        assert caught.value.reason is Reason.EPOCH_OLD
    with closing(Journal(tmp_path / "journal.db")) as journal:
        again = WindowJournal(journal)
        assert (again.seen("update", "u1"), again.highest_epoch("run/ward")) == (b"scope", 3)
        assert again.highest_epoch("run/other") == -1


def test_a_window_over_journals_on_disk_sums_and_is_burnt_for_good(tmp_path: Path) -> None:
    house = House(4)
    with ExitStack() as stack:
        for name in house.names:
            journal = stack.enter_context(closing(Journal(tmp_path / f"{name}.db")))
            house.journals[name] = WindowJournal(journal)  # type: ignore[assignment]
        run = Run(house).finish()
        total_N = expected_sum(house, house.names)
        np.testing.assert_array_equal(run.aggregator.combine().sum_N.astype(total_N.dtype), total_N[:-4])
    with closing(Journal(tmp_path / f"{house.names[0]}.db")) as journal:
        house.journals[house.names[0]] = WindowJournal(journal)  # type: ignore[assignment]
        restarted = house.participant(house.names[0])
        with pytest.raises(RefusedError) as caught:
            restarted.enrol(sign_descriptor(house.descriptor, house.aggregator_key), now_s=1.0)
        assert caught.value.reason is Reason.EPOCH_OLD
