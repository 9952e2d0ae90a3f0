"""The cost of a model as people see it, the published value beside ours."""

from collections.abc import Mapping

from rich.table import Table

from resnet_jax.commands import titled_table
from resnet_jax.models import CIFAR_MODELS
from resnet_jax.models.profile import Layer, totals
from resnet_jax.studies.published import published_values


def layer_table(layers: list[Layer]) -> Table:
    """A line for each layer."""
    table = Table()
    table.add_column("layer", overflow="fold")
    for column in ("output", "parameters", "multiply-adds", "activation KiB (float32)"):
        table.add_column(column, justify="right", overflow="fold")
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}",
            f"{layer.activation_bytes / 1024:,.0f}",
        )
    return table


def stage_table(shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """A line for each stage: the shape after it."""
    table = Table()
    table.add_column("after")
    table.add_column("shape", justify="right")
    for name, shape in shapes.items():
        table.add_row(name, "x".join(map(str, shape)))
    return table


def total_table(name: str, classes: int, shape: tuple[int, int, int], layers: list[Layer]) -> Table:
    """Parameters, multiply-adds and activations for one image (h, w, c), and what was published of the same."""
    parameters, multiply_adds, activation_bytes = totals(layers)
    as_published = shape[2] == 3 and classes == (10 if name in CIFAR_MODELS else 1000)
    known_parameters = (published_parameters(name) if as_published else None) or ("", "")
    known_adds = (published_multiply_adds(name) if as_published and shape == (224, 224, 3) else None) or ("", "")
    title = f"{name}, one {'x'.join(map(str, shape))} image, {classes} classes"
    table = titled_table(title)
    table.add_column("")
    for column in ("parameters", "multiply-adds", "activations, MiB (float32)"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_row("ours", f"{parameters:,}", f"{multiply_adds:,}", f"{activation_bytes / 2**20:,.1f}")
    table.add_row("published", _number(known_parameters[0]), _number(known_adds[0]), "")
    table.add_row("source", known_parameters[1], known_adds[1], "")
    return table


def _number(value) -> str:
    return f"{value:,.0f}" if value else ""


def published_parameters(name: str) -> tuple[int, str] | None:
    """(trainable parameters, source) published for a model, or None."""
    timm_name = name.replace("preact_resnet", "resnetv2_")
    for source, counts in published_values()["parameter_counts"].items():
        if name in counts:
            return counts[name], source
        if timm_name in counts:
            return counts[timm_name], f"{source}, as {timm_name}"
    return None


def published_multiply_adds(name: str) -> tuple[float, str] | None:
    """(multiply-adds for one 224x224 image, source) published for a model, or None.

    The paper's Table 1 has the stride on the first 1x1 convolution (our `_v1` nets), torchvision on the 3x3. The paper
    gives two VGG nets too, which cost the same with a norm.
    """
    paper, torchvision = published_values()["multiply_adds_224"].items()
    if name in torchvision[1]:
        return torchvision[1][name], torchvision[0]
    key = name.removeprefix("plain").removeprefix("resnet").removesuffix("_v1").removesuffix("_bn")
    return (paper[1][key], paper[0]) if key in paper[1] else None
