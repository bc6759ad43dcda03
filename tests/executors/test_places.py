"""Which machine this is, which ports and folders are free."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launches import replica_of, spec_of

from executors.addresses import free_port, is_here, require_free_port
from executors.locks import FolderLock
from executors.ports import meeting_of, require_own_ports
from policies.errors import ExecutorFailedError


@pytest.mark.parametrize(
    "name", [socket.gethostname(), socket.gethostname().upper(), "localhost", "127.0.0.1"]
)
def test_names_and_addresses_of_this_machine(name: str) -> None:
    assert is_here(name)


@pytest.mark.parametrize("name", ["192.0.2.7", "0.0.0.0", "::", "no-such-host.invalid", "2001:db8::7", ""])
def test_those_of_others(name: str) -> None:
    assert not is_here(name)


def test_a_domain_is_left_out_where_the_other_name_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-1.lab.invalid")
    assert is_here("gpu-1")
    assert is_here("GPU-1.lab.invalid.")
    assert not is_here("gpu-1.other.invalid")
    assert not is_here("gpu-2")


@pytest.mark.net
def test_a_port_is_free_until_somebody_listens_there() -> None:
    port = free_port()
    require_free_port(port)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(ExecutorFailedError) as caught:
            require_free_port(port)
        assert caught.value.code == "port-taken"
        assert str(port) in caught.value.message
    require_free_port(port)


def test_replicas_need_ports_of_their_own() -> None:
    first = spec_of(replica_of(["a/0"]), Path("/r0"), port=1)
    second = spec_of(replica_of(["a/1"], name="lab-r1"), Path("/r1"), port=1)
    assert meeting_of(first) == ("127.0.0.1", 1)
    with pytest.raises(ExecutorFailedError, match="port 1"):
        require_own_ports([first, second])
    elsewhere = replace(second, files={"run.json": json.dumps({"master_addr": "10.0.0.2", "master_port": 1})})
    require_own_ports([first, elsewhere])
    nowhere = replace(first, files={})
    require_own_ports([nowhere, replace(second, files={})])


def test_a_lock_is_let_go_with_its_process(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from executors.locks import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(1000)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, env={**os.environ}
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ExecutorFailedError) as caught:
            FolderLock(tmp_path)
        assert caught.value.code == "folder-in-use"
        assert str(holder.pid) in caught.value.message
        FolderLock(tmp_path, "other.lock").release()
        holder.kill()
    lock = FolderLock(tmp_path)
    with pytest.raises(ExecutorFailedError):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()
