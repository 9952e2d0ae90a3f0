"""Converted weights in words, and the table of a check."""

import numpy as np
from rich.console import Console

from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.commands import print_whole, titled_table
from resnet_jax.errors import UserError
from resnet_jax.weights.compare import TOLERANCE, compare
from resnet_jax.weights.pretrained import Pretrained


class Divergence(UserError):
    """A net of ours gives other outputs than that of another library."""

    exit_status = 3


def describe(source: str, card: ModelCard) -> str:
    """Weights and what their images are, in a sentence."""
    images, library = card.preprocessing, card.source.get("library")
    crop = f", the central {images['crop_fraction']:.3g} of the short side" if images["crop_fraction"] else ""
    origin = f"weights of {library}, every array in place" if library else "weights of a run of ours"
    return (
        f"{source}: {origin}: {card.model['name']}, {card.model['num_classes']} classes, images {images['size']} pixels"
        f"{crop}, {images['interpolation']}, {images['channel_order']}"
    )


def print_check(console: Console, loaded: Pretrained) -> None:
    """Print the largest difference in each block, and the first that diverges.

    Raises:
      Divergence: there is one.
    """
    shape = loaded.card.input_shape
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    differences = compare(loaded, images)
    library = loaded.card.source["library"]
    table = titled_table(f"Largest differences from {library}, 2 random images of {shape[0]} pixels")
    table.add_column("block")
    for column in ("absolute", "relative to the largest output"):
        table.add_column(column, justify="right")
    for difference in differences:
        marks = "diverges" if difference.diverges else ""
        table.add_row(difference.name, f"{difference.absolute:.2e}", f"{difference.relative:.2e} {marks}".rstrip())
    print_whole(console, table)
    if wrong := next((difference for difference in differences if difference.diverges), None):
        raise Divergence(
            f"{wrong.name} is the first to diverge: expected at most {TOLERANCE:g}, found {wrong.relative:.2e}; its "
            "strides, padding, biases or small numbers are others"
        )
    blocks = len(differences) - 1
    console.print(f"the same to {TOLERANCE:g} of the largest output, in all {blocks} blocks and the logits")
