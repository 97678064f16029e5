"""Tables for the terminal."""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from simv0.data.division.split_manifest import Division
    from simv0.evaluation.evaluated import Evaluated


def print_evaluation(found: "Evaluated") -> None:
    """Print its tables, and its sentences uncut: the terminal wraps them."""
    for part in found.parts():
        Console(soft_wrap=isinstance(part, Text)).print(part)


def split_table(division: "Division") -> None:
    """Print what each part of a divided manifest holds, and where it is."""
    parts = division.parts
    table = Table(header_style="bold")
    for column in ("", *(part.name for part in parts)):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("recordings", *(f"{len(part.recordings):,}" for part in parts))
    table.add_row("windows", *(f"{part.windows:,}" for part in parts))
    table.add_row("share (asked)", *(f"{part.share:.1%} ({part.asked:.1%})" for part in parts), end_section=True)
    for head, name in parts[0].classes:
        table.add_row(f"{head} {name}", *(f"{part.classes[head, name]:,}" for part in parts))
    Console().print(table)
    for part in parts:
        Console(soft_wrap=True).print(str(part.path), markup=False, highlight=False)
    if division.link is not None:
        way = "set data.dataset_kwargs={follow_links: true}, which lets the parts find their frames there"
        said = f"{division.link} is a link to {division.link.resolve()}: {way}"
        Console(soft_wrap=True).print(said, markup=False, highlight=False)


def watched(indices: list[int], split: str) -> Iterable[int]:
    """Go through the windows of a split that are read, with a bar on a terminal."""
    return track(
        indices, f"reading {split}", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )


def facts_table(facts: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print what `simv0 check` found, one area after the other."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("area", "what"):
        table.add_column(column)
    table.add_column("value", overflow="fold")
    for area, found in facts.items():
        for name, value in found.items():
            table.add_row(area, *_with_unit(name, value))
            area = ""
        table.add_section()
    Console().print(table)


def _with_unit(name: str, value: Any) -> tuple[str, str]:
    """A fact's name and value for display; the suffix of the name is its unit."""
    what, _, unit = name.rpartition("_")
    if value is None:
        return name.replace("_", " "), "unknown"
    if unit == "bytes":
        return what.replace("_", " "), f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"
    if unit == "seconds":
        return what.replace("_", " "), f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"
    if isinstance(value, bool):
        return name.replace("_", " "), "yes" if value else "no"
    return name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)
