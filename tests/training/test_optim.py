import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import UserError
from resnet_jax.training.optim import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule, path_mask

PARAMS = {
    "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8))},
    "bn1": {"scale": jnp.ones(8), "bias": jnp.zeros(8) + 0.5},
    "fc": {"kernel": jax.random.normal(jax.random.key(1), (8, 10)), "bias": jnp.ones(10)},
}
GRADS = jax.tree.map(lambda p: jnp.cos(p) / 3, PARAMS)


def rates(name, steps, at, **settings):
    schedule = make_schedule(name, 0.1, steps, **settings)
    return [float(schedule(step)) for step in at]


def updates(name, count=1, lr=0.1, **settings):
    """Parameters after `count` updates with the same gradients."""
    optimizer = make_optimizer(name, lr, optax.constant_schedule, **settings)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(count):
        change, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, change)
    return params


def test_step_schedule_drops_at_its_milestones():
    at = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    np.testing.assert_allclose(
        rates("step", 64_000, at, milestones=(0.5, 0.75)), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6
    )


def test_constant_warmup_is_the_papers_and_does_not_shift_the_milestones():
    settings = {"milestones": (0.5, 0.75), "warmup_steps": 400, "warmup_shape": "constant", "warmup_from": 0.01}
    at = (0, 399, 400, 31_999, 32_000, 48_000)
    np.testing.assert_allclose(rates("step", 64_000, at, **settings), [0.01, 0.01, 0.1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_cosine_after_a_linear_warmup_equals_its_formula():
    at = np.arange(0, 101)
    expected = np.where(at < 10, 0.1 * at / 10, 0.005 + 0.095 * (1 + np.cos(np.pi * (at - 10) / 90)) / 2)
    np.testing.assert_allclose(rates("cosine", 100, at, warmup_steps=10, end=0.005), expected, atol=1e-7)


def test_linear_polynomial_triangular_and_constant_equal_their_formulas():
    at = np.arange(0, 101)
    np.testing.assert_allclose(rates("linear", 100, at, end=0.02), 0.1 - 0.08 * at / 100, rtol=1e-5)
    np.testing.assert_allclose(rates("polynomial", 100, at, power=2.0), 0.1 * (1 - at / 100) ** 2, atol=1e-7)
    triangle = np.where(at < 20, 0.1 * at / 20, 0.1 * (100 - at) / 80)
    np.testing.assert_allclose(rates("triangular", 100, at, peak_fraction=0.2), triangle, atol=1e-7)
    np.testing.assert_allclose(rates("constant", 100, at), 0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_between_zero_and_its_peak(name):
    values = rates(name, 37, range(37), milestones=(0.3,))
    assert min(values) >= 0
    assert max(values) == pytest.approx(0.1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_l2_equals_torchs_formula(nesterov):
    expected, velocity = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(3):
        grads = jax.tree.map(lambda g, w: g + 0.01 * w, GRADS, expected)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        change = jax.tree.map(lambda g, v: g + 0.9 * v, grads, velocity) if nesterov else velocity
        expected = jax.tree.map(lambda w, c: w - 0.1 * c, expected, change)
    result = updates("sgd", 3, nesterov=nesterov, weight_decay=0.01)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result, expected)


def test_decoupled_decay_is_beside_the_momentum():
    plain, decayed = updates("sgd"), updates("sgd", weight_decay=0.01, weight_decay_mode="decoupled")
    again = updates("sgd", 2, weight_decay=0.01, weight_decay_mode="decoupled")
    jax.tree.map(lambda a, b, w: np.testing.assert_allclose(b - a, -0.1 * 0.01 * w, atol=1e-6), plain, decayed, PARAMS)
    step2 = jax.tree.map(lambda w, g: w - 0.1 * (1.9 * g + 0.01 * w), decayed, GRADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, step2)


@pytest.mark.parametrize("mode", ["l2", "decoupled"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_the_chosen_weights_decay(name, mode):
    settings = {"weight_decay_mode": mode, "weight_decay_params": "kernel$"}
    # Norms and biases move as without decay; where a trust ratio is in the way, too: it is taken for each weight alone.
    plain, decayed = updates(name, 2, **settings), updates(name, 2, weight_decay=0.1, **settings)
    for layer, weight in (("conv1", "kernel"), ("fc", "kernel")):
        assert not np.allclose(plain[layer][weight], decayed[layer][weight], rtol=1e-6)
    for layer, weight in (("bn1", "scale"), ("bn1", "bias"), ("fc", "bias")):
        np.testing.assert_array_equal(plain[layer][weight], decayed[layer][weight])


def test_a_pattern_that_fits_no_weight_is_refused():
    for settings, message in (
        ({"weight_decay_params": "kernle"}, "optim.weight_decay_params: 'kernle' occurs in no parameter's path"),
        ({"lr_factors": (("^fc", 2.0), ("^cf", 2.0))}, "optim.lr_factors: '.cf' occurs in no parameter's path"),
    ):
        with pytest.raises(UserError, match=message):
            make_optimizer("sgd", 0.1, optax.constant_schedule, **settings).init(PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_patterns_may_fit_frozen_weights_alone(name):
    settings = {"weight_decay": 0.1, "weight_decay_params": "kernel$", "lr_factors": (("^conv1/", 0.0),)}
    result = updates(name, frozen=path_mask("kernel", "freeze"), **settings)
    moved = jax.tree.map(lambda before, after: bool((before != after).any()), PARAMS, result)
    assert (moved["conv1"], moved["fc"]) == ({"kernel": False}, {"kernel": False, "bias": True})
    assert moved["bn1"] == {"scale": True, "bias": True}


def test_freezing_all_weights_is_refused():
    with pytest.raises(UserError, match="freeze: expected a parameter that is trained, found all of them frozen"):
        make_optimizer("sgd", 0.1, optax.constant_schedule, frozen=path_mask(".*", "freeze")).init(PARAMS)


def test_lars_scales_kernels_by_their_trust_ratio_and_leaves_the_rest():
    result = updates("lars", lr=1.0, momentum=0.0)
    kernel, grad = PARAMS["conv1"]["kernel"], GRADS["conv1"]["kernel"]
    ratio = 0.001 * jnp.linalg.norm(kernel) / jnp.linalg.norm(grad)  # You et al. 2017, eq. 6
    np.testing.assert_allclose(result["conv1"]["kernel"], kernel - ratio * grad, rtol=1e-5)
    np.testing.assert_allclose(result["bn1"]["scale"], PARAMS["bn1"]["scale"] - GRADS["bn1"]["scale"], rtol=1e-5)


def test_lamb_moves_each_weight_by_the_rate_times_its_norm():
    result = updates("lamb", lr=0.1)
    for layer in ("conv1", "fc"):
        before, after = PARAMS[layer]["kernel"], result[layer]["kernel"]
        assert jnp.linalg.norm(after - before) == pytest.approx(0.1 * float(jnp.linalg.norm(before)), rel=1e-3)


def test_adamw_first_moves_by_the_rate_in_the_gradients_sign():
    result = updates("adamw", lr=0.1)
    kernel = PARAMS["fc"]["kernel"]
    np.testing.assert_allclose(result["fc"]["kernel"], kernel - 0.1 * jnp.sign(GRADS["fc"]["kernel"]), atol=1e-4)


def test_muon_orthogonalises_convolutions_as_matrices_from_inputs_to_outputs():
    change = np.asarray(updates("muon", lr=1.0)["conv1"]["kernel"] - PARAMS["conv1"]["kernel"]).reshape(36, 8)
    singular = np.linalg.svd(change, compute_uv=False)
    assert singular.max() / singular.min() < 2.5  # the gradient's: about 5; Newton-Schulz brings them to 0.7..1.2
    gradient = np.linalg.svd(np.asarray(GRADS["conv1"]["kernel"]).reshape(36, 8), compute_uv=False)
    assert gradient.max() / gradient.min() > singular.max() / singular.min()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    target = jax.tree.map(lambda p: p + 1, PARAMS)
    loss = lambda p: optax.tree.norm(optax.tree.sub(p, target), squared=True)  # noqa: E731
    optimizer = make_optimizer(name, 0.02, optax.constant_schedule)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(20):
        change, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, change)
    assert float(loss(params)) < 0.98 * float(loss(PARAMS))


def test_clipping_bounds_the_global_norm():
    clipped = updates("sgd", lr=1.0, momentum=0.0, clip_norm=0.5)
    change = jax.tree.map(lambda a, b: a - b, PARAMS, clipped)
    assert float(optax.tree.norm(change)) == pytest.approx(0.5, rel=1e-4)
    scale = 0.5 / float(optax.tree.norm(GRADS))
    np.testing.assert_allclose(change["conv1"]["kernel"], scale * GRADS["conv1"]["kernel"], atol=1e-5)


def test_the_peak_rate_is_kept_in_the_state_and_not_in_the_program():
    optimizers = [make_optimizer("sgd", lr, lambda peak: optax.linear_schedule(peak, 0.0, 10)) for lr in (0.1, 0.3)]
    state = optimizers[1].init(PARAMS)
    assert float(state.hyperparams["peak_lr"]) == pytest.approx(0.3)
    change, _ = optimizers[0].update(GRADS, state, PARAMS)  # the program of the other rate
    expected, _ = optimizers[1].update(GRADS, state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, change, expected)
    other, _ = optimizers[0].update(GRADS, optimizers[0].init(PARAMS), PARAMS)
    np.testing.assert_allclose(change["fc"]["bias"], 3 * other["fc"]["bias"], rtol=1e-6)
