"""How long runs take, before they are run."""

import math
import time
from collections.abc import Callable

import jax
import ml_collections

from resnet_jax.build import Run, build_model, image_shape
from resnet_jax.data.sources import dataset_facts
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.models.profile import profile, totals
from resnet_jax.step import TrainState

_TIMED_STEPS = 5


class Stopwatch:
    """Estimates the seconds of runs from their multiply-adds.

    Attributes:
      basis: what the estimates rest on, in words.

    Args:
      runs: (config, result or None) of each. The rate is that of the finished ones; if there are none, a few steps of
        the smallest net are timed.
    """

    def __init__(self, runs: list[tuple[ml_collections.ConfigDict, dict | None]]):
        self._known = {}
        finished = [(self._work(config), result["seconds"]) for config, result in runs if result]
        if finished:
            self._seconds_per_work = sum(seconds for _, seconds in finished) / sum(work for work, _ in finished)
            self.basis = f"at the rate of the {len(finished)} runs that are finished"
            return
        smallest = min((config for config, _ in runs), key=self._multiply_adds)
        try:
            self._seconds_per_work = _seconds_per_image(smallest) / self._multiply_adds(smallest)
            self.basis = (
                f"from {_TIMED_STEPS} steps of {smallest.model.name} on this machine; compilation, evaluation and "
                "what is measured come on top"
            )
        except UserError as error:  # data that are not there yet
            self._seconds_per_work = math.nan
            self.basis = f"because: {error}"

    def seconds(self, config: ml_collections.ConfigDict) -> float:
        """Of a whole run; NaN if that cannot be said."""
        return self._work(config) * self._seconds_per_work

    def _work(self, config) -> float:
        train, data = config.train, config.data
        examples = dataset_facts(data.name, data.data_dir).splits["train"] - data.validation_size
        images = train.steps * train.batch_size if train.steps else train.epochs * examples
        return self._multiply_adds(config) * images

    def _multiply_adds(self, config) -> int:
        key = str((config.model, config.norm, image_shape(config)))
        if key not in self._known:
            self._known[key] = totals(profile(build_model(config), image_shape(config)))[1]
        return self._known[key]


def _seconds_per_image(config: ml_collections.ConfigDict) -> float:
    use_compilation_cache()
    run = Run(config)
    seconds = seconds_per_step(run.train_steps(1), run.initial_state(), run.feed(0), _TIMED_STEPS)
    return seconds / config.train.batch_size


def seconds_per_step(program: Callable, state: TrainState, feed: dict, steps: int) -> float:
    """Mean wall time of a call of a compiled `(state, feed) -> (state, sums)`, after a first one that compiles."""
    state, _ = program(state, feed)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = program(state, feed)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps
