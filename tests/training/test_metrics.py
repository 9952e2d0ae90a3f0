import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.training.accumulator import Accumulator
from resnet_jax.training.metrics import corrupt_rows, example_rows, per_class_accuracy, scores, training_sums


def random_batch(n=50, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    labels = rng.integers(classes, size=n)
    return logits, labels, np.eye(classes, dtype=bool)[labels]


def test_scores_equal_a_loop_over_the_examples_that_count():
    logits, labels, right = random_batch()
    counts = np.arange(50) % 3 > 0
    loss, top1, top5 = [], [], []
    for row, label, counted in zip(logits.astype(np.float64), labels, counts, strict=True):
        if counted:
            loss.append(np.log(np.exp(row).sum()) - row[label])
            top1.append(row.argmax() == label)
            top5.append(label in np.argsort(row)[-5:])
    values = scores({name: np.asarray(row) for name, row in example_rows(logits, right).items()}, counts)
    assert values["loss"] == pytest.approx(np.mean(loss), rel=1e-6)
    assert values["accuracy"] == pytest.approx(np.mean(top1))
    assert values["top5"] == pytest.approx(np.mean(top5))


def test_training_sums_are_those_of_the_rows():
    logits, _, right = random_batch()
    targets = np.float32(right)
    sums = training_sums(logits, targets, optax.softmax_cross_entropy(logits, targets))
    rows = example_rows(logits, right)
    assert float(sums["loss"]) == pytest.approx(float(rows["loss"].sum()), rel=1e-6)
    assert (sums["correct"], sums["correct5"]) == (rows["correct"].sum(), rows["in_top5"].sum())
    assert sums["count"] == 50


def test_logits_that_are_not_finite_are_never_correct():
    rows = example_rows(jnp.full((2, 3), jnp.nan), np.eye(3, dtype=bool)[[0, 0]])
    assert not rows["correct"].any() and not rows["in_top5"].any()
    assert (rows["prediction"] == -1).all() and not np.isfinite(rows["loss"]).any()


def test_several_classes_may_be_right_or_none():
    logits = np.log(np.float32([[0.1, 0.4, 0.2, 0.05, 0.15, 0.04, 0.06]] * 4))
    right = np.zeros((4, 7), bool)
    right[0, 1] = right[1, [3, 5]] = right[2, 6] = True
    rows = example_rows(logits, right)
    np.testing.assert_array_equal(rows["prediction"], [1, 1, 1, 1])
    np.testing.assert_array_equal(rows["correct"], [True, False, False, False])
    np.testing.assert_array_equal(rows["in_top5"], [True, False, True, False])
    np.testing.assert_allclose(rows["loss"], -np.log([0.4, 0.09, 0.06, 1]), rtol=1e-5)


def test_top5_of_fewer_than_five_classes_is_always_right():
    logits, _, right = random_batch(classes=3)
    assert example_rows(logits, right)["in_top5"].all()


def test_equal_logits_are_right_only_by_chance():
    rows = example_rows(np.zeros((10, 10), np.float32), np.eye(10, dtype=bool))
    assert (rows["correct"].sum(), rows["in_top5"].sum()) == (1, 5)


def test_a_corrupt_image_is_a_wrong_answer_with_the_loss_of_a_guess():
    logits, _, right = random_batch()
    corrupt = np.arange(50) == 7
    rows = corrupt_rows(example_rows(logits, right), corrupt, 7)
    assert (rows["prediction"][7], rows["correct"][7], rows["in_top5"][7]) == (-1, False, False)
    assert float(rows["loss"][7]) == pytest.approx(np.log(7))


def test_per_class_accuracy_equals_a_loop_and_is_nan_without_examples():
    logits, labels, right = random_batch()
    kept = (labels != 4) & (np.arange(50) < 40)
    correct = np.asarray(example_rows(logits, right)["correct"])
    accuracy = per_class_accuracy(correct[kept], labels[kept], tuple("abcdefg"))
    for label, name in enumerate("abcdefg"):
        chosen = logits[kept & (labels == label)]
        expected = (chosen.argmax(1) == label).mean() if len(chosen) else np.nan
        np.testing.assert_allclose(accuracy[name], expected)
    assert np.isnan(accuracy["e"])


def test_sums_add_up_on_the_host_without_losing_examples():
    names = ("loss", "correct", "correct5", "count", "corrupt", "grad_norm", "param_norm")
    accumulator = Accumulator()
    for count in (2**24, 1):  # float32 cannot count on from the first
        accumulator.add(1, {name: np.float32([count]) for name in names})
    assert accumulator.notes()["count"] == 2**24 + 1
