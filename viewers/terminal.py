"""A viewer for a console, over ssh say: amplitude and phase in half-line blocks of colour, and the misfit as a line of bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ptystream.publish import measured
from ptystream.publish.display import VISIBLE_COVERAGE, Display, Picture
from ptystream.publish.heartbeat import ENDED
from ptystream.publish.snapshot import Snapshot

from .client import OVER, Client
from .hearing import SILENT

BARS = "▁▂▃▄▅▆▇█"
SHADES = " .:-=+*#%@"
"""For what has no colours."""
TEXT_LINES = 5
"""Of the screen, beside the pictures and the figures of quality."""
LONGEST_SIDE = 400
"""Columns of a picture, at the most: a wider terminal shows no more of it."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture in the pixels of a console: two a line."""

    colours: Pixels
    """Shape (y, x, 3)."""
    levels: NDArray[np.float64]
    """The same from 0 to 1, NaN where nothing is shown. Shape (y, x)."""
    limit_rad: float = 0.0
    """Of a phase: levels go from minus this to this."""


def drawn(picture: Picture, coverage: Pixels | None, columns: int, lines: int, *, phase: bool) -> Drawn:
    """The first layer, cut to what was covered, as large as fits into `columns` × `lines`."""
    seen = np.ones(picture.amplitude.shape[1:], bool) if coverage is None else coverage > 255 * VISIBLE_COVERAGE
    if not seen.any():
        return Drawn(np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0)))
    rows, across = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, across[0] : across[-1] + 1]
    seen = seen[window]
    smaller = min(1.0, columns / seen.shape[1], 2 * lines / seen.shape[0])
    shape = max(1, int(seen.shape[0] * smaller)), max(1, int(seen.shape[1] * smaller))
    weight = averaged(seen.astype(float), shape)
    codes = (picture.phase if phase else picture.amplitude)[0][window]
    if phase:
        angle = np.angle(-averaged(np.where(seen, np.exp(2j * np.pi * codes / 256), 0), shape))  # code 0 stands for -π
        limit = max(1e-3, float(np.percentile(np.abs(angle[weight >= 0.5]), 99.5))) if (weight >= 0.5).any() else np.pi
        levels = np.clip(angle / (2 * limit) + 0.5, 0.0, 1.0)
    else:
        limit = 0.0
        levels = averaged(np.where(seen, codes, 0).astype(float), shape) / np.maximum(weight, 1e-9) / 255
    levels = np.where(weight >= 0.5, levels, np.nan)
    return Drawn(_coloured(levels, phase), levels, limit)


def averaged(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The means of the blocks that an array falls into, as many as `shape` says, which is not larger than its own."""
    for axis, count in enumerate(shape):
        edges = np.arange(count) * array.shape[axis] // count
        lengths = np.diff([*edges, array.shape[axis]])
        lengths = lengths[:, None] if axis == 0 else lengths[None, :]
        array = np.add.reduceat(array, edges, axis) / lengths
    return array


def _coloured(levels: NDArray[np.float64], phase: bool) -> Pixels:
    from matplotlib import colormaps

    made = colormaps["twilight" if phase else "gray"](np.nan_to_num(levels))[..., :3]
    return np.where(np.isnan(levels)[..., None], 0, np.round(255 * made)).astype(np.uint8)


def block(picture: Drawn, *, colour: bool = True) -> RenderableType:
    """For the console: with colours two pixels a character, one above the other; without, one."""
    if not colour:
        steps = np.nan_to_num(picture.levels[::2] * (len(SHADES) - 1)).round().astype(int)
        return Text("\n".join("".join(SHADES[k] for k in row) for row in steps))
    colours = picture.colours
    if len(colours) % 2:
        colours = np.concatenate([colours, np.zeros((1, *colours.shape[1:]), np.uint8)])
    segments = []
    for upper, lower in zip(colours[::2].tolist(), colours[1::2].tolist(), strict=True):
        styles = (Style(color=Color.from_rgb(*u), bgcolor=Color.from_rgb(*d)) for u, d in zip(upper, lower, strict=True))
        segments += [*(Segment("▀", style) for style in styles), Segment.line()]
    return Segments(segments)


def bars(values: NDArray[np.floating], width: int) -> str:
    """A curve as one line, its logarithm from its least to its largest value; of a longer one the means of its parts."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return ""
    logs = averaged(np.log(known)[None], (1, min(width, len(known))))[0].real
    spread = max(float(np.ptp(logs)), 1e-12)
    return "".join(BARS[int(k)] for k in np.round((logs - logs.min()) / spread * (len(BARS) - 1)))


def plain(text: str) -> str:
    """What a session sent, as one line without what a console would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def headline(about: Snapshot) -> str:
    """What a person asks first, in one line."""
    ledger, misfit = about.ledger, about.misfit[:, 0]
    expected = f"/{ledger['expected']}" if ledger.get("expected") else ""
    told = [f"{about.run}: {about.state}", f"{ledger.get('used', 0)}{expected} frames", f"iteration {about.iteration}"]
    told += [about.engine] if about.engine else []
    told += [f"misfit {misfit[-1]:.4g}"] if len(misfit) and np.isfinite(misfit[-1]) else []
    if about.newest_frame_ns is not None:
        told.append(f"newest frame {max(0.0, (time.time_ns() - about.newest_frame_ns) / 1e9):.1f} s old")
    return plain("  ".join(told))


def screen(shown: Display, columns: int, lines: int, *, colour: bool = True, session: str = "") -> RenderableType:
    """A whole screen: the headline, behind what is to be known of the `session`; amplitude and phase of the first object; the
    misfit so far."""
    in_metres = all(picture.pixel_size_m is not None for picture in shown.object.values())
    figures = measured.told(shown.about.quality, time.time_ns(), in_metres=in_metres)
    side, height = min((columns - 2) // 2, LONGEST_SIDE), max(1, lines - TEXT_LINES - len(figures))
    line = Text(headline(shown.about), style="bold", no_wrap=True, overflow="ellipsis")
    told: list[RenderableType] = [Text.assemble((f"{session}  ", "bold red"), line) if session else line]
    if shown.object:
        held, picture = next(iter(shown.object.items()))
        grid = Table.grid(padding=(0, 2, 0, 0))
        seen, name = shown.coverage.get(held), plain(held)
        pictures = [drawn(picture, seen, side, height, phase=phase) for phase in (False, True)]
        grid.add_row(Text(f"amplitude of {name}"), f"phase, ±{pictures[1].limit_rad:.2g} rad")
        grid.add_row(*(block(one, colour=colour) for one in pictures))
        told.append(grid)
    told += [Text(f"{name:<12} {plain(text)}", no_wrap=True, overflow="ellipsis") for name, text in figures.items()]
    misfit = bars(shown.about.misfit[:, 0], columns - 16)
    told.append(Text(f"misfit (log)  {misfit}" if misfit else "no iteration yet", no_wrap=True))
    return Group(*told)


def watch(endpoint: str, console: Console, *, run: str = "", keys: str | None = None, peer_keys: str | None = None) -> None:
    """Draw what a session publishes until its run is over, or ctrl-c. Where the output is no terminal, a line for each snapshot
    and the last picture, without colours."""
    with Client(endpoint, run=run, form="uint8", keys=keys, peer_keys=peer_keys) as client:
        if console.is_terminal:
            _live(client, console)
        else:
            _lines(client, console)


def _snapshots(client: Client, silent: float = 1.0) -> Iterator[Display | None]:
    """None where nothing came for a while, until a run is over or the session has ended."""
    ended = False
    while True:
        shown = client.latest(silent)
        yield shown  # type: ignore[misc]
        if ended and shown is None:
            return
        if shown is not None and shown.about.state in OVER:  # type: ignore[attr-defined]
            return
        ended = client.session.state == ENDED  # its last snapshot may still be on its way


def _live(client: Client, console: Console) -> None:
    with Live(Text(f"waiting for {client.endpoint}"), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        last: Display | None = None
        for shown in _snapshots(client):
            last = shown or last  # the same again: its ages go on where nothing comes any more
            session = client.session.text
            if last is not None:
                colour = console.color_system is not None
                live.update(screen(last, console.width, console.height, colour=colour, session=session), refresh=True)
            elif session:
                live.update(Text(f"waiting for {client.endpoint}: {session}"), refresh=True)


def _lines(client: Client, console: Console) -> None:
    last: Display | None = None
    before = ""
    for shown in _snapshots(client):
        if shown is not None:
            last = shown
            console.print(headline(shown.about), highlight=False, markup=False, soft_wrap=True)
        standing = client.session
        if standing.state != before and standing.state in (SILENT, ENDED):
            console.print(standing.text, highlight=False, markup=False)
        before = standing.state
    if last is not None:
        console.print(screen(last, console.width, 30, colour=False))
