"""Rare classes: drawn more often, or weighed more."""

import jax
import numpy as np
import pytest

from resnet_jax import UserError, train
from resnet_jax.config.build import Assembly, make_recipe
from resnet_jax.data.balance import class_weights, make_order
from resnet_jax.models import create_model
from resnet_jax.training.step import make_gradient
from tests.runs import assert_the_same_end
from tests.tiny import tiny_config

LABELS = np.repeat([0, 1, 2], [70, 25, 5])


def test_a_balanced_epoch_has_each_class_equally_often_and_all_examples_alike():
    order = make_order(np.random.default_rng(0).permutation(LABELS), 100, 3, balanced=True)
    labels = np.random.default_rng(0).permutation(LABELS)
    drawn = [np.asarray(order(jax.random.key(1), epoch)) for epoch in range(60)]
    for ids in drawn:
        assert sorted(np.bincount(labels[ids]).tolist()) == [33, 33, 34]
    for label in range(3):
        members = np.flatnonzero(labels == label)
        times = np.bincount(np.concatenate(drawn), minlength=100)[members]
        assert times.min() > 0
        expected = 60 * 100 / 3 / len(members)
        assert abs(times.mean() / expected - 1) < 0.03 and times.std() < 5 * np.sqrt(expected)
    assert np.array_equal(drawn[3], order(jax.random.key(1), 3)) and not np.array_equal(drawn[3], drawn[4])


def test_unbalanced_is_the_permutation_of_always():
    ids = make_order(None, 100, 3)(jax.random.key(0), 2)
    assert sorted(np.asarray(ids).tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "labels are known"), (np.array([0, 0, 2]), "found none of class 1")]
)
def test_what_cannot_be_balanced_is_refused(labels, message):
    with pytest.raises(UserError, match=message):
        make_order(labels, 3, 3, balanced=True)


def test_a_balanced_run_resumes_exactly(tmp_path):
    settings = {"data__balanced": True, "train__steps": 12, "eval__every_epochs": 0.2}
    train(tiny_config(**settings), tmp_path / "whole")
    with pytest.raises(UserError, match="stopped at step 5"):
        train(tiny_config(**settings), tmp_path / "stopped", stop_requested=lambda step: step == 5)
    train(tiny_config(**settings), tmp_path / "stopped")
    assert_the_same_end(tmp_path / "stopped", tmp_path / "whole")


def test_inverse_weights_are_one_on_average_over_the_examples():
    weights = np.array(class_weights("inverse", LABELS, 3))
    assert weights[LABELS].mean() == pytest.approx(1)
    np.testing.assert_allclose(weights * [70, 25, 5], [100 / 3] * 3)


@pytest.mark.parametrize("text", ["1,2.5,1", "(1, 2.5, 1)", "(1.0,2.5,1.0)"])
def test_weights_are_read_as_people_type_them(text):
    assert class_weights(text, None, 3) == (1.0, 2.5, 1.0)


@pytest.mark.parametrize("text", ["1,2", "heavy", "1,-1,2", "0,0,0", "1,nan,2", "inverse"])
def test_other_weights_are_refused(text):
    with pytest.raises(UserError, match="train.class_weights: "):
        class_weights(text, None, 3)


def test_the_gradient_with_weights_is_the_mean_of_the_weighted_gradients_of_each_example():
    net = create_model("tiny", num_classes=3, norm={"name": "none"})
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    params = net.init(jax.random.key(0), images, train=False)["params"]
    targets, weights = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]], np.array([0.5, 2.0, 1.0])

    def gradient(slice_, **settings):
        batch = {"image": images[slice_], "target": targets[slice_]}
        return make_gradient(net, **settings)(params, {}, batch, jax.random.key(0))[0]

    weighted = gradient(slice(None), class_weights=tuple(weights))
    alone = [gradient(slice(i, i + 1)) for i in range(4)]
    factors = weights[[0, 1, 2, 1]] / 4
    expected = jax.tree.map(lambda *leaves: sum(f * leaf for f, leaf in zip(factors, leaves, strict=True)), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), weighted, expected)


def test_batch_statistics_over_one_value_are_refused_and_over_two_are_not():
    def assembly(**settings):
        config = tiny_config(**{"model__name": "resnet18", "model__stem": "small", **settings})
        return Assembly(make_recipe(config))

    for settings in ({"train__batch_size": 1}, {"train__batch_size": 4, "train__grad_accum_steps": 4}):
        with pytest.raises(UserError, match="norm: stage4.* over one value per channel: 1 image on a device"):
            assembly(**settings)
    assembly(train__batch_size=2)
    assembly(train__batch_size=1, data__image_size=16)
    assembly(train__batch_size=1, norm__name="group")
    assembly(train__batch_size=4, parallel__devices=4, norm__scope="global")
