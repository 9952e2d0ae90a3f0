"""The speed of the input and of the step, each alone, measured for a few seconds."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from resnet_jax.config.build import Assembly, initial_state, random_keys
from resnet_jax.config.recipe import Recipe

_SECONDS = 3.0
_TOGETHER = 3  # steps where several processes have to make equally many


class Rates(NamedTuple):
    """Images/s of all devices: of the loader alone, and of the compiled step alone."""

    input: float
    step: float


def measure_rates(recipe: Recipe) -> Rates:
    """Let a run make its first batches, and then take steps on one of them.

    Raises:
      UserError: data that are not there, or a config that cannot run here.
    """
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(recipe.config.seed)[0])
    loader, state = program.loader, assembly.parallel.replicate(initial_state(recipe))
    try:
        step = loader.batches_ahead + 1
        for first in range(step + 1):  # what lies ready would count as quick
            inputs = loader.inputs(first)

        def next_inputs():
            nonlocal step
            step += 1
            jax.block_until_ready(loader.inputs(step).sharded)

        input_seconds = _seconds(next_inputs)
        train_step = program.train_steps(1)
        state, _ = train_step(state, inputs)  # compiles

        def next_step():
            nonlocal state
            state, sums = train_step(state, inputs)
            jax.block_until_ready(sums)

        return Rates(recipe.batch_size / input_seconds, recipe.batch_size / _seconds(next_step))
    finally:
        loader.close()


def _seconds(function: Callable[[], None]) -> float:
    """Of a call, on average."""
    start, calls = time.perf_counter(), 0
    while True:
        function()
        calls, seconds = calls + 1, time.perf_counter() - start
        if calls >= _TOGETHER if jax.process_count() > 1 else seconds >= _SECONDS:
            return seconds / calls
