"""The same images through a net of ours and through that of another library, block by block."""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import Block
from resnet_jax.weights.pretrained import Pretrained
from resnet_jax.weights.references import REFERENCES
from resnet_jax.weights.sources import SOURCES, table_of
from resnet_jax.weights.trees import flatten

TOLERANCE = 1e-4  # of the largest value in a block's output


class Difference(NamedTuple):
    """The largest difference between two outputs.

    Attributes:
      name: block, or "logits".
      absolute: largest absolute difference.
      relative: the same, divided by the largest magnitude in the other library's output.
    """

    name: str
    absolute: float
    relative: float

    @property
    def diverges(self) -> bool:
        """True if it is more than `TOLERANCE`, or no number."""
        return not self.relative <= TOLERANCE


def compare(loaded: Pretrained, images: np.ndarray) -> list[Difference]:
    """The differences of all blocks, in the order of the forward pass, and of the logits.

    Args:
      loaded: model of ours with weights of another library.
      images: float32 (b, h, w, c).

    Raises:
      UserError: the other library is not installed, or cannot be run here.
    """
    if loaded.source not in REFERENCES:
        title = SOURCES[loaded.source].title
        raise UserError(f"--check: expected weights of a library that can be run here, found those of {title}")
    card = loaded.card
    reference = REFERENCES[loaded.source](card.model["name"], loaded.path, card.model["num_classes"], images.shape[-1])
    ours = outputs_of_blocks(loaded.model, loaded.variables, images)
    table = table_of(loaded.model, flatten(loaded.variables), loaded.source)
    theirs = reference(images, table.blocks(loaded.model, ours.keys() - {"logits"}))
    return [_difference(name, np.asarray(output), theirs[name]) for name, output in ours.items()]


def outputs_of_blocks(model: nn.Module, variables: dict, images: np.ndarray) -> dict[str, jax.Array]:
    """Outputs of the blocks, of a VGG net of its convolutions, in the order of the forward pass, and the logits."""

    def forward(variables, images):
        found = {}

        def record(call, args, kwargs, context):
            output = call(*args, **kwargs)
            is_point = isinstance(context.module, Block if hasattr(model, "stages") else nn.Conv)
            if is_point and context.method_name == "__call__":
                found["/".join(context.module.path)] = output
            return output

        with nn.intercept_methods(record):
            logits = model.apply(variables, images, train=False)
        order.extend(found)
        return {**found, "logits": logits}

    order = []
    found = jax.device_get(jax.jit(forward)(variables, images))
    return {name: found[name] for name in (*order, "logits")}


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    if ours.shape != theirs.shape:
        return Difference(name, float("nan"), float("nan"))
    absolute = float(np.abs(ours - theirs).max())
    return Difference(name, absolute, absolute / max(float(np.abs(theirs).max()), np.finfo(np.float32).tiny))
