"""Our own weight files: safetensors whose header holds the model card and a digest of the arrays."""

import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from resnet_jax.checkpoint.arrays import digest
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.errors import UserError
from resnet_jax.models.scan import unstack_blocks
from resnet_jax.weights.checks import reading
from resnet_jax.weights.read import read_arrays
from resnet_jax.weights.sources import SOURCES, computes_alike, table_of
from resnet_jax.weights.trees import Flat, check_fit, flatten, to_theirs, unflatten
from resnet_jax.workdir import write_bytes

SUFFIX = ".safetensors"
NAMES = ("ours", "torch")
_CARD, _DIGEST = "resnet_jax.card", "resnet_jax.digest"


def write_weights(path: pathlib.Path, card: ModelCard, variables: Mapping, names: str = "ours") -> None:
    """Write a model's weights as safetensors, atomically.

    Args:
      path: file to write.
      card: model card.
      variables: {"params", "batch_stats"}.
      names: "ours", with the card in the header; or "torch", those of torchvision and timm, for torch's users.

    Raises:
      UserError: a net that torch's libraries compute otherwise, or a layer that has no name there.
    """
    if names == "ours":
        flat = flatten(jax.device_get(variables))
        arrays = {name: np.asarray(array) for name, array in flat.items()}
        metadata = {_CARD: json.dumps(card.to_json()), _DIGEST: digest(arrays)}
    else:
        if not computes_alike(card.model["name"], names):
            raise UserError(
                f"names: expected a net that {SOURCES[names].title} compute alike, found {card.model['name']}: its "
                "paddings, strides or biases are others; keep our names"
            )
        model, variables = unstack_blocks(card.create_model(), jax.device_get(variables))
        flat = flatten(variables)
        arrays, metadata = to_theirs(flat, table_of(model, flat, names).places(model, flat)), {"format": "pt"}
    write_bytes(path, safetensors.save(arrays, metadata))


def read_native(path: pathlib.Path) -> tuple[ModelCard, dict]:
    """(card, {"params", "batch_stats"}) of a file that `write_weights` wrote with our names.

    Raises:
      UserError: it is not there, corrupt, or of another library.
    """
    card, arrays = _read(path)
    with reading(path, "a model card"):
        shapes = card.variable_shapes()
    flat = check_fit(arrays, shapes, path)
    return card, unflatten({name: jnp.asarray(array) for name, array in flat.items()})


def read_native_card(path: pathlib.Path) -> ModelCard:
    """The card of such a file; see `read_native`."""
    return _read(path)[0]


def has_card(path: pathlib.Path) -> bool:
    """True for a safetensors file that holds a model card."""
    return _CARD in read_arrays(path).metadata


def _read(path: pathlib.Path) -> tuple[ModelCard, Flat]:
    file = read_arrays(path)
    if _CARD not in file.metadata:
        raise UserError(
            f"{path}: expected weights with a model card, as `python -m resnet_jax.convert` writes, found none; if "
            "they are another library's: predict, convert and export take --model NAME, evaluate takes what convert "
            "writes, and scripts call load_pretrained(NAME, FILE)"
        )
    with reading(path, "a model card"):
        card = ModelCard.from_json(json.loads(file.metadata[_CARD]), path)
    if digest(file.arrays) != file.metadata.get(_DIGEST):
        raise UserError(f"{path}: expected arrays with the digest in its header, found others: corrupt; get it again")
    return card, file.arrays
