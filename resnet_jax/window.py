"""Training metrics between two log lines."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from resnet_jax.errors import DivergedError
from resnet_jax.metrics import add_sums, means


class TrainingWindow:
    """Adds up the sums of the steps since the last log line, and the time they took.

    The sums of a dispatch are fetched when the next one has been handed to the device, so that it never waits.

    Args:
      notes: from a checkpoint, to go on from there; what is logged does not depend on where a run was interrupted.

    Attributes:
      damaged: how many images of the session could not be decoded.
    """

    def __init__(self, notes: dict | None = None):
        self._sums = dict(notes["sums"]) if notes and notes["sums"] else None
        self._seconds_before = notes["seconds"] if notes else 0.0
        self._start = time.perf_counter()
        self._pending = None
        self._watcher = ThreadPoolExecutor(1)  # sees when the device is done with a dispatch
        self._done = None
        self._programs = set()  # by their number of steps and the shapes of their input
        self.damaged = 0.0
        self._timed_images, self._timed_seconds = 0.0, 0.0  # of the whole session, without compilation and evaluation
        self.restart_clock()

    def add(self, step: int, sums: dict[str, jax.Array], shapes: tuple = ()) -> None:
        """Take the sums, (steps,) each, of a dispatch that ends after `step`; `shapes` are those of its input.

        Raises:
          DivergedError: the loss or the gradient of an earlier step is not finite.
        """
        previous, self._pending = self._pending, (step, sums)
        self._done = self._watcher.submit(_time_when_done, sums)
        self._collect(previous)
        program = (sums["count"].shape, shapes)
        if program not in self._programs:  # it was compiled just now, which is not training
            self._programs.add(program)
            self._collect_pending()
            self.restart_clock()

    def close(self) -> dict[str, float]:
        """Loss, accuracy, top5, images_per_second and input_wait since the last call.

        input_wait is the share of the time in which the device had nothing to do because its input was not there.
        """
        self._collect_pending()
        seconds = time.perf_counter() - self._clock
        values = means(self._sums)
        values["images_per_second"] = self._images / seconds
        values["input_wait"] = self._waited / seconds
        self._timed_images += self._images
        self._timed_seconds += seconds
        self._sums = None
        return values

    def notes(self) -> dict:
        """What a checkpoint must hold to go on: plain JSON."""
        self._collect_pending()
        sums = {name: float(value) for name, value in self._sums.items()} if self._sums else None
        return {"sums": sums, "seconds": self.seconds()}

    def seconds(self) -> float:
        """Wall time of the run, with that of the sessions before."""
        return self._seconds_before + time.perf_counter() - self._start

    def images_per_second(self) -> float | None:
        """Training throughput of this session, without compilation and evaluation."""
        return self._timed_images / self._timed_seconds if self._timed_images else None

    def restart_clock(self) -> None:
        """Do not count the time since the last step."""
        self._clock = time.perf_counter()
        self._images, self._waited = 0.0, 0.0

    @contextlib.contextmanager
    def waiting_for_input(self):
        """The time inside counts as waiting for input, from when the device is done with what it had."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        if self._done is not None:
            start = max(start, self._done.result() if self._done.done() else end)
        self._waited += end - min(start, end)

    def _collect_pending(self) -> None:
        pending, self._pending = self._pending, None
        self._collect(pending)

    def _collect(self, dispatch) -> None:
        if dispatch is None:
            return
        last_step, sums = dispatch
        sums = jax.device_get(sums)
        for name in ("loss", "grad_norm", "param_norm"):
            broken = np.flatnonzero(~np.isfinite(sums[name]))
            if len(broken):
                step = last_step - len(sums[name]) + 1 + broken[0]
                raise DivergedError(f"the {name} of step {step} is {sums[name][broken[0]]}")
        del sums["grad_norm"], sums["param_norm"]
        self.damaged += float(sums.pop("damaged").sum())
        self._sums = add_sums(self._sums, {name: value.sum(dtype=np.float64) for name, value in sums.items()})
        self._images += float(sums["count"].sum())


def _time_when_done(sums: dict[str, jax.Array]) -> float:
    jax.block_until_ready(sums)
    return time.perf_counter()
