"""The log of a run: `metrics.jsonl` and TensorBoard events."""

import json
import pathlib
import warnings
from collections.abc import Callable

from resnet_jax.errors import UserError
from resnet_jax.workdir import naming, write_text


class MetricsLog:
    """Lines appended to `metrics.jsonl` and to TensorBoard events. A context manager.

    Args:
      workdir: run directory.
      make_events: from a step, whose events and later ones are void, or None; see `tensorboard.Events`.
      after_step: lines of later steps, left by a run that was killed, are dropped (all, if it had saved none).
      tolerant: keep lines that cannot be written, say so once, and write them later; otherwise it is an error.
      enabled: if False, nothing is read or written (a process that is not the main one).
      test_curve: the test split is scored all along; otherwise only at the end, and those lines are dropped too.

    Attributes:
      train_scores: loss, accuracy and top5 of the training lines, by step.

    Raises:
      OSError: `metrics.jsonl` cannot be written, without `tolerant`; of events that cannot, it is said once.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        make_events: Callable,
        after_step: int,
        enabled: bool = True,
        test_curve: bool = False,
        tolerant: bool = False,
    ):
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
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._file = path, path.open("ab", buffering=0)  # a buffer would be written again after an error
        self._tolerant, self._pending = tolerant, b""
        for line in kept:
            self._remember(line)
        self._events = make_events(after_step + 1 if lines else None)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._enabled:
            self._file.close()
            self._events.close()

    def write(self, split: str, step: int, epoch: float, values: dict[str, float | dict[str, float]]) -> None:
        """Write one line, on the disk when this returns. The split is "train", "validation", "test" or "layers"."""
        if not self._enabled:
            return
        line = {"step": step, "epoch": round(epoch, 6), "split": split, **values}
        self._pending += json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            with naming(self._path):
                while self._pending:
                    self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not self._tolerant:
                raise
            warnings.warn(f"{self._path}: {error.strerror}; its lines are written later", stacklevel=1)
        self._remember(line)
        self._events.write(split, step, values)

    def _remember(self, line: dict) -> None:
        if line["split"] == "train":
            self.train_scores[line["step"]] = {name: line[name] for name in ("loss", "accuracy", "top5")}


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """Lines of a `metrics.jsonl`, without a last one that was cut off.

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
