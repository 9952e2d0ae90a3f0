"""The most probable classes of a stream of images, against the model applied to each."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import DivergedError
from resnet_jax.evaluation.cam import class_activation_map
from resnet_jax.evaluation.classify import classify
from resnet_jax.evaluation.images import View
from resnet_jax.models import create_model

PREPROCESSING = Preprocessing(
    8, 0.875, "bilinear", "RGB", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), class_names=tuple("abcdefg")
)


@pytest.fixture(scope="module")
def net():
    model = create_model("resnet20", num_classes=7, width=4, stage_sizes=(1, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()
    return model, variables


def make_views(count, problems=()):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [View(str(i), None, "bad") if i in problems else View(str(i), image) for i, image in enumerate(images)]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_probabilities_are_those_of_the_model_whatever_the_batch(net, batch_size):
    model, variables = net
    views = make_views(11, problems=(0, 5))
    rows = list(classify(model, variables, PREPROCESSING, iter(views), batch_size=batch_size, top=3, maps=True))
    assert sorted(row.view.path for row in rows) == sorted(view.path for view in views)
    assert all(row == (row.view, None, None, None) for row in rows if row.view.problem)
    rows = [row for row in rows if not row.view.problem]
    assert [row.view.path for row in rows] == [view.path for view in views if not view.problem]
    for row in rows:
        image = (row.view.pixels[None] / np.float32(255) - PREPROCESSING.mean) / PREPROCESSING.std
        image = np.float32(image)
        expected = np.asarray(nn.softmax(model.apply(variables, image, train=False)))[0]
        assert row.labels.tolist() == np.argsort(-expected)[:3].tolist()
        np.testing.assert_allclose(row.probabilities, expected[row.labels], rtol=1e-5)
        heat = class_activation_map(model, variables, image, row.labels[:1])
        np.testing.assert_allclose(row.heat, heat[0], rtol=1e-4, atol=1e-5)


def test_one_program_is_compiled_and_images_are_asked_for_as_rows_are(net):
    model, variables = net
    traced, asked = [], []

    def apply(*arguments, **settings):
        traced.append(1)
        return model.apply(*arguments, **settings)

    def views():
        for view in make_views(10):
            asked.append(view)
            yield view

    rows = classify(types.SimpleNamespace(apply=apply), variables, PREPROCESSING, views(), batch_size=4, top=1)
    assert next(rows).heat is None and len(asked) == 8  # one batch is ready, the next one under way
    assert len(list(rows)) == 9 and len(traced) == 1


def test_a_bad_image_is_told_at_once_and_a_broken_net_is_an_error(net):
    model, variables = net
    views = iter(make_views(3, problems=(1,)))
    rows = classify(model, variables, PREPROCESSING, views, batch_size=8, top=1)
    assert next(rows).view.problem == "bad"
    broken = jax.tree.map(lambda x: x * jnp.nan, variables)
    with pytest.raises(DivergedError, match="^0: the model gives probabilities that are not finite"):
        list(classify(model, broken, PREPROCESSING, make_views(2), batch_size=2, top=1))


def test_no_images_are_no_rows(net):
    assert list(classify(*net, PREPROCESSING, [], batch_size=2, top=1)) == []
