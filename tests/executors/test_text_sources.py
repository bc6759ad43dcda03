"""Documents are found in the same order everywhere, what is no text is left out, and pieces lose nothing."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.training.shares import HELD_OUT, Shares
from executors.training.text import (
    CODE_BYTES_MAX,
    PIECE_CHARACTERS_MAX,
    Document,
    Survey,
    find_documents,
    pieces,
    survey,
)
from policies.errors import InputError


def refusal(*data: str) -> InputError:
    with pytest.raises(InputError) as caught:
        survey(find_documents(data))
    assert caught.value.faults
    return caught.value


def folder_with(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_folders_are_read_in_order_without_what_is_no_text(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path / "texts",
        {
            "b.txt": b"b\n",
            "a/z.md": "ä\n".encode(),
            "a/y.py": b"print()\n",
            "a.txt": b"\xef\xbb\xbfwith a mark\n",
            "image.png": b"\x89PNG\0\0",
            "latin.txt": "ä".encode("latin-1"),
            "cut.txt": "ä".encode()[:1],
            "empty.txt": b"",
            ".git/config": b"[core]\n",
            ".hidden": b"x",
            "__pycache__/a.txt": b"x",
        },
    )
    found = survey(find_documents([str(folder)]))
    names = [document.path.relative_to(folder).as_posix() for document in found.documents]
    assert names == ["a.txt", "a/y.py", "a/z.md", "b.txt"]
    assert found.num_skipped == 3
    assert [piece.text for piece in pieces(found)] == ["with a mark\n", "print()\n", "ä\n", "b\n"]


def test_a_document_named_twice_counts_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    (tmp_path / "again.txt").symlink_to(tmp_path / "a.txt")
    found = find_documents([str(folder / "b.txt"), str(folder), str(folder), "python:prose", "python:prose"])
    assert [d.path.name for d in found if not d.topic] == ["b.txt", "a.txt"]
    assert len({d.topic for d in found if d.topic}) == len([d for d in found if d.topic]) > 50


def test_what_python_carries_is_two_different_texts() -> None:
    prose, code = survey(find_documents(["python:prose"])), survey(find_documents(["python:code"]))
    assert 300_000 < prose.num_bytes < 2_000_000
    assert CODE_BYTES_MAX // 2 < code.num_bytes <= CODE_BYTES_MAX
    parts = {part for document in code.documents for part in document.path.parts}
    assert not parts & {"site-packages", "test", "tests", "pydoc_data"}
    assert find_documents(["python:code"]) == find_documents(["python:code"])
    assert sum(len(piece.text.encode()) for piece in pieces(prose)) == prose.num_bytes


def test_every_fault_of_the_data_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ["note.txt", "empty", "notes.txt", "pipe", "loop", "with\0zero"]
    error = refusal(*(f"{tmp_path}/{name}" for name in names))
    assert error.code == "data-missing"
    assert [fault.place for fault in error.faults] == [f"job: data[{i}]" for i in (0, 1, 3, 4, 5)]
    assert error.faults[0].hint == "did you mean `notes.txt`?"
    assert all(fault.value and fault.limit for fault in error.faults)


def test_data_without_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(f"{tmp_path}/empty").code == "data-empty"
    folder_with(tmp_path / "hollow", {"a.txt": b"", "b/c.txt": b""})
    assert refusal(f"{tmp_path}/hollow").code == "data-empty"
    folder_with(tmp_path / "binary", {"a.bin": b"\0", "b.txt": "ä".encode("latin-1")})
    assert refusal(f"{tmp_path}/binary").code == "no-text"
    error = refusal(f"{tmp_path}/binary/b.txt")
    assert error.code == "data-not-text"
    assert "no UTF-8" in error.faults[0].value
    assert refusal(f"{tmp_path}/hollow/a.txt").code == "no-text"


def test_a_text_that_vanishes_under_the_reader_is_named(tmp_path: Path) -> None:
    path = folder_with(tmp_path, {"a.txt": b"text"}) / "a.txt"
    found = survey(find_documents([str(path)]))
    path.write_bytes(b"\xff\xff")
    with pytest.raises(InputError) as caught:
        list(pieces(found))
    path.unlink()
    with pytest.raises(InputError) as gone:
        list(pieces(found))
    assert caught.value.code == gone.value.code == "data-unreadable"


@given(text=st.text(alphabet=st.sampled_from("ab\n\r\tä€\u2028 "), min_size=1, max_size=4000))
def test_pieces_are_the_text_cut_at_line_ends(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode())
    found = survey(find_documents([str(path)]))
    cut = list(pieces(found))
    assert "".join(piece.text for piece in cut) == text
    assert [piece.index for piece in cut] == list(range(len(cut)))
    longest = 2 * found.piece_characters
    for piece in cut[:-1]:
        assert found.piece_characters <= len(piece.text) <= longest
        assert piece.text[-1] in "\r\n" or len(piece.text) == longest


def test_help_topics_and_files_are_cut_alike(tmp_path: Path) -> None:
    prose = find_documents(["python:prose"])
    longest = max(prose, key=lambda document: document.size_bytes)
    size = {"num_skipped": 0, "num_bytes": longest.size_bytes}
    from_topic = list(pieces(Survey(documents=(longest,), **size)))
    path = folder_with(tmp_path, {"a.txt": "".join(p.text for p in from_topic).encode()}) / "a.txt"
    as_file = Document(path=path, size_bytes=longest.size_bytes, modified_ns=0)
    assert list(pieces(Survey(documents=(as_file,), **size))) == from_topic
    assert len(from_topic) > 5


def test_a_large_text_is_never_held_whole(tmp_path: Path) -> None:
    size = 24 * 2**20
    path = folder_with(tmp_path, {"large.txt": b"x" * size}) / "large.txt"
    tracemalloc.start()
    try:
        found = survey(find_documents([str(path)]))
        longest = max(len(piece.text) for piece in pieces(found))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert longest <= 2 * PIECE_CHARACTERS_MAX
    assert peak < size / 2


SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=300)


@given(sizes=SIZES, num_participants=st.integers(1, 7), frac=st.floats(0, 0.9))
def test_shares_are_even_and_the_held_out_text_is_the_same_for_any_number(
    sizes: list[int], num_participants: int, frac: float
) -> None:
    shares = Shares(num_participants=num_participants, evaluation_frac=frac)
    alone = Shares(num_participants=1, evaluation_frac=frac)
    owners = [shares.owner(size) for size in sizes]
    held_out = [owner == HELD_OUT for owner in owners]
    assert held_out == [alone.owner(size) == HELD_OUT for size in sizes]
    dealt = [sum(s for s, o in zip(sizes, owners, strict=True) if o == i) for i in range(num_participants)]
    assert max(dealt) - min(dealt) <= max(sizes)
    held = sum(size for size, is_held in zip(sizes, held_out, strict=True) if is_held)
    assert abs(held - frac * sum(sizes)) <= max(sizes) / 2 + 1e-6
    assert frac > 0 or held == 0
