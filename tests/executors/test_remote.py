"""Ways to reach a host: what is run, and what is refused before anything is."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.remote import PRESETS, Style, transport_from
from policies.errors import InputError

AGENT = ("py", "-P", "-m", "executors.agent")


@pytest.mark.parametrize(
    ("text", "style", "argv"),
    [
        ("local", Style.ARGUMENTS, AGENT),
        ("netns", Style.ARGUMENTS, ("ip", "netns", "exec", "a", *AGENT)),
        ("docker exec -i {host} {argv}", Style.ARGUMENTS, ("docker", "exec", "-i", "a", *AGENT)),
        ("ssh -p 2222 me@{address}", Style.SHELL, ("ssh", "-p", "2222", "me@10.0.0.1", " ".join(AGENT))),
        (
            "/opt/bin/pdsh -w {address}",
            Style.PDSH,
            ("/opt/bin/pdsh", "-w", "10.0.0.1", " ".join(AGENT)),
        ),
    ],
)
def test_templates_become_command_lines(text: str, style: Style, argv: tuple[str, ...]) -> None:
    transport = transport_from(text, python="py", address_of={"a": "10.0.0.1"})
    assert transport.style is style
    assert transport.agent_argv("a") == argv


def test_presets_ask_no_questions() -> None:
    assert "BatchMode=yes" in PRESETS["ssh"]
    assert transport_from("pdsh").style is Style.PDSH
    assert transport_from("ssh").argv("far", ("true",))[-2:] == ("far", "true")


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1))
def test_a_shell_at_the_other_end_sees_the_same_words(words: list[str]) -> None:
    line = transport_from("ssh {host}").argv("a", words)[-1]
    assert shlex.split(line) == words


@pytest.mark.parametrize(
    "text",
    ["", "ssh -v", "ssh {adress}", "{argv}", "ssh {host} {argv} --", "ssh {host} {0}", "x {host!r}"],
)
def test_a_template_without_a_host_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        transport_from(text)
    assert caught.value.code == "bad-remote-shell"


@pytest.mark.parametrize(
    "name", ["", "-oProxyCommand=reboot", "a b", "a;b", "$(b)", "a,b", "host[1-3]", "a\nb", "{host}", "a/b"]
)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    for transport in (transport_from("ssh"), transport_from("ssh", address_of={"a": name})):
        with pytest.raises(InputError) as caught:
            transport.agent_argv("a" if transport.address_of else name)
        assert caught.value.code == "bad-host-name"


@pytest.mark.parametrize("name", ["gpu-01", "gpu_1.lab.example", "10.0.0.1", "fe80::1%eth0", "me@host"])
def test_names_and_addresses_are_taken(name: str) -> None:
    assert name in transport_from("ssh").agent_argv(name)
