"""`echelon profile`: layers, links and memory of this machine, or of several, measured in running steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.console import Console, console_of

if TYPE_CHECKING:
    from typing import Any

    from costmodels.workload import Workload

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the profile goes.")]
DeviceType = Annotated[
    str | None,
    typer.Option(
        "--device-type",
        metavar="NAME",
        help="What the fleet calls these devices; else the catalog's or the processor's name.",
        show_default=False,
    ),
]
HostFile = Annotated[
    Path | None,
    typer.Option("--hostfile", help="Hosts to measure in one run: lines `name slots=N`.", show_default=False),
]
RemoteShell = Annotated[
    str, typer.Option("--remote-shell", help="How to reach them: ssh, pdsh, netns, local, or a template.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--meet-at", help="Address of the first host for the others; else its name.", show_default=False
    ),
]
Steps = Annotated[int, typer.Option("--steps", help="Timed steps of every micro-batch size.", min=1)]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        help="Processes side by side; else one per GPU, or two.",
        min=1,
        max=1024,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add `echelon profile`."""

    @app.command()
    def profile(
        ctx: typer.Context,
        model: ModelFile,
        output: Output = Path("profile.json"),
        device_type: DeviceType = None,
        hostfile: HostFile = None,
        remote_shell: RemoteShell = "ssh",
        meet_at: Address = None,
        steps: Steps = 8,
        ranks: Ranks = None,
    ) -> None:
        """Measure a model's layers on this machine in running training steps, for --cost-model measured.

        As many processes as there are devices train side by side. Links between them, memory and what each
        executor adds are measured too. The profile goes to a file, the machine's entry for a fleet file to
        stdout.
        """
        from costmodels.profile_io import profile_to_document, save_profile
        from executors.profiling.fragment import measured_fragment
        from executors.profiling.merging import merge
        from planner.cli.cmd_solve import require_writable
        from planner.files import load_model

        console = console_of(ctx)
        require_writable(output)
        workload = load_model(model)
        documents = _documents(console, workload, device_type, hostfile, remote_shell, meet_at, steps, ranks)
        found = merge(workload, documents)
        save_profile(found, output)
        text = measured_fragment(found, documents)
        data = {"file": str(output), "profile": profile_to_document(found), "fragment": text}
        console.emit(data, text)
        console.note(f"wrote {output}")


def _documents(
    console: Console,
    workload: Workload,
    device_type: str | None,
    hostfile: Path | None,
    remote_shell: str,
    meet_at: str | None,
    steps: int,
    ranks: int | None,
) -> list[dict[str, Any]]:
    """The measurements of this machine, or of every host in the file."""
    from costmodels.discover import probe_machine
    from executors.profiling.host import measure_host
    from executors.profiling.hosts import measure_hosts
    from executors.profiling.requests import host_request, hostfile_requests
    from executors.remote import transport_from

    facts = probe_machine(probe_s=0.0)
    with console.progress() as shown:

        def tell(text: str) -> None:
            console.detail(text)
            shown.update(text, force=True)

        if hostfile is None:
            request = host_request(workload, facts, device_type=device_type, num_ranks=ranks, steps=steps)
            return [measure_host(request, tell=tell)]
        requests = hostfile_requests(
            workload, facts, hostfile, device_type=device_type, steps=steps, meet_at=meet_at
        )
        return measure_hosts(requests, transport_from(remote_shell), tell=tell)
