"""CPU seconds per step of our DeepSpeed executor beside a pipeline written by hand, and beside plain PyTorch.

    python tests/bench/bench_overhead.py [--case CASE]... [--pairs N] [--blocks N] [--launches N]

Ranks are forked from one process that has imported everything; each has a core to itself, and the contestants
of a pair compute in turn, a few steps each. What counts are the steps after two that warm up, measured inside
each rank: CPU time of the whole process, summed over the ranks. `--launches` adds whole launches from the
command line, in which launcher, agent and runner show up too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "executors")]

import numpy as np  # noqa: E402
from forked import free_port, run_ranks  # noqa: E402

from bench.launched import compare_launches  # noqa: E402
from bench.overhead_cases import CASES, Prepared, prepare  # noqa: E402
from bench.turns import Blocks, Turns  # noqa: E402

BLOCKS = Blocks(count=10, steps_each=3, warm_up_steps=2)
PLAIN_RUNS = 3
RESAMPLES = 10_000
RUN_LIMIT_S = 900.0


Work = Callable[[int, Turns], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One contestant: `work(rank, turns)` runs on each of its ranks and calls `turns.after_step`."""

    name: str
    num_ranks: int
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: CPU seconds per step of all ranks in each block, wall seconds of each step, losses."""

    cpu_s: tuple[float, ...]
    step_s: tuple[float, ...]
    losses: tuple[float, ...]


def our_side(prepared: Prepared, folder: Path) -> Side:
    """The worker of `echelon launch`, in a run folder as the launcher prepares it."""
    launch = prepared.launch(folder, free_port())
    run_file = launch.spec.folder / "run.json"
    return Side(name="ours", num_ranks=launch.spec.layout.world_size, work=partial(_our_rank, run_file))


def _our_rank(run_file: Path, rank: int, turns: Turns) -> None:
    from executors import events
    from executors.layout import layout_of
    from executors.runfile import read_run
    from executors.training.place import take_place
    from executors.training.session import train

    log = events.rank_log(run_file.parent, rank)
    run = read_run(run_file)
    layout = layout_of(run.inputs.fleet, run.replica)

    def emit(event: events.Event) -> None:
        log(event)
        if event.kind is events.Kind.STEP:
            turns.after_step(event.data["loss"])

    take_place(run, layout, layout.ranks[rank])
    train(run, layout, layout.ranks[rank], emit)


def hand_side(prepared: Prepared) -> Side:
    """The pipeline written by hand."""
    from bench import hand_written_deepspeed

    return _script(prepared, "by_hand", hand_written_deepspeed.main, len(prepared.cut) - 1)


def plain_side(prepared: Prepared, num_ranks: int) -> Side:
    """Plain PyTorch, data parallel over the ranks."""
    from bench import hand_written_torch

    return _script(prepared, f"plain_{num_ranks}", hand_written_torch.main, num_ranks)


def _script(prepared: Prepared, name: str, main: Callable[..., Any], num_ranks: int) -> Side:
    port = free_port()

    def work(rank: int, turns: Turns) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        main(prepared.settings_file, turns.after_step)

    return Side(name=name, num_ranks=num_ranks, work=work)


def run_sides(sides: Sequence[Side], blocks: Blocks) -> list[Run]:
    """All sides in turn, the first one first; one run each."""
    seats = [(place, rank) for place, side in enumerate(sides) for rank in range(side.num_ranks)]
    barrier = multiprocessing.get_context("fork").Barrier(len(seats))

    def one(seat: int) -> Turns:
        place, rank = seats[seat]
        side = sides[place]
        names = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": side.num_ranks, "LOCAL_SIZE": side.num_ranks
        }  # fmt: skip
        os.environ.update({name: str(value) for name, value in names.items()})
        # DeepSpeed prints its layers.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        turns = Turns(blocks=blocks, num_sides=len(sides), place=place, barrier=barrier)
        side.work(rank, turns)
        turns.barrier = None
        return turns

    answers = run_ranks(len(seats), one, group=False, deadline_s=RUN_LIMIT_S)
    return [
        _run_of([turns for turns, (at, _) in zip(answers, seats, strict=True) if at == place])
        for place in range(len(sides))
    ]


def _run_of(ranks: Sequence[Turns]) -> Run:
    first = ranks[0]
    per_block = zip(*(turns.cpu_s for turns in ranks), strict=True)
    return Run(
        cpu_s=tuple(sum(block) / first.blocks.steps_each for block in per_block),
        step_s=tuple(first.step_s),
        losses=tuple(first.losses),
    )


def get_ready() -> None:
    """Import what ranks need, quietly, before any of them is forked."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    warnings.simplefilter("ignore")
    import deepspeed
    import transformers

    import executors.ds_pipeline.engine
    import executors.training.session  # noqa: F401
    from bench import hand_written_deepspeed, hand_written_torch  # noqa: F401

    # An operator for inference that would be compiled at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    transformers.utils.logging.disable_progress_bar()


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median (percentiles of resampled pairs)."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_of(mine: Run, theirs: Run) -> float:
    """Median over the blocks of a pair, each compared with the one beside it."""
    return statistics.median(a / b for a, b in zip(mine.cpu_s, theirs.cpu_s, strict=True))


def compare(
    prepared: Prepared, folder: Path, blocks: Blocks, num_pairs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Pairs of runs in fresh processes; in each pair another one goes first."""
    pairs: list[tuple[Run, Run]] = []
    ratios: list[float] = []
    for i in range(num_pairs):
        sides = [our_side(prepared, folder / f"pair-{i}"), hand_side(prepared)]
        if i % 2 == 0:
            mine, theirs = run_sides(sides, blocks)
        else:
            theirs, mine = run_sides(sides[::-1], blocks)
        pairs.append((mine, theirs))
        ratios.append(ratio_of(mine, theirs))
        say(
            f"  pair {i + 1:2d}  ours {1e3 * statistics.median(mine.cpu_s):7.1f}  by hand "
            f"{1e3 * statistics.median(theirs.cpu_s):7.1f} CPU ms per step  ratio {ratios[-1]:.4f}  "
            f"load {os.getloadavg()[0]:.1f}"
        )
    low, high = interval(ratios)
    mine, theirs = pairs[0]
    return {
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "losses": [mine.losses[0], mine.losses[-1]],
        "losses_apart_frac": max(abs(a - b) / b for a, b in zip(mine.losses, theirs.losses, strict=True)),
        "ours": _summary([pair[0] for pair in pairs], prepared.tokens_per_step),
        "by_hand": _summary([pair[1] for pair in pairs], prepared.tokens_per_step),
    }


def against_plain(prepared: Prepared, folder: Path, blocks: Blocks, num_runs: int) -> dict[str, Any]:
    """Our worker and plain PyTorch in turn, alone and data parallel."""
    runs: list[list[Run]] = []
    for i in range(num_runs):
        sides = [our_side(prepared, folder / f"plain-{i}"), plain_side(prepared, 1), plain_side(prepared, 2)]
        runs.append(run_sides(sides, blocks))
    names = ("beside_plain", "plain_1", "plain_2")
    return {
        name: _summary(side, prepared.tokens_per_step)
        for name, side in zip(names, zip(*runs, strict=True), strict=True)
    }


def _summary(runs: Sequence[Run], tokens: int) -> dict[str, float]:
    """Median CPU seconds per step, tokens/s at the best and at the median step of all runs."""
    step_s = [seconds for run in runs for seconds in run.step_s]
    return {
        "cpu_s": statistics.median(seconds for run in runs for seconds in run.cpu_s),
        "best_tokens_per_s": tokens / min(step_s),
        "median_tokens_per_s": tokens / statistics.median(step_s),
    }


def figures(
    name: str, *, num_pairs: int, blocks: Blocks, num_launches: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything measured of one case."""
    get_ready()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = prepare(name, folder, blocks.steps)
        (replica,) = prepared.plan.boundaries[0].replicas
        say(
            f"{name}: cut {','.join(map(str, prepared.cut))}, {replica.micro_batches} x "
            f"{replica.micro_batch_size} sequences, {prepared.tokens_per_step} tokens per step; "
            f"{blocks.count} x {blocks.steps_each} steps in turn after {blocks.warm_up_steps}"
        )
        found = compare(prepared, folder, blocks, num_pairs, say)
        found |= against_plain(prepared, folder, blocks, PLAIN_RUNS)
        found["launches"] = compare_launches(prepared, folder, num_launches, blocks.warm_up_steps, say)
    return {"case": name, "num_pairs": num_pairs, "steps": blocks.count * blocks.steps_each, **found}


def table(found: dict[str, Any]) -> list[str]:
    """The figures of a case in words."""
    names = {
        "ours": "echelon's worker",
        "by_hand": "DeepSpeed by hand",
        "beside_plain": "echelon's worker, again",
        "plain_1": "PyTorch, 1 process",
        "plain_2": "PyTorch, 2 x DDP",
    }
    lines = [
        f"  ratio {found['ratio']:.4f}, 95 % interval {found['ratio_low']:.4f} to {found['ratio_high']:.4f}, "
        f"{found['num_pairs']} pairs; losses {found['losses'][0]:.4f} to {found['losses'][1]:.4f}, "
        f"at most {found['losses_apart_frac']:.1e} apart",
        f"  {'':26}{'CPU ms/step':>12}{'tokens/s best':>15}{'median':>9}",
    ]
    for key, label in names.items():
        row = found[key]
        lines.append(
            f"  {label:26}{1e3 * row['cpu_s']:12.1f}{row['best_tokens_per_s']:15.0f}"
            f"{row['median_tokens_per_s']:9.0f}"
        )
    return lines


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench_overhead.py", description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=BLOCKS.count, help="of 3 steps each, in a pair")
    parser.add_argument("--launches", type=int, default=0, help="pairs of whole launches, too")
    wanted = parser.parse_args(argv)
    blocks = replace(BLOCKS, count=wanted.blocks)
    for name in wanted.case or CASES:
        found = figures(
            name,
            num_pairs=wanted.pairs,
            blocks=blocks,
            num_launches=wanted.launches,
            say=partial(print, flush=True),
        )
        print("\n".join(table(found)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
