"""An agent carries out what it is told, on the right host and in a free folder only."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from agents import Agent, python, said, spec_in
from hypothesis import given, settings
from hypothesis import strategies as st

from executors import events
from executors.agent_spec import AgentSpec, parse_spec
from executors.events import Kind

TELL = """
import json, os
told = {"cwd": os.getcwd(), "env": dict(os.environ), "session": os.getsid(0) == os.getpid()}
open("told.json", "w").write(json.dumps(told))
"""
SLEEP = ["sleep", "1000"]
RANK = """
import os, time
from pathlib import Path
from executors import events
log = events.rank_log(Path.cwd(), 0)
log(events.ready(0))
print("to the log", flush=True)
log(events.step(0, step=1, loss=float("nan"), gradient_norm=1, wall_s=0.1, cpu_s=0.1, tokens=8))
Path("rank-0.jsonl").open("a").write("no event\\n")
log(events.finished(0))
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, spec: AgentSpec | None, *arguments: str, **env: str) -> Agent:
    agent = Agent(spec, *arguments, env=env)
    stack.callback(agent.close)
    return agent


def test_files_are_there_before_the_command_and_the_environment_is_as_told(
    stack: ExitStack, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    spec = spec_in(
        folder,
        python(TELL),
        files={"plan.json": "{}", "deep/er/file": "äöü"},
        env={"ADDED": "yes", "REMOVED": None},
    )
    agent = started(stack, spec, REMOVED="no")
    assert agent.end() == 0
    assert agent.kinds() == ["started", "exited", "ended"]
    assert agent.events[1].data["code"] == 0
    told = said(folder / "told.json")
    assert told["cwd"] == str(folder)
    assert told["session"]
    assert told["env"]["ADDED"] == "yes"
    assert told["env"]["ECHELON_HOST"] == "a"
    assert "REMOVED" not in told["env"]
    assert (folder / "deep/er/file").read_text(encoding="utf-8") == "äöü"
    left = {path.name for path in folder.iterdir()}
    assert left == {"plan.json", "deep", "told.json", "host-a.lock", "host-a.log"}


def test_events_of_ranks_are_passed_on_and_those_of_earlier_starts_are_not(
    stack: ExitStack, tmp_path: Path
) -> None:
    before = events.EventLog(events.rank_file(tmp_path, 0))
    before(events.hello(0, 1))
    before.close()
    agent = started(stack, spec_in(tmp_path, python(RANK), ranks=(0,)))
    assert agent.end() == 0
    assert agent.kinds() == ["started", "hello", "ready", "step", "note", "finished", "exited", "ended"]
    assert {event.host for event in agent.events} == {"a"}
    assert {event.replica for event in agent.events} == {"lab-r0"}
    assert agent.events[1].data["pid"] != 1
    assert agent.events[3].data["loss"] is None
    assert agent.events[4].data["text"] == "no event"
    assert (tmp_path / "host-a.log").read_text() == "to the log\n"


def test_the_log_tells_why_a_command_failed(stack: ExitStack, tmp_path: Path) -> None:
    agent = started(stack, spec_in(tmp_path, python("import json\njson.loads('{')")))
    assert agent.end() == 9
    exited = agent.until_kind(Kind.EXITED).data
    assert exited["code"] == 1
    assert exited["error"].startswith("json.decoder.JSONDecodeError: ")


def test_another_host_is_refused_and_nothing_is_written(stack: ExitStack, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    agent = started(stack, spec_in(folder, python(TELL), expected="192.0.2.7"))
    assert agent.end() == 9
    assert agent.kinds() == ["wrong-host"]
    assert agent.events[0].data == {"expected": "192.0.2.7", "found": socket.gethostname()}
    assert not folder.exists()


@pytest.mark.parametrize("expected", ["127.0.0.1", "localhost", socket.gethostname()])
def test_this_host_is_accepted_by_name_and_address(stack: ExitStack, tmp_path: Path, expected: str) -> None:
    agent = started(stack, spec_in(tmp_path, ["true"], expected=expected))
    assert agent.end() == 0


def test_a_folder_in_use_is_refused_until_its_agent_has_ended(stack: ExitStack, tmp_path: Path) -> None:
    first = started(stack, spec_in(tmp_path, SLEEP))
    first.until_kind(Kind.STARTED)
    second = started(stack, spec_in(tmp_path, python(TELL), files={"plan.json": "{}"}))
    assert second.end() == 9
    assert [event.data.get("code") for event in second.events] == ["folder-in-use"]
    assert str(first.process.pid) in second.events[0].data["message"]
    assert not (tmp_path / "plan.json").exists()
    first.hang_up()
    first.end()
    third = started(stack, spec_in(tmp_path, ["true"]))
    assert third.end() == 0


@pytest.mark.net
def test_a_taken_port_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        agent = started(stack, spec_in(tmp_path, python(TELL), port=server.getsockname()[1]))
        assert agent.end() == 9
    assert [event.data.get("code") for event in agent.events] == ["port-taken"]
    assert not (tmp_path / "told.json").exists()


def test_a_command_that_is_missing_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    agent = started(stack, spec_in(tmp_path, ["no-such-program"]))
    assert agent.end() == 9
    assert agent.events[0].data["code"] == "command-not-started"
    assert "no-such-program" in agent.events[0].data["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_earlier_files_stay(stack: ExitStack, tmp_path: Path) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)]
    if subprocess.run(small, check=False, capture_output=True).returncode != 0:
        pytest.skip("this kernel mounts no tmpfs here")
    stack.callback(subprocess.run, ["umount", str(tmp_path)], check=True)
    (tmp_path / "plan.json").write_text("earlier")
    agent = started(stack, spec_in(tmp_path, ["true"], files={"plan.json": "x" * 100_000}))
    assert agent.end() == 9
    assert [event.data.get("code") for event in agent.events] == ["disk-full"]
    assert (tmp_path / "plan.json").read_text() == "earlier"
    assert not list(tmp_path.glob(".plan.json.*"))


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("[]", "echelon/agent/1"),
        ('{"schema": "echelon/agent/2"}', "different versions"),
        ('{"schema": "echelon/agent/1", "colour": 1}', "colour"),
        ('{"schema": "echelon/agent/1", "argv": []}', "argv"),
        ('{"schema": "echelon/agent/1", "argv": ["true"], "folder": "here"}', "folder"),
        ('{"schema": "echelon/agent/1", "argv": ["true"], "files": {"../up": ""}}', "../up"),
        ('{"schema": "echelon/agent/1", "argv": ["true"], "ranks": [-1]}', "ranks"),
        ('{"schema": "echelon/agent/1", "argv": ["true"]}', "missing"),
        ("{", "Expecting"),
    ],
)
def test_a_bad_specification_is_refused_by_name(line: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse_spec(line)


def test_an_agent_says_what_is_bad_in_its_specification(stack: ExitStack) -> None:
    agent = started(stack, None)
    agent.say('{"schema": "echelon/agent/2"}\n')
    assert agent.end() == 9
    assert agent.events[0].data["code"] == "bad-specification"


def test_an_agent_without_any_input_ends(stack: ExitStack) -> None:
    agent = started(stack, None)
    agent.hang_up()
    assert agent.end() == 9
    assert agent.events == []


@settings(max_examples=50)
@given(
    st.builds(
        AgentSpec,
        replica=st.text(),
        host=st.text(min_size=1),
        folder=st.text().map(lambda text: "/" + text),
        argv=st.lists(st.text(), min_size=1).map(tuple),
        env=st.dictionaries(st.text(), st.none() | st.text()),
        ranks=st.lists(st.integers(0, 99)).map(tuple),
        port=st.integers(0, 65535),
    )
)
def test_a_specification_survives_its_journey(spec: AgentSpec) -> None:
    assert spec.line().count("\n") == 1
    assert parse_spec(spec.line()) == spec


def test_a_specification_may_come_in_the_arguments(stack: ExitStack, tmp_path: Path) -> None:
    packed = zlib.compress(spec_in(tmp_path, python(TELL)).line().encode())
    assert started(stack, None, "--spec", base64.b64encode(packed).decode()).end() == 0
    assert said(tmp_path / "told.json")["cwd"] == str(tmp_path)


def test_a_specification_may_come_in_pieces(stack: ExitStack, tmp_path: Path) -> None:
    packed = zlib.compress(spec_in(tmp_path, python(TELL)).line().encode())
    path = tmp_path / "parts" / "spec"
    for piece in (packed[:50], packed[50:]):
        text = base64.b64encode(piece).decode()
        assert started(stack, None, "--receive", str(path), text, "127.0.0.1").end() == 0
    whole = hashlib.sha256(packed).hexdigest()
    assert started(stack, None, "--spec-file", str(path), whole).end() == 0
    assert not path.exists()
    assert started(stack, None, "--spec-file", str(path), whole).end() == 9
    assert started(stack, None, "--receive", str(path), "", "192.0.2.7").end() == 9
    assert not path.exists()
