"""MODELS, the table of networks, `create_model`, and the tables of values that networks are put together from."""

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.models.cifar import CIFAR_MODELS
from resnet_jax.models.convs import CONVS
from resnet_jax.models.downsample import DOWNSAMPLES
from resnet_jax.models.gates import GATES
from resnet_jax.models.imagenet import IMAGENET_MODELS
from resnet_jax.models.norm import NORMS
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS, Stem
from resnet_jax.models.vgg import VGG_MODELS

MODELS = {**IMAGENET_MODELS, **CIFAR_MODELS, **VGG_MODELS}

_TABLES = {
    "conv": CONVS,
    "norm": NORMS,
    "downsample": DOWNSAMPLES,
    "shortcut": SHORTCUTS,
    "stem": STEMS,
    "gate": GATES,
}
_FUNCTIONS = ("block", "first_block", "last_activation", "strides")
_MAX_BLOCKS = 1000

# Attributes of models, and settings of norms, on which logits in evaluation do not depend.
_OF_TRAINING = {
    *("num_classes", "dtype", "stochastic_depth", "zero_init_last_scale", "scan_blocks", "remat", "parent", "name"),
    *("momentum", "axis_name", "axis_index_groups", "frozen"),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of `MODELS` that a pattern matches, in the order of the alphabet.

    >>> list_models("wide*")
    ['wide_resnet101_2', 'wide_resnet50_2']

    Args:
      pattern: with the wildcards of file names, like "*50*".
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def attributes_of(name: str) -> list[str]:
    """The attributes that `create_model` takes for a key of `MODELS`, like "num_classes" and "shortcut"."""
    return [field.name for field in dataclasses.fields(MODELS[name].func) if field.name not in ("parent", "name")]


def own_norm(name: str) -> dict:
    """A model's own norm, {"name": key of `NORMS`, **settings}; batch norm for models without norms."""
    value = MODELS[name].keywords.get("norm", NORMS["batch"])
    function, settings = (value.func, value.keywords) if isinstance(value, functools.partial) else (value, {})
    return {"name": next(key for key, norm in NORMS.items() if norm is function), **settings}


def different_attributes(model: nn.Module, other: nn.Module) -> list[str]:
    """Names of the attributes by which two models compute different logits of the same weights."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in _OF_TRAINING]
    if type(model) is not type(other):
        return names
    return [name for name in names if _content(getattr(model, name)) != _content(getattr(other, name))]


def _content(value: object) -> object:
    """A value's parts, so that functions are equal if they, and those of their settings that logits see, are."""
    if isinstance(value, Stem):
        return {field.name: _content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_content(part) for part in value]
    if not callable(value):
        return value
    function, args = (value.func, value.args) if isinstance(value, functools.partial) else (value, ())
    defaults = {name: p.default for name, p in inspect.signature(value).parameters.items() if p.default is not p.empty}
    return function, args, {name: _content(x) for name, x in defaults.items() if name not in _OF_TRAINING}


def create_model(name: str, *, num_classes: int, dtype=jnp.float32, **overrides) -> nn.Module:
    """A network from the registry.

    >>> model = create_model("resnet20", num_classes=10, norm={"name": "group", "groups": 8})
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    >>> logits = model.apply(variables, images, train=False)

    Args:
      name: a key of `MODELS`.
      num_classes: size of the logits.
      dtype: precision of the computation (`jnp.float32` or `jnp.bfloat16`); parameters stay float32.
      **overrides: other attributes of the model (`attributes_of`). Each of `conv`, `norm`, `downsample`, `shortcut`,
        `stem` and `gate` is a key of its table (`CONVS`, `NORMS`, ...), or a mapping `{"name": key, **settings}`, or a
        value of your own of the same kind. Settings are keyword arguments of the function in the table: those that
        have a default which is not itself a function.

    Raises:
      UserError: an unknown name, attribute, or key or setting of an attribute.
    """
    if name not in MODELS:
        raise UserError(f"model.name: no model is called {name!r}; {did_you_mean(name, MODELS)}")
    _check_count("num_classes", num_classes)
    floating_dtype(dtype)
    attributes = attributes_of(name)
    for key, value in overrides.items():
        if key not in attributes:
            raise UserError(f"model.{key}: a model {name} has no such attribute; {did_you_mean(key, attributes)}")
        if key in _TABLES:
            overrides[key] = _value(key, value)
        if key in ("groups", "base_width", "width"):
            _check_count(key, value)
        if key in _FUNCTIONS and not (callable(value) or (key == "first_block" and value is None)):
            raise UserError(f"model.{key}: expected a class or function, found {value!r}")
        if key == "stage_sizes":
            _check_stage_sizes(value)
    return MODELS[name](num_classes=num_classes, dtype=dtype, **overrides)


def floating_dtype(dtype: object) -> jnp.dtype:
    """The dtype of a name or type, or `UserError` if it is no floating point dtype."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)  # None is NumPy's float64
    except (TypeError, ValueError, SyntaxError):  # as NumPy's grammar of dtypes has it
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise UserError(f"dtype: expected a floating point dtype, found {dtype!r}")
    return found


def _check_count(key: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"model.{key}: expected a whole number, min 1, found {value!r}")


def _check_stage_sizes(sizes: object) -> None:
    counts = isinstance(sizes, list | tuple) and all(isinstance(size, int) and size > 0 for size in sizes)
    if not (counts and 0 < sum(sizes) <= _MAX_BLOCKS):
        raise UserError(
            f"model.stage_sizes: expected blocks per stage, min 1 and at most {_MAX_BLOCKS} together, found {sizes!r}"
        )


def _value(kind: str, given) -> Callable | Stem | None:
    """The value that an override of `kind` stands for."""
    if isinstance(given, Stem if kind == "stem" else Callable) or (kind == "gate" and given is None):
        return given
    if not isinstance(given, str | Mapping):
        raise UserError(
            f"model.{kind}: expected a key of {kind.upper()}S, a mapping {{'name': key, ...settings}} or a value of "
            f"your own, found {given!r}"
        )
    settings = {"name": given} if isinstance(given, str) else dict(given)
    name, table = settings.pop("name", ""), _TABLES[kind]
    if name not in table:
        raise UserError(f"model.{kind}: no {kind} is called {name!r}; {did_you_mean(name, table)}")
    return _bound(kind, name, table[name], settings)


def _bound(kind: str, name: str, value: Callable | Stem, settings: dict) -> Callable | Stem:
    if not settings:
        return value
    if isinstance(value, Stem):
        return dataclasses.replace(value, layers=_bound(kind, name, value.layers, settings))
    parameters = inspect.signature(value).parameters.values()
    known = [
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is not parameter.empty
        and not callable(parameter.default)
    ]
    for key in settings:
        if key not in known:
            raise UserError(f"model.{kind}: {name} has no setting {key!r}; {did_you_mean(key, known)}")
    return functools.partial(value, **{key: _frozen(setting) for key, setting in settings.items()})


def _frozen(setting):
    """A setting from JSON, its lists as tuples, which can be hashed."""
    return tuple(map(_frozen, setting)) if isinstance(setting, list | tuple) else setting
