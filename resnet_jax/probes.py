"""Looks inside a run's net: the measures of `measure.py`, on a run's own batches and devices."""

import functools

import jax
import numpy as np

from resnet_jax.build import Run, build_model
from resnet_jax.measure import lesions, make_batch_statistics, make_layer_measures, statistics_of_moments
from resnet_jax.metrics import means
from resnet_jax.step import TrainState


class LayerProbe:
    """Measures the layers of a run while it trains; see `measure.make_layer_measures`."""

    def __init__(self, run: Run):
        self._run = run

    def is_due(self, step: int) -> bool:
        """Measure after this step? At the start, every `log.every_steps`, and at the end."""
        measured = self._run.config.measure.layers
        return measured and (step % self._run.config.log.every_steps == 0 or step == self._run.num_steps)

    def measure(self, state: TrainState, step: int) -> dict[str, dict[str, float]]:
        """The measures on the batch that comes next, each in the order of the forward pass.

        What is not finite (the ratio of branch to skip where there is no skip) is left out.
        """
        found = jax.device_get(self._program(state, self._run.feed(step)))
        return {
            measure: {name: float(values[name]) for name in self._order if np.isfinite(values.get(name, np.inf))}
            for measure, values in found.items()
        }

    @functools.cached_property
    def _program(self):
        run = self._run
        measures = make_layer_measures(run.model, mean=run.parallel.mean)
        return run.parallel.compile(
            lambda state, feed: measures(state.variables, *run.train_batch(feed, 0, state.step))
        )

    @functools.cached_property
    def _order(self) -> list[str]:
        layers = [layer.name for layer in self._run.layers]
        return list(dict.fromkeys(name for layer in layers for name in (layer.split("/")[0], layer)))


def probe_lesions(run: Run, variables: dict, split: str) -> dict:
    """Accuracy on a split with all blocks, without each ("removed"), and with neighbours exchanged ("swapped")."""
    scores = {"accuracy": means(run.evaluate(variables, split))["accuracy"], "removed": {}, "swapped": {}}
    for kind, name, damaged in lesions(run.model, variables):
        scores[kind][name] = means(run.evaluate(damaged, split))["accuracy"]
    return scores


def probe_batch_statistics(run: Run, state: TrainState, split: str) -> dict[str, dict[str, float]]:
    """Scores on a split with the "running" statistics, and with "precise" ones over an epoch of training batches."""
    axis = run.parallel.batch_statistics_axis(run.config.norm.scope, run.config.norm.group_size)
    moments_of_batch = make_batch_statistics(build_model(run.config, momentum=0.0, **axis), mean=run.parallel.mean)
    program = run.parallel.compile(
        lambda state, feed: moments_of_batch(state.variables, *run.train_batch(feed, 0, state.step))
    )
    batches = -(-len(run.splits["train"]) // run.config.train.batch_size)
    total = jax.tree.map(np.zeros_like, jax.device_get(state.batch_stats))
    for step in range(batches):
        moments = jax.device_get(program(state.replace(step=np.int32(step)), run.feed(step)))
        total = jax.tree.map(np.add, total, moments)
    precise = statistics_of_moments(jax.tree.map(lambda x: x / batches, total))
    variables = {"params": state.params, "batch_stats": run.parallel.replicate(precise)}
    return {"running": means(run.evaluate(state.variables, split)), "precise": means(run.evaluate(variables, split))}
