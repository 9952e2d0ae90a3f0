"""Models with the weights of another library."""

import contextlib
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoint.card import ModelCard, variable_shapes
from resnet_jax.data.imagenet import imagenet_class_names
from resnet_jax.errors import UserError
from resnet_jax.models import STEMS, create_model
from resnet_jax.weights.hub import HUB, download
from resnet_jax.weights.read import read_arrays
from resnet_jax.weights.sources import CONVENTIONS, SOURCES, check_model, convention, recognized, table_of
from resnet_jax.weights.trees import HEAD, Flat, Table, flatten, to_ours, unflatten

HEADS = ("keep", "new")
# Ends of the names of torchvision's files whose weights are evaluated on the centre of 232 pixels ("IMAGENET1K_V2").
_OF_232_PIXELS = "cd907fc2 f82ba261 11ad3fa6 110c445d 173b62eb 1a0047aa d733dc28 9ba9bcbe".split()


class Pretrained(NamedTuple):
    """A model with the weights of another library.

    Attributes:
      card: model card.
      model: network.
      variables: {"params", "batch_stats"}, float32.
      source: key in `SOURCES`.
      path: file or folder.
    """

    card: ModelCard
    model: nn.Module
    variables: dict
    source: str
    path: pathlib.Path


def load_pretrained(
    name: str,
    source: str | pathlib.Path,
    **settings,
) -> tuple[nn.Module, dict]:
    """A model of ours with weights from torchvision, timm, Keras, Flax's ImageNet example or BiT.

    >>> model, variables = load_pretrained("resnet50", "resnet50-11ad3fa6.pth")
    >>> preprocess = preprocessing(model)
    >>> logits = model.apply(variables, preprocess("cat.jpg"), train=False)

    The library is recognised by the names in the file, and one line says so. Every array must find its place.

    Args:
      name: key of `MODELS`.
      source: file or Orbax folder; or "hf:OWNER/NAME", a repository of the Hugging Face Hub.
      **settings: `num_classes`, `head`, `preprocessing`, `dtype` and attributes of the model; see `read_pretrained`.

    Returns:
      (model, {"params", "batch_stats"}): float32 arrays on the default device.

    Raises:
      UserError: a file that cannot be read or is not of a known library, or weights that are not this model's.
    """
    loaded = read_pretrained(name, source, **settings)
    kept = "" if settings.get("head", "keep") == "keep" else "; its head is new, with random weights"
    print(
        f"{source}: weights of {SOURCES[loaded.source].title} for {name}, every array in place{kept}", file=sys.stderr
    )
    return loaded.model, loaded.variables


def read_pretrained(
    name: str,
    source: str | pathlib.Path,
    *,
    num_classes: int | None = None,
    head: str = "keep",
    preprocessing: str | None = None,
    dtype=jnp.float32,
    **overrides,
) -> Pretrained:
    """A model with the weights of another library, and its card; see `load_pretrained`.

    Args:
      name, source: see there.
      num_classes: size of the logits; default: that of the weights' head.
      head: "keep", or "new" for a head with random weights (`num_classes` outputs).
      preprocessing: key of `CONVENTIONS`; default: that of the library's own nets.
      dtype: precision of the computation; weights are float32.
      **overrides: other attributes of the model; see `create_model`.
    """
    if head not in HEADS:
        raise UserError(f"head: expected one of {', '.join(HEADS)}, found {head!r}")
    if preprocessing is not None and preprocessing not in CONVENTIONS:
        raise UserError(f"preprocessing: expected one of {', '.join(CONVENTIONS)}, found {preprocessing!r}")
    path, hub_settings = download(source, name) if str(source).startswith(HUB) else (pathlib.Path(source), {})
    arrays = read_arrays(path).arrays
    key = recognized(arrays, path)
    check_model(name, key, path, preprocessing)

    model = create_model(name, num_classes=num_classes or 1, dtype=dtype, **overrides)
    arrays = SOURCES[key].canonical(arrays, model)
    images = _images(preprocessing, convention(name, key), path)
    side = 224
    if getattr(model, "stem", STEMS["imagenet"]).stride == 1:
        images |= {"size": (side := 32), "crop_fraction": None}
    images |= hub_settings
    shapes = flatten(variable_shapes(model, (side, side, 3)))
    table = table_of(model, shapes, key)
    places = table.places(model, shapes)
    shapes = _with_sizes_of_file(shapes, arrays, places)
    flat = _placed(arrays, table, places, shapes, path, head, num_classes)
    classes = flat[f"params/{HEAD}/bias"].shape[0]
    channels = shapes[first_kernel(shapes)].shape[2]
    images = _for_channels(images, channels, path)
    card = ModelCard(
        model={"name": name, "num_classes": classes, "dtype": jnp.dtype(dtype).name, **overrides},
        input_shape=(images["size"], images["size"], channels),
        class_names=_class_names(classes, head),
        preprocessing={"mean_image": None, "resize": None, **images},
        data={"name": "imagenet2012", "validation_size": 0, "data_dir": None},
        source={"file": str(source), "library": SOURCES[key].title},
    )
    variables = unflatten({name: jnp.asarray(array, jnp.float32) for name, array in flat.items()})
    return Pretrained(card, card.create_model(), variables, key, path)


def _placed(arrays: Flat, table: Table, places: dict, shapes: Flat, path, head: str, num_classes: int | None) -> Flat:
    """Our variables by path: the arrays of a file, and the new head if it is asked for."""
    found = shapes[f"params/{HEAD}/bias"].shape[0]
    if head == "keep":
        if num_classes not in (None, found):
            raise UserError(
                f"num_classes: expected the {found} of the weights in {path}, found {num_classes}; for a new head with "
                "random weights say so: head='new'"
            )
        return to_ours(arrays, places, shapes, path, table.ignored)
    of_head = {ours: place.name for ours, place in places.items() if ours.split("/")[1] == HEAD}
    if num_classes is None and not set(of_head.values()) & arrays.keys():
        raise UserError(f"num_classes: expected the number for a new head, as {path} has no head, found none")
    body = {ours: place for ours, place in places.items() if ours not in of_head}
    kept = {name: array for name, array in arrays.items() if name not in of_head.values()}
    flat = to_ours(kept, body, {ours: shapes[ours] for ours in body}, path, table.ignored)
    return flat | _new_head(shapes[f"params/{HEAD}/kernel"].shape[0], num_classes or found)


def _new_head(features: int, num_classes: int) -> Flat:
    """Weights of a new head by path: kernel (features, num_classes) as Flax starts it, and a bias of zeros."""
    params = nn.Dense(num_classes).init(jax.random.key(0), jnp.zeros((1, features)))["params"]
    return {f"params/{HEAD}/{leaf}": array for leaf, array in params.items()}


def _with_sizes_of_file(shapes: Flat, arrays: Flat, places: dict) -> Flat:
    """Shapes with the number of classes, and of the input's channels, that a file has."""
    shapes = dict(shapes)
    for path, axis in ((f"params/{HEAD}/kernel", 1), (f"params/{HEAD}/bias", 0), (first_kernel(shapes), 2)):
        place, shape = places[path], list(shapes[path].shape)
        if place.name in arrays:
            with contextlib.suppress(ValueError, IndexError):  # of another rank, which is refused with the others
                shape[axis] = place.layout.to_ours(arrays[place.name]).shape[axis]
        shapes[path] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return shapes


def first_kernel(shapes: Mapping) -> str:
    """Path of the kernel that sees the image: of ResNets, or of VGG nets."""
    return next(path for path in ("params/conv1/kernel", "params/stage1_conv1/kernel") if path in shapes)


def _class_names(classes: int, head: str) -> tuple[str, ...]:
    if classes == 1000 and head == "keep":
        return imagenet_class_names()
    return tuple(f"class {label}" for label in range(classes))


def _images(asked: str | None, usual: str, path: pathlib.Path) -> dict:
    """Settings of the preprocessing: those asked for, or the usual ones of the library and of a released file."""
    if asked is None and usual == "torchvision" and path.stem.split("-")[-1] in _OF_232_PIXELS:
        return {**CONVENTIONS[usual], "crop_fraction": 224 / 232}
    return dict(CONVENTIONS[asked or usual])


def _for_channels(images: dict, channels: int, path: pathlib.Path) -> dict:
    """Settings of the preprocessing for weights that see so many channels; grey images have the mean over colours."""
    if channels == 3:
        return images
    if channels != 1:
        raise UserError(f"{path}: expected weights for images of 3 channels or 1, found {channels}")
    grey = {name: [float(np.mean(images[name]))] for name in ("mean", "std")}
    return {**images, **grey, "channel_order": "L"}
