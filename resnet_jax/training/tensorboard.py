"""TensorBoard events of a run: its config, its hyperparameters and its metrics."""

import contextlib
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping

from flax.traverse_util import flatten_dict

_LAYERS = "within_layers"  # TensorBoard sorts by name: after those of the splits


class Events:
    """A file of events, each on the disk at once. Where they cannot be written, they end, and the run does not.

    Not tensorboardX's SummaryWriter: its thread dies of a full disk, and then its queue blocks the run.

    Args:
      workdir: run directory.
      config: plain JSON, shown as text and, flattened, as hyperparameters.
      purge_step: events of earlier files from this step on are void, or None.
    """

    def __init__(self, workdir: pathlib.Path, config: dict, purge_step: int | None = None):
        self._proto, summary, make_writer = _tensorboard()
        self._writer = None
        with self._until_it_fails():
            self._writer = make_writer(str(workdir / "events"))
            self._writer.flush()
            if purge_step is not None:
                start = self._proto.SessionLog(status=self._proto.SessionLog.START)
                self._write(self._proto.Event(step=purge_step, session_log=start))
        hyperparameters = {
            key: x if isinstance(x, bool | int | float) else str(x) for key, x in flatten_dict(config, sep=".").items()
        }
        experiment, session, _ = summary.hparams(hyperparameters, {"validation/accuracy": 0, "test/accuracy": 0})
        text = "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines())  # as Markdown shows code
        for described in (experiment, session, summary.text("config", text)):
            self._write(self._proto.Event(summary=described))

    def write(self, split: str, step: int, values: Mapping[str, float | Mapping[str, float]]) -> None:
        """Write scalars; their tags are SPLIT/NAME, and within_layers/NAME/LAYER."""
        group = _LAYERS if split == "layers" else split
        scalars = [{"tag": f"{group}/{tag}", "simple_value": x} for tag, x in flatten_dict(values, sep="/").items()]
        self._write(self._proto.Event(step=step, summary={"value": scalars}))

    def close(self) -> None:
        """Close the file."""
        with self._until_it_fails():
            if self._writer:
                self._writer.close()

    def _write(self, event) -> None:
        if self._writer:
            event.wall_time = time.time()
            with self._until_it_fails():
                self._writer.write_event(event)
                self._writer.flush()

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            warnings.warn(f"TensorBoard events end here: {error.strerror}; metrics.jsonl has all", stacklevel=2)


def _tensorboard():
    """(protocol buffers of events, functions that make summaries, class of the files)."""
    # tensorboardX imports torch where it is installed, for a second and for nothing that is used here.
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None
    try:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return event_pb2, summary, EventsWriter
