"""Estimates of the time that runs take."""

import json
import math

import ml_collections

from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys
from resnet_jax.config.recipe import Recipe
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.training.replicas import seconds_per_step

_TIMED_STEPS = 5


class Stopwatch:
    """Estimates the seconds of runs from their multiply-adds.

    Attributes:
      basis: what the estimates rest on, in words.

    Args:
      runs: (config, result or None) pairs. Finished runs give the rate; if there are none, a few steps of the
        smallest net are timed.
    """

    def __init__(self, runs: list[tuple[ml_collections.ConfigDict, dict | None]]):
        self._recipes = {}
        finished = [(self._work(config), result["seconds"]) for config, result in runs if result]
        if finished:
            self._seconds_per_work = sum(seconds for _, seconds in finished) / sum(work for work, _ in finished)
            self.basis = f"at the rate of the {len(finished)} runs that are finished"
            return
        smallest = min((self._recipe(config) for config, _ in runs), key=lambda recipe: recipe.multiply_adds)
        try:
            self._seconds_per_work = _seconds_per_image(smallest) / smallest.multiply_adds
            self.basis = (
                f"from {_TIMED_STEPS} steps of {smallest.model_settings['name']} on this machine; compilation, "
                "evaluation and diagnostics come on top"
            )
        except UserError as error:  # data that are not there yet
            self._seconds_per_work = math.nan
            self.basis = f"because: {error}"

    def seconds(self, config: ml_collections.ConfigDict) -> float:
        """Seconds of a whole run; NaN if that cannot be said."""
        return self._work(config) * self._seconds_per_work

    def _work(self, config) -> float:
        recipe = self._recipe(config)
        return recipe.multiply_adds * recipe.num_steps * recipe.batch_size

    def _recipe(self, config) -> Recipe:
        # A recipe traces its model, which takes a second for a deep one. Neither of these keys changes the work.
        key = json.dumps({**json.loads(config.to_json()), "seed": None, "optim": None})
        if key not in self._recipes:
            self._recipes[key] = make_recipe(config)
        return self._recipes[key]


def _seconds_per_image(recipe: Recipe) -> float:
    use_compilation_cache()
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(recipe.config.seed)[0])
    state = assembly.parallel.replicate(initial_state(recipe))
    return seconds_per_step(program, state, _TIMED_STEPS) / recipe.batch_size
