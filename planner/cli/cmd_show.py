"""`echelon show`: a plan as text, SVG or HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.console import console_of, write_atomically


def register(app: typer.Typer) -> None:
    """Add `echelon show`."""

    @app.command()
    def show(
        ctx: typer.Context,
        plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)],
        svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it as SVG.")] = None,
        html: Annotated[
            Path | None,
            typer.Option("--html", metavar="FILE", help="One self-contained page: picture and tables."),
        ] = None,
    ) -> None:
        """Show a plan as text, HTML or SVG.

        The text lists boundaries, replicas and stages in 80 columns; beyond 60 different stages only
        boundaries, and everything with -v. Showing proves nothing: `echelon check` does.
        """
        from planner.plan import read_plan
        from planner.render.page import render_html
        from planner.render.summary import summary_data, summary_text
        from planner.render.svg import render_svg
        from planner.render.view import plan_view

        console = console_of(ctx)
        view = plan_view(read_plan(plan))
        for path, render in ((svg, render_svg), (html, render_html)):
            if path is not None:
                write_atomically(path, render(view))
                console.detail(f"written: {path}")
        written = {name: str(path) for name, path in (("svg", svg), ("html", html)) if path is not None}
        data = {"file": str(plan), "written": written, **summary_data(view)}
        console.emit(data, summary_text(view, every_replica=console.verbose))
