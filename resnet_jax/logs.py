"""What a run writes (`metrics.jsonl`, TensorBoard events) and what people see while it trains."""

import datetime
import json
import pathlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsLog:
    """Appends lines to `metrics.jsonl` and to TensorBoard events. A context manager.

    Args:
      workdir: of the run.
      enabled: if False, nothing is read or written (a process that is not the main one).
      after_step: lines of later steps, left by a run that was killed, are dropped, and
        scores on the test split, which end a run: each is logged once.
    """

    def __init__(self, workdir: pathlib.Path, after_step: int, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        kept = [line for line in lines if line["step"] <= after_step and line["split"] != "test"]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._events = _summary_writer_class()(str(workdir), purge_step=after_step + 1 if kept else None)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._enabled:
            self._file.close()
            self._events.close()

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line, on the disk when this returns."""
        if not self._enabled:
            return
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 6), "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)


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
    """The lines of a `metrics.jsonl`, without a last one that was cut off."""
    lines = []
    for text in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, first_step: int, num_steps: int):
        self._console = console
        self._first_step = first_step
        self._start = time.perf_counter()
        self._next_update = 0.0 if console.is_terminal else float("inf")
        self._num_steps = num_steps
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            "train", total=num_steps, completed=first_step, epoch=0.0, values="compiling"
        )

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        if time.perf_counter() > self._next_update:
            self._progress.update(self._task, completed=step)
            self._next_update = time.perf_counter() + 0.2

    def train(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Show the training metrics of the last window."""
        text = (
            f"loss {values['loss']:.4f}  accuracy {values['accuracy']:.2%}  lr {values['learning_rate']:.3g}  "
            f"{values['images_per_second']:,.0f} images/s"
        )
        self._progress.update(self._task, completed=step, epoch=epoch, values=text)
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
