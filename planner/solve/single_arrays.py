"""Arrays that the loops of the search for one replica work on, as plain tuples that machine code takes.

Legend: E table entries of a load box, P cells with entries, J candidate clusters, K device counts of the
clusters, Q stages left - 1, S sites, G layer signatures (the last one, always infinite, stands for none), L
layers, W interval lengths, B layer borders, X words of packed device counts, Z labels.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.solve.tables import FloatArray, IntArray

COST, FILL, PEAK, SYNC, KEY = 0, 1, 2, 3, 4
"""Figures of a front: cost so far with multipliers, fill seconds, repeats * slowest, largest sync, and cost +
the least load it may end with."""

BEFORE, ENTRY, BORDER, SITE = 0, 1, 2, 3
"""Origin of a front: the one before it (-1 at the start), its last stage's entry, border and site."""


class View(NamedTuple):
    """Entries and links of one mode up to a load. `load_per_fill` turns a hop's fill time into its load."""

    fill_E: FloatArray
    load_E: FloatArray
    template_E: IntArray
    first_P: IntArray
    cell_P: IntArray
    slot_QSG: IntArray
    window_LW: IntArray
    hop_BSS: FloatArray
    load_per_fill: float


class Clusters(NamedTuple):
    """Devices of class `class_K` that each candidate cluster takes, from `first_J[j]` to `first_J[j + 1]`."""

    first_J: IntArray
    class_K: IntArray
    count_K: IntArray


class Costs(NamedTuple):
    """What one run of the relaxed path problem leaves behind; `credit_S` is its input."""

    charge_J: FloatArray
    credit_S: FloatArray
    cost_QSG: FloatArray
    entry_QSG: IntArray
    stage_QLS: FloatArray
    onward_QSB: FloatArray


class Room(NamedTuple):
    """Capacity rows as fields of words: what clusters take, limits, the spare bit on top of each."""

    used_JX: IntArray
    limit_X: IntArray
    guard_X: IntArray


class Fronts(NamedTuple):
    """Fronts of chains: layers [0, border) with true device counts, packed."""

    figure_ZF: FloatArray
    used_ZX: IntArray
    origin_ZI: IntArray
