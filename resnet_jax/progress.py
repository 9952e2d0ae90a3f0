"""Progress bars of commands and runs."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

Watch = Callable[[str, Iterable, int], Iterable]  # see `watch`


class _TimeColumn(TimeRemainingColumn):
    """The time left; of a task whose end is not known, the time that it has taken."""

    def render(self, task):
        return TimeElapsedColumn().render(task) if task.total is None else super().render(task)


class _CountColumn(MofNCompleteColumn):
    """The number done, of the number in all; nothing of a task whose end is not known."""

    def render(self, task):
        return Text("") if task.total is None else super().render(task)


class _Bars(Progress):
    """Bars, and below them a line of values for each task that has some: beside a bar they would leave it no room."""

    def get_renderables(self):
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["values"]) for task in self.tasks if task.fields.get("values"))


def progress_bars(console: Console) -> Progress:
    """Progress bars of the terminal's width on a terminal or in a notebook, nothing elsewhere. A context manager."""
    return _Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _CountColumn(),
        _TimeColumn(compact=True),
        console=console,
        disable=not _is_live(console),
        refresh_per_second=4,
        expand=True,
    )


def watch(bars: Progress, name: str, items: Iterable, total: int) -> Iterator:
    """The items of a phase, with a bar as long as they are worked through.

    Args:
      bars: progress bars, which get one more.
      name: name of the phase.
      items: what is worked through.
      total: number of items.
    """
    task = bars.add_task(name, total=None)  # until the first is done: it compiles, or opens files
    try:
        for done, item in enumerate(items, start=1):
            yield item
            bars.update(task, completed=done, total=total)
    finally:
        bars.remove_task(task)


def unwatched(name: str, items: Iterable, total: int) -> Iterable:
    """The items, without a bar."""
    return items


def _is_live(console: Console) -> bool:
    """True where bars can be drawn; elsewhere lines are better."""
    # Rich draws bars in a notebook by ipywidgets.
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
