"""The model card: all that loading, predicting and scoring need beside the weights. Plain JSON, `card.json`."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.models import create_model
from resnet_jax.workdir import read_json

FORMAT = 1
FILE = "card.json"


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
      source: where the weights came from: config, step, metrics, versions, git revision, file; for people.
    """

    model: dict
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    preprocessing: dict
    data: dict
    source: dict

    def to_json(self) -> dict:
        """Plain JSON, with the number of the format."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: dict, where: object = FILE) -> "ModelCard":
        """The card of a JSON object.

        Raises:
          UserError: it is no card, or one of a newer version.
        """
        if values.get("format", 0) > FORMAT:
            raise UserError(f"{where}: expected format {FORMAT} or lower, found {values['format']}; update resnet_jax")
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise UserError(f"{where}: expected a model card, found no {', '.join(missing)}; mend or move it")
        card = cls(**{name: values[name] for name in names})
        shape, class_names = tuple(card.input_shape), tuple(card.class_names)
        return dataclasses.replace(card, input_shape=shape, class_names=class_names)

    def create_model(self, **overrides) -> nn.Module:
        """The model, with other keyword arguments on demand."""
        settings = {**self.model, **overrides}
        return create_model(**{**settings, "dtype": jnp.dtype(settings["dtype"])})

    def variable_shapes(self) -> dict:
        """Shapes and dtypes of the model's variables; nothing is computed."""
        return variable_shapes(self.create_model(), self.input_shape)

    def create_preprocessing(self) -> Preprocessing:
        """The function from images to model input."""
        return Preprocessing(**self.preprocessing, class_names=self.class_names)


def read_card(path: pathlib.Path) -> ModelCard | None:
    """The card in a file, or in a folder's `card.json`; None if there is no such file."""
    file = path / FILE if path.is_dir() else path
    return ModelCard.from_json(read_json(file), file) if file.exists() else None


def variable_shapes(model: nn.Module, shape: tuple[int, int, int]) -> dict:
    """Shapes and dtypes of a model's variables for images of `shape` (h, w, c); nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
