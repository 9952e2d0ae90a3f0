"""Tables of checkpoints."""

import pathlib

from rich.console import Console
from rich.table import Table

from resnet_jax.checkpoint.manifest import Manifest
from resnet_jax.checkpoint.tools import differences, list_steps, saved_steps, verify
from resnet_jax.commands import print_whole, titled_table
from resnet_jax.workdir import shown

_MAX_ROWS = 30


def print_steps(console: Console, path: pathlib.Path) -> None:
    """The steps of a run: scores, size, time, and what is wrong."""
    steps = list_steps(path)
    whole = [listed for listed in steps if listed.problem is None]
    best = saved_steps(path).best() if whole and len(steps) > 1 else None
    table = _table(shown(path), "step", "validation", "size", "saved", "state")
    for listed in steps:
        state = shown(listed.problem or "") or ("best" if listed.path.name == str(best) else "saved")
        scores = _scores(listed.manifest) if listed.manifest else ""
        size = f"{listed.size / 1e6:,.1f} MB"
        table.add_row(listed.path.name, scores, size, f"{listed.saved:%Y-%m-%d %H:%M:%S}", state)
    print_whole(console, table)


def print_verified(console: Console, path: pathlib.Path) -> list[str]:
    """Verify and print each step; return the names of corrupt ones."""
    corrupt = []
    for folder, problem in verify(path):
        console.print(shown(problem or f"checkpoint {folder} is whole"), soft_wrap=True)
        corrupt += [folder.name] if problem else []
    return corrupt


def print_differences(console: Console, left: pathlib.Path, right: pathlib.Path) -> None:
    """The arrays by which two checkpoints differ."""
    found, equal = differences(left, right)
    if found:
        table = _table("arrays that differ", "array", shown(left), shown(right), "largest difference")
        for each in found[:_MAX_ROWS]:
            table.add_row(each.name, each.left, each.right, "" if each.largest is None else f"{each.largest:.3g}")
        print_whole(console, table)
    more = f" ({len(found) - _MAX_ROWS} not shown)" if len(found) > _MAX_ROWS else ""
    console.print(f"{len(found)} arrays differ{more}, {equal} are equal")


def _scores(manifest: Manifest) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in (manifest.metrics or {}).items()) or "not evaluated"


def _table(title: str, *columns: str) -> Table:
    table = titled_table(title)
    for column in columns:
        table.add_column(column)
    return table
