"""`echelon discover`: this machine as an entry for a fleet file."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.console import console_of, write_atomically


def register(app: typer.Typer) -> None:
    """Add `echelon discover`."""

    @app.command()
    def discover(
        ctx: typer.Context,
        output: Annotated[
            Path | None,
            typer.Option("-o", "--output", help="Write the entry to this file instead of stdout."),
        ] = None,
        probe_time: Annotated[
            str, typer.Option("--probe-time", help="How long each measurement takes; `0s` measures nothing.")
        ] = "1s",
        with_torch: Annotated[
            bool,
            typer.Option("--torch", help="Measure what torch reaches per dtype, on GPUs too."),
        ] = False,
    ) -> None:
        """Probe this machine and draft its entry for a fleet file, each figure with its origin."""
        from costmodels.catalog import device_names
        from costmodels.discover import fleet_fragment, probe_machine
        from costmodels.units import UnitError, parse_seconds

        try:
            probe_time_s = parse_seconds(probe_time)
        except UnitError as error:
            raise typer.BadParameter(str(error), param_hint="--probe-time") from None
        console = console_of(ctx)
        console.detail(f"measuring for about {2 * probe_time_s:g} s")
        with console.progress() as progress:
            progress.update(f"measuring for about {2 * probe_time_s:g} s", force=True)
            facts = probe_machine(probe_s=0.0 if with_torch else probe_time_s)
            if with_torch:
                from executors.profiling.machine import framework_rates

                facts = replace(facts, framework=framework_rates(probe_s=probe_time_s))
        text = fleet_fragment(facts, known_types=device_names())
        data = {"machine": asdict(facts), "fragment": text}
        if output is None:
            console.emit(data, text)
            return
        write_atomically(output, text)
        console.emit(data | {"file": str(output)}, "")
        console.note(f"wrote {output}")
