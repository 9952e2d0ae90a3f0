import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.training.step import create_state, make_eval_step, make_train_step
from tests import tiny  # noqa: F401  (registers the tiny net)

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (16, 8, 8, 1))
TARGETS = jax.nn.one_hot(jnp.arange(16) % 10, 10)
BATCH = {"image": IMAGES, "target": TARGETS}


class Linear(nn.Module):
    """A net whose gradient has a closed form, without batch statistics."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10, name="fc")(images.reshape(len(images), -1))


def start(model, optimizer, with_ema=False):
    return create_state(model, optimizer, KEY, KEY, IMAGES[:1], with_ema)


def test_a_step_is_gradient_descent_on_the_mean_cross_entropy():
    optimizer = optax.sgd(0.5)
    state = start(Linear(), optimizer)
    new, sums = jax.jit(make_train_step(Linear(), optimizer))(state, BATCH)
    x, weights = np.asarray(IMAGES).reshape(16, -1), state.params["fc"]
    probabilities = jax.nn.softmax(x @ weights["kernel"] + weights["bias"][None])
    gradient = x.T @ np.asarray(probabilities - TARGETS) / 16  # of softmax regression
    np.testing.assert_allclose(new.params["fc"]["kernel"], weights["kernel"] - 0.5 * gradient, atol=1e-6)
    bias_gradient = np.asarray(probabilities - TARGETS).mean(0)
    assert float(sums["grad_norm"]) == pytest.approx(np.sqrt((gradient**2).sum() + (bias_gradient**2).sum()), rel=1e-5)
    loss = -np.log(np.asarray(probabilities)[np.arange(16), np.arange(16) % 10]).sum()
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
    assert (int(new.step), float(sums["count"])) == (1, 16)


def test_label_smoothing_spreads_its_share_over_all_classes():
    optimizer = optax.sgd(0.0)
    state = start(Linear(), optimizer)
    losses = {}
    for name, smoothing, targets in (("smooth", 0.1, TARGETS), ("by hand", 0.0, 0.9 * TARGETS + 0.01)):
        step = make_train_step(Linear(), optimizer, label_smoothing=smoothing)
        _, sums = step(state, {"image": IMAGES, "target": targets})
        losses[name] = float(sums["loss"])
    assert losses["smooth"] == pytest.approx(losses["by hand"], rel=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_is_the_mean_over_classes_of_logistic_regressions(threshold):
    optimizer = optax.sgd(0.5)
    state = start(Linear(), optimizer)
    mixed = 0.54 * TARGETS + 0.25 * TARGETS[::-1] + 0.21 * jnp.roll(TARGETS, 3, axis=0)
    step = make_train_step(Linear(), optimizer, loss="bce", label_smoothing=0.1, bce_threshold=threshold)
    new, sums = jax.jit(step)(state, {"image": IMAGES, "target": mixed})
    targets = 0.9 * np.asarray(mixed) + 0.1 / 10
    if threshold is not None:
        targets = np.where(targets > 0.2, 1, 0)
        assert set(targets.sum(1)) == {2}  # 0.21 is smoothed to less
    x, weights = np.asarray(IMAGES, np.float64).reshape(16, -1), jax.tree.map(np.float64, state.params["fc"])
    p = 1 / (1 + np.exp(-(x @ weights["kernel"] + weights["bias"])))
    losses = -targets * np.log(p) - (1 - targets) * np.log(1 - p)
    assert float(sums["loss"]) == pytest.approx(losses.mean(1).sum(), rel=1e-5)
    np.testing.assert_allclose(
        new.params["fc"]["kernel"], weights["kernel"] - 0.5 * x.T @ (p - targets) / 160, atol=1e-6
    )


def test_a_threshold_without_the_loss_that_it_is_for_is_refused():
    with pytest.raises(UserError, match="bce_threshold: expected None with loss='softmax', found 0.2; try loss='bce'"):
        make_train_step(Linear(), optax.sgd(0.5), bce_threshold=0.2)


@pytest.mark.parametrize("microbatches", [2, 4, 16])
def test_gradient_accumulation_makes_the_update_of_the_whole_batch(microbatches):
    optimizer = optax.sgd(0.5, momentum=0.9)
    state = start(Linear(), optimizer)
    whole, whole_sums = make_train_step(Linear(), optimizer)(state, BATCH)
    parts, parts_sums = make_train_step(Linear(), optimizer, grad_accum_steps=microbatches)(state, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.params, whole.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts_sums, whole_sums)


def test_batch_statistics_of_microbatches_follow_one_another():
    model, optimizer = create_model("tiny", num_classes=10), optax.sgd(0.0)
    state = start(model, optimizer)
    expected = state
    for part in (slice(0, 8), slice(8, 16)):
        expected, _ = make_train_step(model, optimizer)(expected, jax.tree.map(lambda x: x[part], BATCH))  # noqa: B023
    parts, _ = make_train_step(model, optimizer, grad_accum_steps=2)(state, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.batch_stats, expected.batch_stats)


def test_the_moving_average_follows_its_formula():
    model, optimizer = create_model("tiny", num_classes=10), optax.sgd(0.5)
    step = jax.jit(make_train_step(model, optimizer, ema_decay=0.3))
    state = start(model, optimizer, with_ema=True)
    expected = state.ema
    for t in range(4):
        state, _ = step(state, BATCH)
        decay = min(0.3, (1 + t) / (10 + t))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, expected, now)  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, expected)


def test_training_updates_running_statistics_with_flax_momentum():
    model, optimizer = create_model("tiny", num_classes=10), optax.sgd(0.0)
    state = start(model, optimizer)
    new, _ = make_train_step(model, optimizer)(state, BATCH)
    conv = jax.lax.conv_general_dilated(
        IMAGES, state.params["conv1"]["kernel"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(new.batch_stats["bn1"]["mean"], 0.1 * conv.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(new.batch_stats["bn1"]["var"], 0.9 + 0.1 * conv.var((0, 1, 2)), rtol=1e-5)


class Dropout(nn.Module):
    """A net that says which inputs it kept."""

    @nn.compact
    def __call__(self, images, *, train):
        kept = nn.Dropout(0.5, deterministic=not train)(jnp.ones((len(images), 10)))
        return kept * self.param("scale", nn.initializers.ones, (1, 10))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_dropout_follows_the_key(microbatches):
    optimizer = optax.sgd(1.0)
    state = start(Dropout(), optimizer)
    step = jax.jit(make_train_step(Dropout(), optimizer, grad_accum_steps=microbatches))
    same, again, other = (step(state.replace(key=jax.random.key(seed)), BATCH)[0].params["scale"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_evaluation_uses_running_statistics_so_that_examples_do_not_touch_each_other():
    model = create_model("tiny", num_classes=10)
    variables = model.init(KEY, IMAGES, train=False)
    step = make_eval_step(model)
    labels = jnp.arange(16) % 10
    whole = step(variables, {"image": IMAGES, "label": labels, "mask": jnp.ones(16, bool)})
    ones = [
        step(variables, {"image": IMAGES[i : i + 1], "label": labels[i : i + 1], "mask": jnp.ones(1, bool)})
        for i in range(16)
    ]
    total = jax.tree.map(lambda *parts: jnp.concatenate(parts), *ones)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), total, whole)


def test_a_step_is_traced_once_however_often_it_is_called():
    model, optimizer = create_model("tiny", num_classes=10), optax.sgd(0.5)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_train_step(model, optimizer), n=1))
    state = start(model, optimizer)
    for _ in range(3):
        state, sums = step(state, BATCH)
    chex.assert_shape(list(sums.values()), ())
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, start(model, optimizer).params)


def test_padding_counts_for_nothing_even_if_it_is_not_finite():
    model = create_model("tiny", num_classes=10)
    variables = model.init(KEY, IMAGES, train=False)
    step, labels = make_eval_step(model), jnp.arange(16) % 10
    padded = {"image": IMAGES.at[12:].set(jnp.nan), "label": labels, "mask": jnp.arange(16) < 12}
    rows = step(variables, padded)
    whole = step(variables, {"image": IMAGES, "label": labels, "mask": jnp.ones(16, bool)})
    for name in ("prediction", "correct", "in_top5", "loss"):
        np.testing.assert_array_equal(rows[name][rows["mask"]], whole[name][:12])
