import warnings

import jax.numpy as jnp
import pytest

from resnet_jax import UserError, create_model
from tests.models.nets import KEY, shapes_of


@pytest.mark.parametrize(("name", "smallest"), [("resnet18", 17), ("resnet50", 17), ("resnet20", 3), ("vgg11", 32)])
def test_an_image_too_small_for_the_strides_is_refused_with_the_smallest_size(name, smallest):
    model = create_model(name, num_classes=10)
    shapes_of(model, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes_of(model, smallest)
    with pytest.raises(UserError, match=f"the smallest is {smallest}x{smallest}"):
        shapes_of(model, smallest - 1)


def test_a_stem_made_for_other_sizes_is_warned_of():
    with pytest.warns(UserWarning, match="model.stem=small"):
        warned = shapes_of(create_model("resnet18", num_classes=10), 32)
    with pytest.warns(UserWarning, match="model.stem=imagenet"):
        shapes_of(create_model("resnet18", num_classes=10, stem="small"), 224)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shapes_of(create_model("resnet18", num_classes=10), 224) == warned  # a warning changes nothing
        shapes_of(create_model("resnet18", num_classes=10, stem="small"), 32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((8, 8, 3)), "with 1 or 3 channels"),
        (jnp.zeros((1, 8, 8, 2)), "with 1 or 3 channels"),
        (jnp.zeros((1, 8, 8, 3), jnp.uint8), "found uint8"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        create_model("resnet20", num_classes=10).init(KEY, images, train=False)
