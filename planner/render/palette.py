"""Colours, light and dark, and the style sheet made of them.

Tiers take the hues of Okabe and Ito, "Color Universal Design" (2008), lightened for dark text and darkened
for light text; tests hold the contrasts, and the distances for three kinds of colour blindness. Every class
is written out for both schemes without CSS variables, which many SVG programs don't know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shade:
    """One tier: the empty cell, the filled part of it, its outline."""

    tint: str
    fill: str
    edge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """All colours of one appearance."""

    page: str
    card: str
    card_edge: str
    site: str
    site_edge: str
    host_edge: str
    ink: str
    muted: str
    idle: str
    idle_edge: str
    crossing: str
    on_replica: str
    tiers: tuple[Shade, ...]
    replicas: tuple[str, ...]


LIGHT = Scheme(
    page="#ffffff",
    card="#f4f6f8",
    card_edge="#b9c1cb",
    site="#ffffff",
    site_edge="#d3d9e0",
    host_edge="#98a2ae",
    ink="#14181f",
    muted="#4f5965",
    idle="#e9ecef",
    idle_edge="#98a2ae",
    crossing="#b3261e",
    on_replica="#ffffff",
    tiers=(
        Shade(tint="#f1f9fe", fill="#b4dcf5", edge="#2577ab"),
        Shade(tint="#e0f3ec", fill="#33996a", edge="#006a50"),
        Shade(tint="#fdf1d8", fill="#f0bd45", edge="#8f6000"),
        Shade(tint="#f8e8f1", fill="#d078c3", edge="#97396f"),
        Shade(tint="#fbe6da", fill="#e8834a", edge="#a34300"),
        Shade(tint="#e2e9f6", fill="#7b9ddb", edge="#2a509a"),
        Shade(tint="#fbf9d6", fill="#e6df4a", edge="#716b00"),
    ),
    replicas=(
        "#1f4e9c",
        "#7a4b00",
        "#5b3fa0",
        "#00665a",
        "#9c1458",
        "#556000",
        "#40515e",
        "#8c3a14",
    ),
)
DARK = Scheme(
    page="#0f1216",
    card="#171c22",
    card_edge="#4a5562",
    site="#1d232b",
    site_edge="#38424e",
    host_edge="#66727f",
    ink="#eef1f5",
    muted="#aab4c0",
    idle="#262d36",
    idle_edge="#66727f",
    crossing="#ff8a80",
    on_replica="#0f1216",
    tiers=(
        Shade(tint="#10222a", fill="#215564", edge="#6cbceb"),
        Shade(tint="#0b231b", fill="#1b7c60", edge="#46c4a0"),
        Shade(tint="#241b05", fill="#684d07", edge="#ebb53c"),
        Shade(tint="#2e0f30", fill="#a325ac", edge="#e09ac2"),
        Shade(tint="#321c10", fill="#ba4b21", edge="#f09a63"),
        Shade(tint="#19233c", fill="#565cce", edge="#9ab4ea"),
        Shade(tint="#2b290b", fill="#62700c", edge="#d9d23f"),
    ),
    replicas=(
        "#9db9f0",
        "#e0b06a",
        "#c3b0f2",
        "#6fd0c2",
        "#f29bc0",
        "#c3cf6a",
        "#b4c3cf",
        "#f0a988",
    ),
)

# Font sizes in pixels by class; widths are estimated from the same table.
SIZES: Mapping[str, float] = {
    "h1": 19.0,
    "h2": 15.0,
    "body": 12.0,
    "small": 11.0,
    "tiny": 9.5,
    "cell": 9.0,
}
_WEIGHTS = {"h1": 650, "h2": 650}


def style_sheet() -> str:
    """The picture's CSS: sizes, the light scheme, and the dark one where the reader prefers it."""
    sizes = "".join(f".{name}{{font-size:{size:g}px}}" for name, size in SIZES.items())
    weights = "".join(f".{name}{{font-weight:{weight}}}" for name, weight in _WEIGHTS.items())
    fixed = (
        f"text{{font-family:{FONT}}}{sizes}{weights}.b{{font-weight:650}}"
        ".edge,.halo,.link,.wire{fill:none}.edge{stroke-width:1.6}.halo{stroke-width:5}"
        ".wire{stroke-width:1.6}.down{stroke-dasharray:5 3}.slow{stroke-dasharray:4 3}"
        ".aggregator{stroke-width:2.2}.standby{stroke-width:2.2;stroke-dasharray:3 2}"
        ".free{stroke-dasharray:2 2}"
    )
    return f"{fixed}{_scheme_css(LIGHT)}@media (prefers-color-scheme:dark){{{_scheme_css(DARK)}}}"


def _scheme_css(scheme: Scheme) -> str:
    rules = [
        f".page,.halo-page{{fill:{scheme.page}}}",
        f".card{{fill:{scheme.card};stroke:{scheme.card_edge}}}",
        f".site{{fill:{scheme.site};stroke:{scheme.site_edge}}}",
        f".host{{fill:none;stroke:{scheme.host_edge}}}",
        f".aggregator,.standby{{fill:none;stroke:{scheme.ink}}}",
        f"text,.ink{{fill:{scheme.ink}}}",
        f".muted{{fill:{scheme.muted}}}",
        f".idle{{fill:{scheme.idle};stroke:{scheme.idle_edge}}}",
        f".busy{{fill:{scheme.ink}}}",
        f".halo{{stroke:{scheme.site}}}.halo.outer{{stroke:{scheme.card}}}",
        f".link{{stroke:{scheme.muted}}}.tap{{fill:{scheme.muted}}}",
        f".wire{{stroke:{scheme.crossing}}}.wiretip,.crossing{{fill:{scheme.crossing}}}",
        f".hub{{fill:{scheme.page};stroke:{scheme.crossing};stroke-width:1.6}}",
        f".badge{{fill:{scheme.on_replica}}}",
    ]
    for i, shade in enumerate(scheme.tiers):
        rules.append(f".t{i}{{fill:{shade.tint};stroke:{shade.edge}}}")
        rules.append(f".f{i}{{fill:{shade.fill}}}.e{i}{{fill:none;stroke:{shade.edge}}}")
        rules.append(f".k{i}{{stroke:{shade.edge}}}")
    for i, hue in enumerate(scheme.replicas):
        rules.append(f".r{i}{{stroke:{hue}}}.p{i}{{fill:{hue}}}")
    return "".join(rules)


def tier_class(tier_i: int) -> int:
    """The colour of a tier; colours repeat after the last, letters don't."""
    return tier_i % len(LIGHT.tiers)


def replica_class(number: int) -> int:
    """The colour of a replica; colours repeat, numbers don't."""
    return number % len(LIGHT.replicas)
