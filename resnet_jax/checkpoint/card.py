"""The model card: all that loading, predicting and scoring need beside the weights. Plain JSON, `card.json`."""

import dataclasses
import pathlib
import reprlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.checkpoint.errors import check_format
from resnet_jax.data.preprocessing import Preprocessing, is_side
from resnet_jax.errors import UserError
from resnet_jax.models import create_model, floating_dtype
from resnet_jax.workdir import read_json

FORMAT = 1
FILE = "card.json"
_ATTRIBUTE = "_card"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """A trained model in words.

    Attributes:
      model: keyword arguments of `create_model`: name, num_classes, dtype (its name) and others, plain JSON.
      input_shape: (height, width, channels) of the model's input in training.
      class_names: one name per label, in label order.
      preprocessing: keyword arguments of `data.preprocessing.Preprocessing`.
      data: where the examples came from: `name`, `data_dir` and `validation_size`, as `data.splits.load_splits` takes
        them.
      source: where the weights came from: config, step, metrics, versions, git revision, file; for people, nothing
        reads it.
      best_metric: name of the metric that makes a run's best step.
      max_corrupt: max share of corrupt images in a dataset that is scored.
    """

    model: dict
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    preprocessing: dict
    data: dict
    source: dict
    best_metric: str = "accuracy"
    max_corrupt: float = 0.001

    def to_json(self) -> dict:
        """Plain JSON, with the number of the format."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: dict, where: object = FILE) -> "ModelCard":
        """The card of a JSON object.

        Raises:
          UserError: it is no card, or one of a newer version.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a model card, found a {type(values).__name__}; mend or move it")
        check_format(values.get("format"), FORMAT, where)
        fields = dataclasses.fields(cls)
        required = [field.name for field in fields if field.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise UserError(f"{where}: expected a model card, found no {', '.join(missing)}; mend or move it")
        values = {field.name: values[field.name] for field in fields if field.name in values}
        try:
            _check_kinds(values)
            shape, class_names = tuple(values["input_shape"]), tuple(values["class_names"])
            card = cls(**{**values, "input_shape": shape, "class_names": class_names})
            card.create_preprocessing()
            card.create_model()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # of many types, as what a file says is handed on to the functions of models
            found = f"{type(error).__name__}: {reprlib.repr(str(error))}"
            raise UserError(f"{where}: expected a model card, found {found}; mend or move it") from None
        return card

    def create_model(self) -> nn.Module:
        """The model; `card_of` gives its card."""
        model = create_model(**{**self.model, "dtype": floating_dtype(self.model.get("dtype"))})
        object.__setattr__(model, _ATTRIBUTE, self)  # beside the fields of the frozen module, so its value is the same
        return model

    def variable_shapes(self) -> dict:
        """Shapes and dtypes of the model's variables; nothing is computed."""
        return variable_shapes(self.create_model(), self.input_shape)

    def create_preprocessing(self) -> Preprocessing:
        """The function from images to model input."""
        return Preprocessing(**self.preprocessing, class_names=self.class_names)


def _check_kinds(values: dict) -> None:
    kinds = {
        **dict.fromkeys(("model", "preprocessing", "data", "source"), dict),
        **dict.fromkeys(("input_shape", "class_names"), (list, tuple)),
        "best_metric": str,
        "max_corrupt": (int, float),
    }
    for name, value in values.items():
        if not isinstance(value, kinds[name]):
            raise UserError(f"expected a model card, found {name}: {reprlib.repr(value)}; mend or move it")
    shape, class_names = values["input_shape"], values["class_names"]
    if not (len(shape) == 3 and all(map(is_side, shape[:2])) and shape[2] in (1, 3)):
        raise UserError(f"input_shape: expected height, width and 1 or 3 channels, found {reprlib.repr(shape)}")
    if not all(isinstance(name, str) for name in class_names):
        raise UserError(f"class_names: expected text, found {reprlib.repr(class_names)}")


def card_of(model: nn.Module) -> ModelCard:
    """The card of a model that came with weights.

    Raises:
      UserError: it has none, like a model from `create_model` or a `clone`.
    """
    card = getattr(model, _ATTRIBUTE, None)
    if card is None:
        raise UserError(
            "preprocessing: expected a model from load_checkpoint or load_pretrained, found one without a card; give "
            "the path of its checkpoint"
        )
    return card


def read_card(path: pathlib.Path) -> ModelCard | None:
    """The card in a file, or in a folder's `card.json`; None if there is no such file."""
    file = path / FILE if path.is_dir() else path
    return ModelCard.from_json(read_json(file), file) if file.exists() else None


def variable_shapes(model: nn.Module, shape: tuple[int, int, int]) -> dict:
    """Shapes and dtypes of a model's variables for images of `shape` (h, w, c); nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
