"""`echelon audit` and the stand-alone verifier: answers, exit codes, what an auditor must install."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boundary.audit_runs import CAPTURE_KEYS, POLICY_KEYS, Story
from policies.audit import verify
from policies.audit.checkpoint import parse_checkpoints
from policies.audit.tree import is_included, leaf_hash

ROOT = Path(__file__).resolve().parents[2]
KEYS = [f"--key={name}={key.hex()}" for name, key in POLICY_KEYS.items()]
CAPTURES = [f"--capture-key={name}={key.hex()}" for name, key in CAPTURE_KEYS.items()]

Cli = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    story = Story(2)
    story.write(path)
    for boundary_id in (1, 2):
        story.capture(path, boundary_id)
    return path


def spoil(folder: Path) -> None:
    content = bytearray((folder / "lab.log").read_bytes())
    content[500] ^= 1
    (folder / "lab.log").write_bytes(content)


def test_pass_fail_and_inconclusive_differ_in_exit_code(cli: Cli, folder: Path) -> None:
    passed = cli("audit", "verify", str(folder), *KEYS)
    assert (passed.code, passed.out.splitlines()[0]) == (0, "verdict   PASS (scope gate)")
    assert "unproven  that nothing left by another way than the guard" in passed.out
    open_question = cli("audit", "verify", str(folder), *KEYS, "--scope", "egress")
    assert open_question.code == 10
    assert "missing   the key of the process that captured the border of `clinic`" in open_question.out
    assert "error[audit-inconclusive]" in open_question.err
    assert cli("audit", "verify", str(folder), *KEYS, *CAPTURES, "--scope", "egress").code == 0
    spoil(folder)
    failed = cli("audit", "verify", str(folder), *KEYS)
    assert failed.code == 8
    assert "broken    record-changed at lab.log records 0 to 4" in failed.out
    assert "error[audit-record-changed]" in failed.err


def test_the_json_answer_holds_the_whole_report(cli: Cli, folder: Path) -> None:
    answer = json.loads(cli("audit", "verify", str(folder), *KEYS, "--format", "json").out)
    assert answer["status"] == "ok"
    report = answer["data"]
    assert (report["schema"], report["verdict"], report["scope"]) == (
        "echelon/audit-report/1",
        "pass",
        "gate",
    )
    assert [log["party"] for log in report["logs"]] == ["coordinator", "clinic", "lab"]
    spoil(folder)
    answer = json.loads(cli("audit", "verify", str(folder), *KEYS, "--format", "json").out)
    assert (answer["status"], answer["error"]["code"]) == ("error", "audit-record-changed")
    assert answer["data"]["failures"][0]["rule"] == "record-changed"


def test_wrong_calls_are_refused(cli: Cli, folder: Path) -> None:
    assert cli("audit").code == 2
    assert cli("audit", "verify", str(folder / "none"), *KEYS).code == 3
    assert cli("audit", "verify", str(folder), "--key", "lab=zz").code == 3
    assert cli("audit", "verify", str(folder), *KEYS, "--scope", "all").code == 2
    assert cli("audit", "show", str(folder / "none.log")).code == 3


def test_show_lists_records(cli: Cli, folder: Path) -> None:
    shown = cli("audit", "show", str(folder / "lab.log"), "--first", "1", "--count", "2").out.splitlines()
    assert shown[0].endswith("lab.log: 10 records")
    assert [line.split()[:4] for line in shown[2:]] == [
        ["1", "sent", "boundary_status", "2"],
        ["2", "sent", "boundary_delta", "2"],
    ]
    (folder / "lab.log").write_bytes((folder / "lab.log").read_bytes()[:-1])
    answer = json.loads(cli("audit", "show", str(folder / "lab.log"), "--format", "json").out)
    assert [record["type"] for record in answer["data"]["records"]][-1] == "damaged"


def test_an_exported_record_proves_itself(cli: Cli, folder: Path, tmp_path: Path) -> None:
    for index in (0, 3, 9):
        path = tmp_path / f"{index}.json"
        assert (
            cli("audit", "export", str(folder / "lab.log"), "--record", str(index), "-o", str(path)).code == 0
        )
        document = json.loads(path.read_text(encoding="utf-8"))
        (checkpoint,) = parse_checkpoints(document["checkpoint"].encode())
        leaf = leaf_hash(base64.b64decode(document["record_base64"]))
        assert leaf.hex() == document["record"]["leaf"]
        assert is_included(
            leaf=leaf,
            index=index,
            size=checkpoint.size,
            proof=[bytes.fromhex(part) for part in document["proof"]],
            root=checkpoint.root,
        )
    refused = cli("audit", "export", str(folder / "lab.log"), "--record", "10", "-o", str(tmp_path / "x"))
    assert (refused.code, (tmp_path / "x").exists()) == (3, False)
    (folder / "lab.checkpoints").unlink()
    assert (
        cli("audit", "export", str(folder / "lab.log"), "--record", "1", "-o", str(tmp_path / "x")).code == 3
    )


def test_a_whole_log_is_exported_as_lines(cli: Cli, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.jsonl"
    assert cli("audit", "export", str(folder / "lab.log"), "-o", str(path)).code == 0
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(10))
    assert lines[2]["kind"] == "boundary_delta"
    assert lines[2]["cohort_size"] == 4


def test_the_stand_alone_verifier_gives_the_same_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(folder), *KEYS]) == 0
    assert capsys.readouterr().out.startswith("verdict   PASS")
    assert verify.main([str(folder), *KEYS[:2]]) == 10
    assert verify.main([str(folder), *KEYS, *CAPTURES, "--scope", "egress", "--format", "json"]) == 0
    spoil(folder)
    assert verify.main([str(folder), *KEYS]) == 8
    assert verify.main([str(folder), "--key", "lab=zz"]) == 3


def test_an_auditor_needs_this_package_and_cryptography_only(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "policies", tmp_path / "alone" / "policies")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        # A checkout that is installed in place would join its other packages to this one.
        "sys.path = ['.', *(p for p in sys.path if p and not (Path(p) / 'planner').is_dir())]\n"
        "sys.modules['numpy'] = None\n"  # any import of it fails
        "from policies.audit.verify import main\n"
        "code = main(sys.argv[1:])\n"
        "known = {*sys.stdlib_module_names, 'policies', 'cryptography', '_cffi_backend', 'numpy'}\n"
        "held = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(n for n in held - known if not n.startswith('_')))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *KEYS],
        cwd=tmp_path / "alone",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verdict   PASS")
    assert done.stdout.splitlines()[-1] == "[]"
