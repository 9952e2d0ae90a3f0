"""The nets of other libraries, run to be compared with ours. These libraries are imported here alone, if installed."""

import contextlib
import importlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.weights.checks import short
from resnet_jax.weights.torch_files import unnested

# From images, float32 (b, h, w, c), and their names of blocks, by ours, to outputs by ours: those of the blocks,
# (b, h, w, c), and "logits", (b, classes).
Reference = Callable[[np.ndarray, Mapping[str, str]], dict[str, np.ndarray]]


def torch_reference(name: str, path: pathlib.Path, num_classes: int, channels: int) -> Reference:
    """The net of torchvision, or else of timm, with the weights in a file, loaded by torch itself.

    Raises:
      UserError: torch, torchvision or timm is not installed, none of them has the net, or torch cannot load the file.
    """
    torch, torchvision = _import("torch"), import_torchvision()
    with _loading("torch", path):
        if channels == 3 and name in torchvision.models.list_models():
            net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        else:
            timm = _import("timm")
            if not timm.is_model(name):
                raise UserError(f"--check: expected a net of torchvision or timm, found {name}, which neither has")
            net = timm.create_model(name, num_classes=num_classes, in_chans=channels)
        if path.suffix == ".safetensors":
            state = _import("safetensors.torch").load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
        net.load_state_dict(unnested(state))
    net.eval()

    def outputs(images, blocks):
        found = {}

        def record(name):
            def hook(module, inputs, output):
                output = output.numpy().copy()  # a ReLU that follows may work in place
                found[name] = output.transpose(0, 2, 3, 1) if output.ndim == 4 else output

            return hook

        handles = [net.get_submodule(theirs).register_forward_hook(record(ours)) for ours, theirs in blocks.items()]
        with torch.no_grad():
            found["logits"] = net(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        for handle in handles:
            handle.remove()
        return found

    return outputs


def keras_reference(name: str, path: pathlib.Path, num_classes: int, channels: int) -> Reference:
    """The net of keras.applications with the weights in a file, loaded by Keras itself, on its JAX backend.

    Raises:
      UserError: Keras is not installed; or, on use, it cannot load the file.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = _import("keras")
    depth, version = re.fullmatch(r"keras_resnet(\d+)(v2)?", name).groups()
    create = getattr(keras.applications, f"ResNet{depth}{(version or '').upper()}")

    def outputs(images, blocks):
        settings = {"classes": num_classes, "input_shape": (*images.shape[1:3], channels)}
        with _loading("Keras", path):
            net = create(weights=None, classifier_activation=None, **settings)
            net.load_weights(path)
        layers = {ours: net.get_layer(f"{theirs}_out").output for ours, theirs in blocks.items()}
        found = keras.Model(net.input, {**layers, "logits": net.output})(images)
        return {name: np.asarray(value) for name, value in found.items()}

    return outputs


REFERENCES = {"torch": torch_reference, "keras": keras_reference}  # by key of `SOURCES`


@contextlib.contextmanager
def _loading(library: str, path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # these libraries raise exceptions of many types
        raise UserError(f"--check: {library} itself cannot load this file: {path}: {short(error)}") from error


def _import(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise UserError(f"--check: expected {name}, found none ({error}); pip install {name}, or no --check") from None


def import_torchvision():
    """torchvision, also where its wheel lacks compiled operators; timm imports it, too."""
    try:
        return _import("torchvision")
    except RuntimeError:
        # A wheel whose compiled operators do not go with this torch; of these, its models need none but the schemas.
        library = _import("torch").library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # it is undone when it is collected
        return _import("torchvision")


_KEPT: list = []
