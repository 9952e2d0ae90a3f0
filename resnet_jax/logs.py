"""What a run writes (`metrics.jsonl`, TensorBoard events) and what people see while it trains."""

import datetime
import json
import os
import pathlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_jax.errors import UserError


class MetricsLog:
    """Appends lines to `metrics.jsonl` and to TensorBoard events. A context manager.

    `train_scores` holds loss, accuracy and top5 of the training lines by step.

    Args:
      workdir: of the run.
      enabled: if False, nothing is read or written (a process that is not the main one).
      after_step: lines of later steps, left by a run that was killed, are dropped (all, if it had saved none).
      test_curve: the test split is scored all along; otherwise only at the end, and those lines are dropped too.
    """

    def __init__(self, workdir: pathlib.Path, after_step: int, enabled: bool = True, test_curve: bool = False):
        self._enabled = enabled
        self.train_scores = {}
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        kept = [
            line
            for line in lines
            if after_step and line["step"] <= after_step and (test_curve or line["split"] != "test")
        ]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        for line in kept:
            self._remember(line)
        self._events = _summary_writer_class()(str(workdir), purge_step=after_step + 1 if lines else None)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._enabled:
            self._file.close()
            self._events.close()

    def write(self, split: str, step: int, epoch: float, values: dict[str, float | dict[str, float]]) -> None:
        """One line, on the disk when this returns. The split is "train", "validation", "test" or "layers"."""
        if not self._enabled:
            return
        line = {"step": step, "epoch": round(epoch, 6), "split": split, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._remember(line)
        for name, value in values.items():
            for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                self._events.add_scalar(f"{split}/{name}/{part}".rstrip("/"), number, step)

    def _remember(self, line: dict) -> None:
        if line["split"] == "train":
            self.train_scores[line["step"]] = {name: line[name] for name in ("loss", "accuracy", "top5")}


def _summary_writer_class():
    # tensorboardX imports torch where it is installed, for a second and for nothing that is used here.
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return SummaryWriter


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, without a last one that was cut off.

    Raises:
      UserError: another line is not what a run writes.
    """
    texts = pathlib.Path(path).read_text(errors="replace").split("\n")  # a whole line ends with one
    lines = []
    for number, text in enumerate(texts[:-1], start=1):
        try:
            line = json.loads(text)
            lines.append({"step": line["step"], "split": line["split"], **line})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: line {number} is not a line of metrics: {text[:60]!r}; mend or move it") from None
    return lines


def progress_bars(console: Console) -> Progress:
    """Progress bars on a terminal, nothing elsewhere. A context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=6),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        refresh_per_second=4,
    )


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere. A context manager.

    Args:
      console: for the lines.
      first_step, num_steps: of the run.
      bars: where the run's bar goes, among others; None for one of its own.
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
        if not self._console.is_terminal:
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
