import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.metrics import add_sums, class_sums, classification_sums, means, per_class_accuracy


def random_batch(n=50, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    labels = rng.integers(classes, size=n)
    return logits, labels, np.eye(classes, dtype=np.float32)[labels]


def test_metrics_equal_a_loop_over_examples():
    logits, labels, targets = random_batch()
    mask = np.arange(50) % 3 > 0
    loss, top1, top5 = [], [], []
    for row, label, counts in zip(logits.astype(np.float64), labels, mask, strict=True):
        if counts:
            loss.append(np.log(np.exp(row).sum()) - row[label])
            top1.append(row.argmax() == label)
            top5.append(label in np.argsort(row)[-5:])
    values = means(classification_sums(logits, targets, mask))
    assert values["loss"] == pytest.approx(np.mean(loss), rel=1e-6)
    assert values["accuracy"] == pytest.approx(np.mean(top1))
    assert values["top5"] == pytest.approx(np.mean(top5))


def test_padding_counts_for_nothing_even_if_it_is_not_finite():
    logits, _, targets = random_batch()
    padded = np.concatenate([logits, np.full((5, 7), np.nan, np.float32)])
    padded_targets = np.concatenate([targets, targets[:5]])
    mask = np.arange(55) < 50
    np.testing.assert_equal(
        {k: float(v) for k, v in classification_sums(padded, padded_targets, mask).items()},
        {k: float(v) for k, v in classification_sums(logits, targets, np.ones(50, bool)).items()},
    )


def test_logits_that_are_not_finite_are_never_correct():
    targets = np.eye(3, dtype=np.float32)[[0, 0]]
    sums = classification_sums(jnp.full((2, 3), jnp.nan), targets, np.ones(2, bool))
    assert float(sums["correct"]) == float(sums["correct5"]) == 0
    assert not np.isfinite(float(sums["loss"]))


def test_top5_of_fewer_than_five_classes_is_always_right():
    logits, _, targets = random_batch(classes=3)
    assert means(classification_sums(logits, targets, np.ones(50, bool)))["top5"] == 1


def test_equal_logits_are_right_only_by_chance():
    targets = np.eye(10, dtype=np.float32)[np.arange(10)]
    values = means(classification_sums(np.zeros((10, 10), np.float32), targets, np.ones(10, bool)))
    assert values["accuracy"] == pytest.approx(0.1)
    assert values["top5"] == pytest.approx(0.5)


def test_per_class_accuracy_equals_a_loop_and_is_nan_without_examples():
    logits, labels, targets = random_batch()
    mask = (labels != 4) & (np.arange(50) < 40)
    accuracy = per_class_accuracy(class_sums(logits, targets, mask))
    for label in range(7):
        chosen = logits[mask & (labels == label)]
        expected = (chosen.argmax(1) == label).mean() if len(chosen) else np.nan
        np.testing.assert_allclose(accuracy[label], expected)
    assert np.isnan(accuracy[4])


def test_sums_add_up_on_the_host_without_losing_examples():
    total = add_sums(None, {"count": jnp.float32(2**24)})  # float32 cannot count on from here
    assert float(add_sums(total, {"count": jnp.float32(1)})["count"]) == 2**24 + 1
