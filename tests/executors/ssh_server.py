"""A real ssh server on this machine, for one test: own keys, own port, nothing of the user's touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from executors.addresses import LOOPBACK, free_port

SERVER = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
PRIVILEGE_FOLDER = Path("/run/sshd")


def why_no_ssh_server() -> str:
    """Why no ssh server can be started here; "" where one can."""
    if SERVER is None or shutil.which("ssh-keygen") is None or shutil.which("ssh") is None:
        return "needs ssh, ssh-keygen and sshd"
    return "" if os.geteuid() == 0 else "needs root"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshServer:
    """`options` are what a client needs to get in without questions."""

    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes]


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server for the present user at 127.0.0.1 and 127.0.0.2, whose keys lie in the folder."""
    assert SERVER is not None
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress {LOOPBACK}\nListenAddress 127.0.0.2\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nAcceptEnv *\n"
    )
    PRIVILEGE_FOLDER.mkdir(exist_ok=True)
    argv = [SERVER, "-D", "-e", "-f", str(folder / "config")]
    options = (
        *("-p", str(port), "-i", str(folder / "user"), "-F", "none"),
        *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder / 'known'}"),
        *("-o", "LogLevel=ERROR", "-o", "SendEnv=*"),
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        _until_it_answers(options)
        yield SshServer(port=port, options=options, process=process)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _until_it_answers(options: tuple[str, ...]) -> None:
    deadline_s = time.monotonic() + 20
    call = ["ssh", *options, LOOPBACK, "true"]
    while subprocess.run(call, check=False, capture_output=True).returncode != 0:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the ssh server does not answer")
        time.sleep(0.05)
