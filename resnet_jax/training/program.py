"""The compiled functions of a run, or of K replicas by `vmap`."""

import copy
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.order import StepInputs
from resnet_jax.training.parallel import DataParallel


class Program:
    """Training and evaluation on all devices.

    Args:
      train_step: see `step.make_train_step`.
      eval_step: makes the evaluation step of a split; see `step.make_eval_step`.
      batch_of: see `step.make_batch_fn`.
      loader: `data.device.DeviceLoader` or `data.stream.StreamLoader`.
      parallel: the devices.
      vmapped: states, sums and the loader's replicated orders have a leading axis for replicas.

    Attributes:
      check: called with the program, the split ("train", or that of an evaluation) and what was compiled for it.
    """

    def __init__(
        self,
        train_step: Callable,
        eval_step: Callable[[str], Callable],
        batch_of: Callable,
        loader,
        parallel: DataParallel,
        *,
        vmapped: bool = False,
    ):
        self._train_step = jax.vmap(train_step, in_axes=(0, loader.replica_axes)) if vmapped else train_step
        self._eval_step = eval_step
        self.batch_of, self.loader, self.parallel = batch_of, loader, parallel
        # Not functools.cache on methods: it would keep every program, with its data, as long as the process lives.
        self.train_steps = functools.cache(self._compile_train_steps)
        self.eval_steps = functools.cache(self._compile_eval_step)
        self._ready = {}
        self.check = lambda program, split, compiled: None

    def inputs(self, step: int) -> StepInputs:
        """The inputs of the next call of a compiled training function."""
        return self.loader.inputs(step)

    def with_loader(self, loader) -> "Program":
        """The same compiled functions on the same data in another order."""
        other = copy.copy(self)
        other.loader = loader
        return other

    def replica(self, index: int) -> "Program":
        """This program as one replica sees it: its own inputs, for functions of one state."""
        own, axes = copy.copy(self), self.loader.replica_axes.replicated

        def inputs(step):
            stacked = self.loader.inputs(step)
            arrays = {name: x if axes[name] is None else x[index] for name, x in stacked.replicated.items()}
            return stacked._replace(replicated=arrays)

        own.inputs = inputs
        return own

    def _compile_train_steps(self, count: int) -> Callable:
        """The compiled function `(state, inputs) -> (state, sums)` of `count` steps; sums are (..., count)."""

        def steps(state, inputs):
            if count == 1:  # no loop: XLA's CPU backend runs convolutions in loops several times slower
                state, sums = self._train_step(state, inputs)
                return state, jax.tree.map(lambda x: x[..., None], sums)
            state, sums = jax.lax.scan(lambda state, _: self._train_step(state, inputs), state, length=count)
            return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), sums)

        return self.parallel.compile(steps, donate=True)

    def _compile_eval_step(self, split: str) -> Callable:
        return self.parallel.compile(self._eval_step(split))

    def compile_train_steps(self, count: int, state, inputs: StepInputs) -> jax.stages.Compiled:
        """The function of `train_steps`, ahead of time; of its arguments shapes and dtypes are enough."""
        return self.train_steps(count).lower(state, inputs).compile()

    def prepare(self, count: int, state, inputs: StepInputs) -> None:
        """Compile `train_steps(count)` for these arguments, if it is not yet, so that a call of it runs at once.

        The call of a `pmap` finds the program in the compilation cache on the disk alone, which takes a moment.
        """
        self._prepare("train", count, lambda: self.compile_train_steps(count, state, inputs), inputs)

    def _prepare(self, split, count, compile_step, inputs):
        shapes = split, count, *((x.shape, x.dtype) for x in jax.tree.leaves(inputs))
        if shapes not in self._ready:
            compiled = compile_step()
            self.check(self, split, compiled)
            self._ready[shapes] = compiled

    def evaluate(self, variables: dict, split: str, watch: Callable | None = None) -> dict[str, np.ndarray]:
        """The rows of `make_eval_step` for a split, each example exactly once, in its stored order."""
        step, inputs = self.eval_steps(split), self.loader.eval_inputs(split)
        if watch:  # see `progress.watch`
            inputs = watch(split, inputs, -(-len(self.loader.splits[split]) // self.loader.eval_batch_size(split)))
        batches = []
        for each in inputs:
            self._prepare(split, 1, lambda each=each: step.lower(variables, each).compile(), each)
            batches.append(jax.device_get(step(variables, each)))
        rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        rows = {name: values[rows["mask"]] for name, values in rows.items() if name != "mask"}
        expected = len(self.loader.splits[split])
        if len(rows["loss"]) != expected:
            raise RuntimeError(f"evaluated {len(rows['loss'])} of the {expected} examples of {split}")
        return rows
