"""Screens, progress bars and lines: a run as people see it."""

import datetime
import importlib.util
import os
import pathlib
import shlex
import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def start_screen(rows: Mapping[str, str]) -> Table:
    """One screen before training: devices, model, data, length and schedule, and the run directory."""
    return _two_columns("resnet_jax", rows)


def end_screen(result: dict, workdir: pathlib.Path) -> Group:
    """One screen after training: best and last scores, time, files and the next command to try."""
    rate = result["images_per_second"]
    folder = min(os.path.relpath(workdir), str(workdir), key=len)  # short enough to be copied from one line
    quoted = shlex.quote(folder)
    return Group(
        _scores(result),
        _two_columns(
            None,
            {
                "time": f"{datetime.timedelta(seconds=round(result['seconds']))}"
                + (f", training at {rate:,.0f} images/s" if rate else ""),
                "curves": os.path.join(folder, "curves.png"),
                "metrics": os.path.join(folder, "metrics.jsonl"),
                "checkpoints": os.path.join(folder, "checkpoints"),
                "try next": f"python -m resnet_jax.evaluate {quoted}\ntensorboard --logdir {quoted}",
            },
        ),
    )


def _scores(result: dict) -> Table:
    table = Table(title=f"Results on {result['data']}", title_justify="left")
    with_top5 = result.get("classes", 1000) > 5  # else it is always 100%
    for column in ("weights", "step", "split", "accuracy", *(["top-5"] if with_top5 else []), "loss"):
        table.add_column(column, justify="left" if column in ("weights", "split") else "right")
    # Without a validation split nothing is chosen: the best weights are the last.
    for weights in ("last", "best") if "validation" in result["best"] else ("last",):
        for split in ("train", "validation", "test"):
            for prefix, note in (("", ""), ("ema_", ", moving average")):
                values = result[weights].get(split) or {}
                if f"{prefix}accuracy" in values:
                    table.add_row(
                        weights + note,
                        f"{result[weights]['step']:,}",
                        "train, while training" if split == "train" else split,
                        f"{values[f'{prefix}accuracy']:.2%}",
                        *([f"{values[f'{prefix}top5']:.2%}"] if with_top5 else []),
                        f"{values[f'{prefix}loss']:.4f}",
                    )
    return table


def _two_columns(title: str | None, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def progress_bars(console: Console) -> Progress:
    """Progress bars on a terminal or in a notebook, nothing elsewhere. A context manager."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=6),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[values]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not _is_live(console),
        refresh_per_second=4,
    )


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere. A context manager.

    Args:
      console: for the lines.
      first_step, num_steps: where the bar begins and ends.
      bars: the run's bar goes among these; None for one of its own.
    """

    def __init__(self, console: Console, first_step: int, num_steps: int, bars: Progress | None = None):
        self._console = console
        self._first_step = first_step
        self._start = time.perf_counter()
        self._num_steps = num_steps
        self._bars = bars or progress_bars(console)
        self._owns_bars = bars is None
        self._next_update = float("inf") if self._bars.disable else 0.0
        self._compiling = True
        self._task = self._bars.add_task("train", total=num_steps, completed=first_step, values="compiling")

    def __enter__(self) -> "TrainingDisplay":
        if self._owns_bars:
            self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self._owns_bars:
            self._bars.stop()
        else:
            self._bars.remove_task(self._task)

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        if time.perf_counter() > self._next_update:
            if self._compiling:
                self._bars.update(self._task, values="training")
                self._compiling = False
            self._bars.update(self._task, completed=step)
            self._next_update = time.perf_counter() + 0.2

    def train(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Show the training metrics of the last window."""
        text = (
            f"loss {values['loss']:.3g} acc {values['accuracy']:.1%} lr {values['learning_rate']:.2g} "
            f"{values['images_per_second']:,.0f} img/s wait {values['input_wait']:.0%}"
        )
        self._bars.update(self._task, completed=step, values=text)
        if not _is_live(self._console):
            elapsed = time.perf_counter() - self._start
            left = elapsed / (step - self._first_step) * (self._num_steps - step)
            self.say(
                f"step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}  "
                f"left {datetime.timedelta(seconds=round(left))}"
            )

    def evaluation(self, split: str, epoch: float, values: dict[str, float]) -> None:
        """Show metrics of an evaluation."""
        text = "  ".join(
            f"{name} {value:.4f}" if name.endswith("loss") else f"{name} {value:.2%}" for name, value in values.items()
        )
        self.say(f"epoch {epoch:6.1f}  {split}: {text}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _is_live(console: Console) -> bool:
    # Rich draws bars in a notebook by ipywidgets; without them lines are better.
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
