"""Diagnostics of a run at work: `diagnostics.py` on its own batches, splits and devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.training.diagnostics import lesions, make_batch_moments, make_layer_diagnostics, statistics_of_moments
from resnet_jax.training.metrics import scores
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState


class Probes(NamedTuple):
    """Functions that look inside the net of a run.

    Attributes:
      layers: `(state, step)` -> the diagnostics of `LayerProbe`.
      after_training: by name in `result.json`, `(state, watch)` -> what was found.
    """

    layers: Callable
    after_training: dict[str, Callable]


def make_probes(program: Program, recipe) -> Probes:
    """The probes of a run.

    Args:
      program: compiled functions.
      recipe: `config.recipe.Recipe`, which says which of them are wanted after training.
    """

    def find_lesions(state, watch):
        return probe_lesions(program, recipe.model, state.variables, "test", watch)

    def find_batch_statistics(state, watch):
        batches = -(-recipe.num_examples // recipe.batch_size)
        model = recipe.create_model(momentum=0.0, **recipe.batch_statistics_axis(program.parallel))
        return probe_batch_statistics(program, model, state, batches, "test", watch)

    after_training = {}
    if recipe.wants_lesions:
        after_training["lesions"] = find_lesions
    if recipe.wants_precise_statistics and "batch_stats" in recipe.variable_shapes:
        after_training["batch_statistics"] = find_batch_statistics
    return Probes(LayerProbe(program, recipe).measure, after_training)


class LayerProbe:
    """Diagnoses the layers of a run while it trains; see `diagnostics.make_layer_diagnostics`."""

    def __init__(self, program: Program, recipe):
        self._program, self._recipe = program, recipe
        self._compiled = _on_batch(program, make_layer_diagnostics(recipe.model, mean=program.parallel.mean))

    def measure(self, state: TrainState, step: int) -> dict[str, dict[str, float]]:
        """The diagnostics on the batch that comes next, each in the order of the forward pass.

        A value that is not finite (the ratio of branch to skip where there is no skip) is left out.
        """
        found = jax.device_get(self._compiled(state, self._program.inputs(step)))
        layers = [layer.name for layer in self._recipe.layers]
        order = list(dict.fromkeys(name for layer in layers for name in (layer.split("/")[0], layer)))
        return {
            diagnostic: {name: float(values[name]) for name in order if np.isfinite(values.get(name, np.inf))}
            for diagnostic, values in found.items()
        }


def probe_lesions(program: Program, model, variables: dict, split: str, watch: Callable) -> dict:
    """Accuracy on a split with all blocks, without each ("removed"), and with neighbours exchanged ("swapped")."""

    def accuracy(variables):
        return scores(program.evaluate(variables, split))["accuracy"]

    found = {"accuracy": accuracy(variables), "removed": {}, "swapped": {}}
    cut = list(lesions(model, variables))
    for kind, name, lesioned in watch("lesions", cut, len(cut)):
        found[kind][name] = accuracy(lesioned)
    return found


def probe_batch_statistics(
    program: Program, model_without_momentum, state: TrainState, batches: int, split: str, watch: Callable
) -> dict[str, dict[str, float]]:
    """Scores on a split with the "running" statistics, and with "precise" ones over an epoch of training batches.

    Args:
      program: compiled functions.
      model_without_momentum: its running statistics become those of the batch.
      state: on the devices.
      batches: number of training batches, from the first on.
      split: name of the split.
      watch: see `progress.watch`.
    """
    moments_of_batch = make_batch_moments(model_without_momentum, mean=program.parallel.mean)
    compiled = _on_batch(program, moments_of_batch)
    total = jax.tree.map(np.zeros_like, jax.device_get(state.batch_stats))
    for step in watch("precise batch statistics", range(batches), batches):
        moments = jax.device_get(compiled(state.replace(step=np.int32(step)), program.inputs(step)))
        total = jax.tree.map(np.add, total, moments)
    precise = statistics_of_moments(jax.tree.map(lambda x: x / batches, total))
    variables = {"params": state.params, "batch_stats": program.parallel.replicate(precise)}
    return {
        "running": scores(program.evaluate(state.variables, split)),
        "precise": scores(program.evaluate(variables, split)),
    }


def _on_batch(program: Program, diagnose: Callable) -> Callable:
    """Compile `diagnose(variables, batch, key)` for training batches: a function of the state and the inputs."""
    return program.parallel.compile(lambda state, inputs: diagnose(state.variables, *program.batch_of(state, inputs)))
