"""Class activation maps, against their closed forms, and the pictures of them."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.errors import UserError
from resnet_jax.evaluation.cam import activation_map, class_activation_map, grad_cam
from resnet_jax.evaluation.overlays import overlay, overlay_file, overlay_folder, write_overlay
from resnet_jax.models import create_model

CLASSES = 5


def randomised(name, size, **overrides):
    """(model, variables, images): every array drawn, so that no part is trivially zero or one."""
    model = create_model(name, num_classes=CLASSES, **overrides)
    images = jax.random.normal(jax.random.key(0), (3, size, size, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(2)
    leaves = [np.float32(leaf * rng.uniform(0.5, 1.5, leaf.shape) + rng.uniform(0, 0.1, leaf.shape)) for leaf in leaves]
    return model, jax.tree.unflatten(tree, leaves), images


NETS = {  # v1, a norm and ReLU before the pooling, bottlenecks
    "resnet20": {},
    "preact_resnet110": {"stage_sizes": (1, 1, 1)},
    "resnet50": {"stage_sizes": (1, 1), "stem": "small", "width": 8},
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return randomised(request.param, 16, **NETS[request.param])


def test_the_mean_of_a_map_and_the_bias_are_the_logit(net):
    model, variables, images = net
    logits = model.apply(variables, images, train=False)
    for labels in ([0, 1, 2], [4, 4, 0]):
        found = jax.jit(class_activation_map, static_argnums=0)(model, variables, images, jnp.array(labels))
        assert found.dtype == jnp.float32 and found.shape[0] == 3 and found.shape[1] > 1
        bias = variables["params"]["fc"]["bias"][np.array(labels)]
        expected = logits[np.arange(3), np.array(labels)]
        np.testing.assert_allclose(found.mean((1, 2)) + bias, expected, rtol=1e-5, atol=1e-5)


def test_of_a_linear_head_grad_cam_is_the_positive_part_of_cam_divided_by_the_positions(net):
    labels = jnp.array([0, 3, 4])
    cam, grad = class_activation_map(*net, labels), grad_cam(*net, labels)
    assert grad.max() > 0
    np.testing.assert_allclose(grad, np.maximum(cam, 0) / cam[0].size, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(activation_map(*net, labels), cam)


def test_a_map_of_low_precision_is_float32_and_near():
    labels = jnp.array([0, 3, 4])
    precise, quick = (randomised("resnet20", 16, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    found, expected = class_activation_map(*quick, labels), class_activation_map(*precise, labels)
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


class SquaresOfMeans(nn.Module):
    """A head that is not linear, and whose gradient is known."""

    @nn.compact
    def __call__(self, images, *, train):
        pooled = Mean(name="pool")(images)
        hidden = jnp.square(nn.Dense(2, name="hidden")(pooled))
        return nn.Dense(CLASSES, name="fc")(hidden)


class Mean(nn.Module):
    def __call__(self, x):
        return x.mean((1, 2))


def test_grad_cam_is_the_chain_rule():
    model, rng = SquaresOfMeans(), np.random.default_rng(0)
    images = np.float32(rng.normal(size=(3, 4, 5, 3)))
    variables = model.init(jax.random.key(0), images, train=False)
    labels = np.array([1, 2, 4])
    hidden, fc = variables["params"]["hidden"]["kernel"], variables["params"]["fc"]["kernel"]
    slope = 2 * (images.mean((1, 2)) @ hidden)  # of the squares
    weights = (slope * fc.T[labels]) @ hidden.T / 20  # d logit / d activation, the same at all 20 positions
    expected = np.maximum(np.sum(images * weights[:, None, None], axis=-1), 0)
    np.testing.assert_allclose(grad_cam(model, variables, images, labels), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(activation_map(model, variables, images, labels), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="linear head `fc`; use grad_cam"):
        class_activation_map(model, variables, images, labels)


def test_vgg_is_explained_by_grad_cam_at_its_last_stage():
    model = create_model("vgg11", num_classes=CLASSES)
    images, labels = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    found = jax.eval_shape(lambda *arguments: activation_map(model, *arguments), variables, images, labels)
    assert found.shape == (2, 3, 2) and found.dtype == jnp.float32
    with pytest.raises(UserError, match="linear head"):
        jax.eval_shape(lambda *arguments: class_activation_map(model, *arguments), variables, images, labels)


def test_an_overlay_is_red_where_the_map_is_largest_and_blue_where_it_is_negative():
    view = np.full((224, 448, 3), 100, np.uint8)
    heat = np.array([[-5.0, 0.0, 0.0, 2.0]])
    picture = overlay(view, heat)
    assert picture.shape == view.shape and picture.dtype == np.uint8
    left, right = picture[100, 0].astype(int), picture[100, -1].astype(int)
    assert left[2] > 100 > left[0] and right[0] > 100 > right[2]
    np.testing.assert_array_equal(picture[100, 0], picture[100, 100])  # negative and zero are alike
    nothing = overlay(view, np.full((2, 2), -1.0))
    assert (nothing == left).all()


def test_an_overlay_shows_the_image():
    view = np.zeros((224, 224, 1), np.uint8)
    view[:, 112:] = 200
    difference = np.diff(overlay(view, np.ones((7, 7))).astype(int), axis=1)
    assert (difference[:, 111] == 100).all() and not difference[:, :111].any()
    assert overlay(view[::28, ::28], np.ones((2, 2))).shape == (224, 224, 3)


def test_overlays_of_any_two_files_have_names_of_their_own_inside_the_folder(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "a/x.png", "a-x.jpg", "x.jpg", "../x.jpg", "/x.jpg", "../../etc/.jpg", "a/..jpg"]
    names += ["a/" + 300 * "é" + ".jpg", "a/\udcff.jpg", "a/ \n;rm.jpg"]
    files = [overlay_file(tmp_path, name) for name in names]
    assert len(set(files)) == len(names)
    assert {file.parent for file in files} == {tmp_path}
    for file in files:
        write_overlay(file, np.zeros((2, 2, 3), np.uint8), np.ones((1, 1)))
        assert Image.open(io.BytesIO(file.read_bytes())).format == "PNG"
    assert overlay_file(tmp_path, "a/x.jpg").name.startswith("x-")


def test_an_overlay_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cam: .*file/x cannot be written"):
        overlay_folder(str(tmp_path / "file" / "x"))
    with pytest.raises(UserError, match="--cam: .*file/x.png cannot be written"):
        write_overlay(tmp_path / "file" / "x.png", np.zeros((2, 2, 3), np.uint8), np.ones((1, 1)))
