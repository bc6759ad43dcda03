"""Ways to reach a host. Standard library only.

A way is a command line that runs another one on the host: nothing at all (this machine), `ip netns exec`,
`ssh`, `pdsh`, or a template of the user's.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath

from policies.errors import InputError

SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
PRESETS: Mapping[str, str] = {
    "local": "{argv}",
    "netns": "ip netns exec {host} {argv}",
    "ssh": f"ssh {' '.join(SSH_OPTIONS)} {{address}}",
    "pdsh": "pdsh -S -N -R ssh -w {address}",
}
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]*")


class Style(StrEnum):
    """How a way takes the command: as arguments, as one line for a shell, or as one without any input."""

    ARGUMENTS = "arguments"
    SHELL = "shell"
    PDSH = "pdsh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How to reach the hosts of a plan.

    `words` come before the command; `{host}` in them is the host's name in the plan and `{address}` what
    `address_of` says of it, by default the name. `python` is the interpreter on the hosts. With `verify` an
    agent makes sure that its machine has that name or address.
    """

    words: tuple[str, ...]
    style: Style
    python: str = sys.executable
    verify: bool = True
    address_of: Mapping[str, str] = field(default_factory=dict)

    def address(self, host: str) -> str:
        """The address of a host.

        Raises:
            InputError: `bad-host-name` where it could be read as an option, a list or a command.
        """
        address = self.address_of.get(host, host)
        for text in (host, address):
            if not _HOST.fullmatch(text):
                raise InputError(
                    "bad-host-name",
                    f"{text!r} is no name or address of a host",
                    hint="use letters, digits, dots, colons, hyphens and underscores",
                )
        return address

    def argv(self, host: str, command: Sequence[str]) -> tuple[str, ...]:
        """What to run here so that `command` runs on the host."""
        names = {"host": host, "address": self.address(host)}
        words = tuple(word.format(**names) for word in self.words)
        if self.style is Style.ARGUMENTS:
            return (*words, *command)
        return (*words, shlex.join(command))

    def agent_argv(self, host: str, *arguments: str) -> tuple[str, ...]:
        """What to run here to have an agent on the host."""
        return self.argv(host, (self.python, "-P", "-m", "executors.agent", *arguments))


def transport_from(
    text: str,
    *,
    python: str = sys.executable,
    verify: bool = True,
    address_of: Mapping[str, str] | None = None,
) -> Transport:
    """The transport that a user names: a preset (`local`, `netns`, `ssh`, `pdsh`) or a template.

    A template holds `{host}` or `{address}`. Where it ends with `{argv}` it takes the command as arguments
    (`docker exec -i {host} {argv}`), otherwise as a line for the host's shell (`ssh -p 2222 {address}`).

    Raises:
        InputError: `bad-remote-shell`.
    """
    words = shlex.split(PRESETS.get(text, text))
    style = Style.SHELL
    if words and words[-1] == "{argv}":
        style = Style.ARGUMENTS
        del words[-1]
    elif words and PurePath(words[0]).name == "pdsh":
        style = Style.PDSH
    holes = set(re.findall(r"\{[^}]*\}", " ".join(words)))
    if text not in PRESETS and not (words and holes and holes <= {"{host}", "{address}"}):
        raise InputError(
            "bad-remote-shell",
            f"remote shell {text!r} should hold {{host}} or {{address}}, and {{argv}} only at its end",
            hint=f"use {', '.join(PRESETS)}, or a template such as 'ssh -p 2222 {{address}}'",
        )
    return Transport(
        words=tuple(words), style=style, python=python, verify=verify, address_of=dict(address_of or {})
    )
