"""Models with weights under torch's names: what is refused, and the images that their cards describe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resnet_jax import UserError, create_model, load_pretrained, preprocessing
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.models import MODELS
from resnet_jax.weights.native import write_weights
from resnet_jax.weights.pretrained import read_pretrained
from resnet_jax.weights.sources import check_model, convention
from tests.tiny import make_recipe, tiny_config


@pytest.fixture
def saved(tmp_path):
    """Writes a net with random weights under torch's names: (path, variables)."""

    def write(name="tiny", channels=3, file="weights"):
        model, side = create_model(name, num_classes=5), 8 if name == "tiny" else 64
        variables = model.init(jax.random.key(0), jnp.zeros((1, side, side, channels)), train=False)
        path = tmp_path / f"{file}.safetensors"
        write_weights(path, card_for(name), variables, "torch")
        return path, variables

    return write


def card_for(name) -> ModelCard:
    card = make_recipe(tiny_config()).card({})
    return ModelCard(**{**vars(card), "model": {"name": name, "num_classes": 5, "dtype": "float32"}})


def with_arrays(path, **changed):
    """The file, with arrays changed, or left out where None is given; `__` stands for a dot."""
    arrays = load_file(path) | {name.replace("__", "."): array for name, array in changed.items()}
    save_file({name: array for name, array in arrays.items() if array is not None}, path)
    return path


def test_a_backbone_without_a_head_takes_a_new_one_alone(saved):
    path, variables = saved()
    with_arrays(path, fc__weight=None, fc__bias=None)
    with pytest.raises(UserError, match="missing: fc.kernel|missing: fc.(weight|bias), fc.(weight|bias)"):
        load_pretrained("tiny", path)
    with pytest.raises(UserError, match="num_classes: expected the number for a new head, as .* has no head"):
        load_pretrained("tiny", path, head="new")
    model, found = load_pretrained("tiny", path, head="new", num_classes=3)
    assert model.num_classes == 3 and found["params"]["fc"]["kernel"].shape == (8, 3)
    for tree in (found["params"], variables["params"]):
        del tree["fc"]
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_weights_of_grey_images_come_with_a_preprocessing_for_grey_images(saved):
    path, _ = saved(channels=1)
    model, variables = load_pretrained("tiny", path)
    images = preprocessing(model)([np.full((40, 50, 3), 128, np.uint8), np.full((40, 50), 128, np.uint8)])
    assert images.shape == (2, 32, 32, 1) and model.apply(variables, images, train=False).shape == (2, 5)
    # The mean over colours of 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225.
    np.testing.assert_allclose(images, (128 / 255 - 0.449) / 0.226, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conv1__weight": np.zeros((4, 3, 3, 3, 3), np.float32)}, r"of another shape: conv1.weight \(4, 3, 3, 3, 3\)"),
        ({"fc__weight": np.zeros((5, 8, 1), np.float32)}, r"of another shape: fc.weight \(5, 8, 1\)"),
        (
            {"conv1__weight": np.zeros((4, 2, 3, 3), np.float32)},
            "expected weights for images of 3 channels or 1, found 2",
        ),
        ({"conv1__weight": np.ones((4, 3, 3, 3), np.int8)}, "finite floating-point numbers: conv1.weight int8"),
        ({"bn1__bias": np.array([0, 0, np.nan, 0], np.float32)}, "finite floating-point numbers: bn1.bias float32"),
    ],
)
def test_arrays_that_are_no_weights_of_the_model_are_one_line(changed, message, saved):
    path = with_arrays(saved()[0], **changed)
    with pytest.raises(UserError, match=message):
        load_pretrained("tiny", path)


def test_bottlenecks_that_stride_first_are_caffes_alone():
    with pytest.raises(UserError, match="try resnet50, or preprocessing='caffe' if the weights are Caffe's"):
        check_model("resnet50_v1", "torch", "file", None)
    check_model("resnet50_v1", "torch", "file", "caffe")
    check_model("resnet18_v1", "torch", "file", None)  # basic blocks have one convolution to stride in


@pytest.mark.parametrize("name", ["resnet50_v1", "flax_resnet18", "keras_resnet50", "big_vision_resnet50"])
def test_nets_that_torch_computes_otherwise_are_not_written_under_its_names(name, tmp_path):
    with pytest.raises(UserError, match=f"that torchvision or timm compute alike, found {name}"):
        write_weights(tmp_path / "out.safetensors", card_for(name), {"params": {}, "batch_stats": {}}, "torch")
    assert not (tmp_path / "out.safetensors").exists()


def test_images_of_a_released_file_are_its_own_unless_others_are_asked_for(saved):
    path, _ = saved("resnet18", file="resnet18-11ad3fa6")
    assert read_pretrained("resnet18", path).card.preprocessing["crop_fraction"] == 224 / 232
    asked = read_pretrained("resnet18", path, preprocessing="caffe").card.preprocessing
    assert (asked["crop_fraction"], asked["channel_order"]) == (0.875, "BGR")


def test_pre_activation_nets_of_timm_see_images_of_minus_one_to_one():
    """The parity tests ask timm itself."""
    names = {name for name in MODELS if convention(name, "torch") in ("timm_v2", "centered")}
    assert names == {f"resnetv2_{depth}" for depth in ("18", "34", "50", "101", "50x1_bit")}
