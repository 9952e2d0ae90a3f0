"""Training metrics between two log lines, and the time that they took."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from resnet_jax.errors import DivergedError


class StepTimer:
    """Hands over the sums of each call, one call late, so that the device never waits for the host; and keeps time.

    Args:
      deliver: `(last step, sums)` takes the sums of a call on the host, (..., steps) each.
      seconds_before: wall time of earlier sessions.
    """

    def __init__(self, deliver: Callable[[int, dict], None], seconds_before: float = 0.0):
        self._deliver = deliver
        self._seconds_before = seconds_before
        self._start = time.perf_counter()
        self._pending = None
        self._watcher = ThreadPoolExecutor(1)  # sees when the device is done with a call
        self._done = None
        self._programs = set()  # by their number of steps and the shapes of their input
        self._timed_images, self._timed_seconds = 0.0, 0.0  # of the session, without compilation and evaluation
        self._lap = (None, {})
        self.restart()

    def add(self, step: int, sums: dict[str, jax.Array], inputs=()) -> None:
        """Take the sums, (..., steps) each, of a call with these sharded inputs that ends after `step`."""
        previous, self._pending = self._pending, (step, sums)
        self._done = self._watcher.submit(_time_when_done, sums)
        self._hand_over(previous)
        program = (sums["count"].shape, tuple(array.shape for array in jax.tree.leaves(inputs)))
        if program not in self._programs:  # it was compiled just now, which is not training
            self._programs.add(program)
            self.flush()
            self.restart()

    def flush(self) -> None:
        """Hand over the sums of the last call."""
        pending, self._pending = self._pending, None
        self._hand_over(pending)

    def discard(self) -> None:
        """Forget the sums of the last call."""
        self._pending = None
        self.restart()

    def lap(self, step: int) -> dict[str, float]:
        """`images_per_second` and `input_wait` up to a step; asked again for it, the same.

        `input_wait` is the share of the time in which the device had nothing to do because its input was not there.
        """
        if self._lap[0] != step:
            self.flush()
            seconds = time.perf_counter() - self._clock
            self._lap = (step, {"images_per_second": self._images / seconds, "input_wait": self._waited / seconds})
            self._timed_images += self._images
            self._timed_seconds += seconds
            self.restart()
        return self._lap[1]

    def restart(self) -> None:
        """Do not count the time since the last step."""
        self._clock = time.perf_counter()
        self._images, self._waited = 0.0, 0.0

    def seconds(self) -> float:
        """Wall time of the run, with that of earlier sessions."""
        return self._seconds_before + time.perf_counter() - self._start

    def images_per_second(self) -> float | None:
        """Training throughput of this session, without compilation and evaluation."""
        return self._timed_images / self._timed_seconds if self._timed_images else None

    @contextlib.contextmanager
    def waiting_for_input(self):
        """Count the time inside as waiting for input, from when the device is done with its last call."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        if self._done is not None:
            start = max(start, self._done.result() if self._done.done() else end)
        self._waited += end - min(start, end)

    def _hand_over(self, call) -> None:
        if call is None:
            return
        last_step, sums = call
        sums = jax.device_get(sums)
        self._images += float(sums["count"].reshape(-1, sums["count"].shape[-1])[0].sum())  # replicas have as many
        self._deliver(last_step, sums)


class Accumulator:
    """Adds up the sums of a run's steps since its last log line.

    Args:
      sums: from the notes of a checkpoint; the log does not depend on where a run was interrupted.
      skipped_in_a_row: number of the last steps that were skipped, from there too.
      max_skipped: maximum of it.

    Attributes:
      corrupt: number of images of the session that could not be decoded.
      skipped_in_a_row: number of the last steps that were skipped; see `nonfinite.skip_nonfinite`.
    """

    def __init__(self, sums: dict | None = None, skipped_in_a_row: int = 0, max_skipped: int = 0):
        self._sums = dict(sums) if sums else None
        self._max_skipped = max_skipped
        self.corrupt, self.skipped_in_a_row = 0.0, skipped_in_a_row

    def add(self, last_step: int, sums: dict[str, np.ndarray]) -> None:
        """Add the sums, (steps,) each, of a call that ends after `last_step`.

        Raises:
          DivergedError: a loss, gradient or weight is not finite, or too many steps in a row were skipped for that.
        """
        first_step = last_step - len(sums["count"]) + 1
        skipped = sums.get("skipped", np.zeros_like(sums["count"])) > 0
        for name in ("loss", "grad_norm", "param_norm"):
            broken = np.flatnonzero(~np.isfinite(sums[name]) & ~skipped)
            if len(broken):
                step = int(first_step + broken[0])
                raise DivergedError(f"the {name} of step {step} is {sums[name][broken[0]]}", step)
        self._count_skipped(first_step, skipped)
        self.corrupt += float(sums["corrupt"].sum())
        # In float64, so that the sum does not lose examples.
        new = {name: sums[name][~skipped].sum(dtype=np.float64) for name in ("loss", "correct", "correct5", "count")}
        new["skipped"] = skipped.sum(dtype=np.float64)
        self._sums = new if self._sums is None else {name: self._sums.get(name, 0) + new[name] for name in new}

    def _count_skipped(self, first_step, skipped):
        for step, is_skipped in enumerate(skipped, start=first_step):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0
            if self.skipped_in_a_row > self._max_skipped:
                raise DivergedError(
                    f"{self.skipped_in_a_row} steps in a row, up to step {step}, were not finite and were skipped, of "
                    f"at most {self._max_skipped} (train.max_nonfinite)"
                )

    def clear(self) -> None:
        """Forget the steps since the last log line."""
        self._sums = None

    def close(self) -> dict[str, float] | None:
        """`loss` (nats per example), `accuracy` and `top5` (fractions) since the last call, and the number of `skipped`
        steps, if there are any; None if all were.
        """
        sums, self._sums = self._sums, None
        if not sums["count"]:
            return None
        skipped = {"skipped": int(sums["skipped"])} if sums.get("skipped") else {}
        means = {name: float(sums[name]) / float(sums["count"]) for name in ("loss", "correct", "correct5")}
        return {"loss": means["loss"], "accuracy": means["correct"], "top5": means["correct5"], **skipped}

    def notes(self) -> dict | None:
        """The sums, as plain JSON."""
        return {name: float(value) for name, value in self._sums.items()} if self._sums else None


def _time_when_done(sums: dict[str, jax.Array]) -> float:
    jax.block_until_ready(sums)
    return time.perf_counter()
