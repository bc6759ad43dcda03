"""`echelon init`: starter files, a bundled example, or a fleet drafted from a hostfile or from Slurm."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.console import Console, console_of, write_atomically
from policies.errors import EchelonError, InputError

FILE_NAMES = ("fleet.yaml", "model.yaml", "policy.yaml")
STARTER = "starter"


class Origin(StrEnum):
    """What a fleet can be drafted from."""

    HOSTFILE = "hostfile"
    SLURM = "slurm"


def register(app: typer.Typer) -> None:
    """Add `echelon init`."""

    @app.command()
    def init(
        ctx: typer.Context,
        path: Annotated[
            Path | None,
            typer.Argument(help="The folder to fill; with --from the file to read.", show_default=False),
        ] = None,
        example: Annotated[str | None, typer.Option("--example", help="Copy this bundled example.")] = None,
        origin: Annotated[
            Origin | None,
            typer.Option(
                "--from", help="Draft a fleet from a DeepSpeed hostfile or from `scontrol show nodes`."
            ),
        ] = None,
        output: Annotated[
            Path | None, typer.Option("-o", "--output", help="Where the draft goes instead of stdout.")
        ] = None,
        device: Annotated[
            str | None,
            typer.Option("--device", help="Catalog type of the devices, where the source is silent."),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    ) -> None:
        """Write starter files from a bundled example, or draft a fleet file.

        Without options, the folder gets a commented fleet.yaml, model.yaml, policy.yaml and job.yaml to
        fill in.
        """
        console = console_of(ctx)
        if origin is None:
            if output is not None or device is not None:
                raise typer.BadParameter("only with --from", param_hint="--output, --device")
            _copy_example(console, STARTER if example is None else example, path, force=force)
            return
        if example is not None:
            raise typer.BadParameter("not together with --from", param_hint="--example")
        if path is None:
            raise typer.BadParameter(f"name the file to read: --from {origin.value} FILE", param_hint="PATH")
        _draft(console, origin, path, output, device=device, force=force)


def _copy_example(console: Console, name: str, folder: Path | None, *, force: bool) -> None:
    """Put the files of an example into `folder`, all or none of them."""
    texts = _example_texts(name)
    if folder is None:
        raise typer.BadParameter(
            f"name the folder to fill: echelon init --example {name} DIR", param_hint="PATH"
        )
    targets = {folder / file_name: text for file_name, text in texts.items()}
    _require_absent([*targets], force=force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            "output-not-writable", f"can't create folder `{folder}`: {reason}", hint="name another folder"
        ) from error
    for target, text in targets.items():
        write_atomically(target, text)
    files = [str(target) for target in targets]
    console.emit({"example": name, "files": files}, "\n".join(files))
    console.note(f"next: echelon solve {' '.join(files[: len(FILE_NAMES)])} -o plan.json")


def _example_texts(name: str) -> dict[str, str]:
    """The files of a bundled example.

    Raises:
        EchelonError: `no-such-example`, listing those there are.
    """
    from planner.examples.bundled import example_names, example_texts

    known = example_names()
    if name not in known and name != STARTER:
        from planner.faults import nearest

        listed = ", ".join(f"`{known_name}`" for known_name in known)
        near = nearest(name, known)
        hint = (
            f"{near} the examples are {listed}"
            if near.startswith("did you")
            else f"the examples are {listed}"
        )
        raise InputError("no-such-example", f"there is no example `{name}`", hint=hint)
    return example_texts(name)


def _draft(
    console: Console, origin: Origin, source: Path, output: Path | None, *, device: str | None, force: bool
) -> None:
    """Read a hostfile or Slurm's output and give the fleet drafted from it."""
    from planner.drafts import DRAFTS, render_fleet, require_device
    from planner.files import read_text

    if device is not None:
        require_device(device)
    if output is not None:
        _require_absent([output], force=force)
    hosts = DRAFTS[origin.value](read_text(source), place=str(source), device=device)
    text = render_fleet(hosts, name="my-fleet", origin=f"{origin.value} file {source.name}")
    num_assumed = text.count("# assumed")
    if output is None:
        console.emit({"hosts": len(hosts), "assumed": num_assumed, "fleet": text}, text)
    else:
        write_atomically(output, text)
        console.emit({"hosts": len(hosts), "assumed": num_assumed, "file": str(output)}, str(output))
    console.note(f"{num_assumed} values are assumed: look for `# assumed` and correct them")


def _require_absent(targets: list[Path], *, force: bool) -> None:
    """Nothing that exists is overwritten unless asked for."""
    present = [str(target) for target in targets if target.exists() or target.is_symlink()]
    if present and not force:
        raise FileExistsFault(
            "file-exists", f"would overwrite {', '.join(present)}", hint="name another place, or add --force"
        )


class FileExistsFault(EchelonError):
    """A file that would be overwritten."""

    exit_code = InputError.exit_code
