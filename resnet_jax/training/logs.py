"""The log of a run: `metrics.jsonl` and TensorBoard events."""

import json
import os
import pathlib
import sys

from resnet_jax.errors import UserError


class MetricsLog:
    """Lines appended to `metrics.jsonl` and to TensorBoard events. A context manager.

    Args:
      workdir: run directory.
      after_step: lines of later steps, left by a run that was killed, are dropped (all, if it had saved none).
      enabled: if False, nothing is read or written (a process that is not the main one).
      test_curve: the test split is scored all along; otherwise only at the end, and those lines are dropped too.

    Attributes:
      train_scores: loss, accuracy and top5 of the training lines, by step.
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
        """Write one line, on the disk when this returns. The split is "train", "validation", "test" or "layers"."""
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
