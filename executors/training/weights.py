"""A folder with a model's weights as transformers writes it; only the tensors asked for are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from executors.training.families import Family
from policies.errors import Fault, InputError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class WeightFolder:
    """Tensors by their names in the whole model.

    Raises:
        InputError: `bad-weights`: the folder has no safetensors weights, or its index can't be read.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        self._folder = folder
        self._family = family
        self._file_of = _files(folder)

    def read(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Tensors of these names and shapes as private copies.

        Raises:
            InputError: `bad-weights`, with one fault for each tensor that is missing or has another shape.
        """
        faults: list[Fault] = []
        read: dict[str, torch.Tensor] = {}
        for name, shape in shapes.items():
            tensor = self._read_one(name, shape, dtype, faults)
            if tensor is not None:
                read[name] = tensor
        if faults:
            raise _refused(self._folder, faults)
        return read

    def require_no_block(self, block_name: str) -> None:
        """Refuse weights of a block beyond the model's last one.

        Raises:
            InputError: `bad-weights`.
        """
        for name in (block_name, self._without_prefix(block_name)):
            extra = next((each for each in self._file_of if each.startswith(f"{name}.")), None)
            if extra is not None:
                place = f"{self._folder / self._file_of[extra]}: {extra}"
                fault = Fault(place=place, value="present", limit="no such block in the planned model")
                raise _refused(self._folder, [fault])

    def _read_one(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, faults: list[Fault]
    ) -> torch.Tensor | None:
        stored = self._stored_name(name)
        experts = self._family.experts
        parts = experts.parts(name, shape[0]) if experts is not None and stored is None else None
        if parts is None:
            return self._tensor(stored, name, shape, dtype, faults)
        rows = (shape[1] // len(parts[0]), *shape[2:])
        merged = torch.empty(shape, dtype=dtype)
        for e, names in enumerate(parts):
            tensors = [self._tensor(self._stored_name(n), n, rows, dtype, faults) for n in names]
            if not faults:
                merged[e] = torch.cat(tensors)
        return merged

    def _tensor(
        self,
        stored: str | None,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        faults: list[Fault],
    ) -> torch.Tensor | None:
        """The tensor called `stored`; where that is None or its shape differs, a fault."""
        if stored is None:
            where = self._folder / (_INDEX if (self._folder / _INDEX).exists() else _WHOLE)
            faults.append(Fault(place=f"{where}: {name}", value="missing", limit=f"shape {list(shape)}"))
            return None
        from safetensors import SafetensorError, safe_open

        path = self._folder / self._file_of[stored]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                found = tuple(file.get_slice(stored).get_shape())
                if found == shape:
                    return file.get_tensor(stored).to(dtype, copy=True)
        except (OSError, SafetensorError) as error:
            faults.append(Fault(place=f"{path}: {stored}", value=str(error), limit="a readable tensor"))
            return None
        faults.append(
            Fault(place=f"{path}: {stored}", value=f"shape {list(found)}", limit=f"shape {list(shape)}")
        )
        return None

    def _stored_name(self, name: str) -> str | None:
        """What this folder calls a tensor, or None where it hasn't got it."""
        names = [name, self._family.old_names.get(name, name)]
        if self._family.experts is not None:
            names.append(self._family.experts.stored_name(name))
        names += [self._without_prefix(each) for each in names]
        return next((each for each in names if each in self._file_of), None)

    def _without_prefix(self, name: str) -> str:
        return name.removeprefix(self._family.prefix)


def _files(folder: Path) -> dict[str, str]:
    """Names of all tensors with the file each stands in."""
    from safetensors import SafetensorError, safe_open

    index, whole = folder / _INDEX, folder / _WHOLE
    try:
        if index.exists():
            return _weight_map(index)
        with safe_open(whole, framework="pt", device="cpu") as file:
            return dict.fromkeys(file.keys(), _WHOLE)
    except FileNotFoundError as error:
        fault = Fault(place=str(folder), value="no such file", limit=f"{_WHOLE} or {_INDEX}")
        raise _refused(folder, [fault]) from error
    except (OSError, SafetensorError, ValueError) as error:
        fault = Fault(
            place=str(index if index.exists() else whole),
            value=str(error),
            limit="weights as transformers writes them",
        )
        raise _refused(folder, [fault]) from error


def _weight_map(index: Path) -> dict[str, str]:
    content: Any = json.loads(index.read_text())
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise ValueError("weight_map doesn't map tensors to files of this folder")
    return files


def _refused(folder: Path, faults: list[Fault]) -> InputError:
    return InputError(
        "bad-weights",
        f"the weights in {folder} don't fit the planned model: {faults[0].place}: "
        f"{faults[0].value}, expected {faults[0].limit}"
        + (f", and {len(faults) - 1} more" if len(faults) > 1 else ""),
        faults=faults,
        hint="start from the checkpoint whose config.json was planned, saved as safetensors",
    )
