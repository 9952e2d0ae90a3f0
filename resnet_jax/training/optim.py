"""Learning rate schedules and optimizers, all from Optax."""

import functools
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from resnet_jax.errors import UserError

# --- schedules: (peak, steps, end, ...) -> rate after a warmup of `warmup_steps`, which is over at its step 0 ---


def _constant(peak, steps, **_):
    return optax.constant_schedule(peak)


def _step(peak, steps, *, warmup_steps, milestones, factor, **_):
    drops = {round(milestone * (steps + warmup_steps)) - warmup_steps: factor for milestone in milestones}
    return optax.piecewise_constant_schedule(peak, drops)


def _cosine(peak, steps, *, end, **_):
    shape = optax.cosine_decay_schedule(1.0, steps)
    return lambda step: end + (peak - end) * shape(step)


def _linear(peak, steps, *, end, **_):
    return optax.linear_schedule(peak, end, steps)


def _polynomial(peak, steps, *, end, power, **_):
    return optax.polynomial_schedule(peak, end, power, steps)


def _triangular(peak, steps, *, end, peak_fraction, warmup_from, **_):
    rise = max(1, round(peak_fraction * steps))
    sides = [optax.linear_schedule(warmup_from, peak, rise), optax.linear_schedule(peak, end, max(1, steps - rise))]
    return optax.join_schedules(sides, [rise])


SCHEDULES = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "triangular": _triangular,
}


def make_schedule(
    name: str,
    peak: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    warmup_shape: str = "linear",
    warmup_from: float = 0.0,
    end: float = 0.0,
    milestones: Sequence[float] = (),
    factor: float = 0.1,
    power: float = 1.0,
    peak_fraction: float = 0.2,
) -> optax.Schedule:
    """Learning rate by step.

    >>> [round(float(make_schedule("cosine", 0.4, 10, warmup_steps=2)(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.2, 0.4, 0.2, 0.0]
    >>> [round(float(make_schedule("step", 0.1, 100, milestones=(0.5, 0.75))(step)), 4) for step in (49, 50, 75)]
    [0.1, 0.01, 0.001]

    Args:
      name: a key of SCHEDULES.
      peak: rate after the warmup; may be traced.
      steps: length of the run, warmup included.
      warmup_steps: length of the warmup; the schedule proper fills the rest of the run.
      warmup_shape: "linear" from `warmup_from` to the peak, or "constant" at `warmup_from`.
      warmup_from: rate at step 0.
      end: rate at the end of "cosine", "linear", "polynomial" and "triangular".
      milestones: for "step": fractions of the whole run at which the rate is multiplied by `factor`.
      factor: for "step".
      power: for "polynomial".
      peak_fraction: for "triangular": the fraction of the run at which the rate peaks (from `warmup_from` on a straight
        line, to `end` on another); it has no other warmup.
    """
    after = SCHEDULES[name](
        peak,
        steps - warmup_steps,
        warmup_steps=warmup_steps,
        warmup_from=warmup_from,
        end=end,
        milestones=milestones,
        factor=factor,
        power=power,
        peak_fraction=peak_fraction,
    )
    if not warmup_steps:
        return after
    if warmup_shape == "linear":
        warmup = optax.linear_schedule(warmup_from, peak, warmup_steps)
    else:
        warmup = optax.constant_schedule(warmup_from)
    return optax.join_schedules([warmup, after], [warmup_steps])


# --- optimizers: (rate, momentum, nesterov, b1, b2, decay, mask) -> GradientTransformation; decoupled weight decay ---


def _sgd(rate, *, momentum, nesterov, decay, mask, **_):
    return optax.chain(
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(decay, mask),
        optax.scale_by_learning_rate(rate),
    )


def _adamw(rate, *, b1, b2, decay, mask, **_):
    return optax.adamw(rate, b1, b2, weight_decay=decay, mask=mask)


def _lars(rate, *, momentum, nesterov, decay, mask, **_):
    return optax.lars(rate, decay, mask, trust_ratio_mask=is_kernel, momentum=momentum, nesterov=nesterov)


def _lamb(rate, *, b1, b2, decay, mask, **_):
    return optax.lamb(rate, b1, b2, weight_decay=decay, mask=mask)


def _muon(rate, *, momentum, nesterov, b1, b2, decay, mask, **_):
    # Convolutions are matrices from their inputs (height, width, channels) to their outputs; the rest is Adam's.
    def as_matrices(params):
        return jax.tree.map(lambda p: MuonDimensionNumbers((0, 1, 2), 3) if p.ndim == 4 else None, params)

    # optax.contrib.muon does the partition of the weights itself, but its weight decay knows no mask for Adam's, so
    # decay and rate follow it here.
    direction = muon(
        1.0,
        beta=momentum,
        nesterov=nesterov,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=as_matrices,
    )
    return optax.chain(direction, optax.add_decayed_weights(-decay, mask), optax.scale_by_schedule(rate))


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw, "lars": _lars, "lamb": _lamb, "muon": _muon}


def make_optimizer(
    name: str,
    peak_lr: float,
    schedule: Callable[[jax.Array], optax.Schedule],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "l2",
    weight_decay_params: str = ".*",
    clip_norm: float = 0.0,
    lr_factors: Sequence[tuple[str, float]] = (),
    frozen: Callable | None = None,
) -> optax.GradientTransformation:
    """An optimizer that keeps its peak learning rate in its state, as `opt_state.hyperparams["peak_lr"]`.

    So runs that differ in their rate share one program.

    Args:
      name: a key of OPTIMIZERS.
      peak_lr: see `make_schedule`.
      schedule: makes the schedule of a peak, which is traced.
      momentum, nesterov: for SGD, LARS and Muon.
      b1, b2: for AdamW, LAMB and Muon's Adam.
      weight_decay: strength.
      weight_decay_mode: "l2" adds `weight_decay * weight` to the gradient before anything else sees it (the paper's,
        torch's SGD); "decoupled" leaves it to the optimizer's own place: beside the momentum, times the learning rate
        (SGD, AdamW, Muon), or inside the trust ratio (LARS, LAMB).
      weight_decay_params: regular expression; weights whose path (`stage1_block1/conv1/kernel`) it finds decay.
      clip_norm: global norm that gradients are scaled down to first; 0 for never.
      lr_factors: pairs of a regular expression and a factor of the learning rate, for weights whose path it finds; of
        several, the first.
      frozen: function from parameters to a tree of bools, True for those that stay; they have no state.

    Raises:
      UserError: a pattern is no regular expression; or, in `init`, it occurs in no path, or all parameters are frozen.
    """
    masks = [path_mask(weight_decay_params, "optim.weight_decay_params")]
    masks += [path_mask(pattern, "optim.lr_factors") for pattern, _ in lr_factors]
    mask = functools.partial(_matches, weight_decay_params)
    settings = {"momentum": momentum, "nesterov": nesterov, "b1": b1, "b2": b2, "mask": mask}
    l2 = weight_decay if weight_decay_mode == "l2" else 0.0

    def trained(peak_lr):
        return optax.chain(
            optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
            optax.add_decayed_weights(l2, mask) if l2 else optax.identity(),
            OPTIMIZERS[name](schedule(peak_lr), decay=weight_decay - l2, **settings),
            _scale_by_factors(lr_factors) if lr_factors else optax.identity(),
        )

    def with_peak(peak_lr):
        if frozen is None:
            return trained(peak_lr)
        return optax.partition({False: trained(peak_lr), True: _stay()}, frozen)

    return _checked(optax.inject_hyperparams(with_peak)(peak_lr=peak_lr), masks, frozen)


def _checked(optimizer, masks: Sequence[Callable], frozen: Callable | None) -> optax.GradientTransformation:
    """The optimizer, whose `init` refuses patterns that match nothing. They may match frozen parameters alone."""

    def init(params):
        for mask in masks:
            mask(params)
        if frozen is not None and all(jax.tree.leaves(frozen(params))):
            raise UserError(
                "freeze: expected a parameter that is trained, found all of them frozen; leave the head out: '^(?!fc/)'"
            )
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


def is_kernel(params):
    """A tree of bools: True for convolution and dense kernels, False for norms and biases."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def _scale_by_factors(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def scale(updates, params):
        masks = [_matches(pattern, updates) for pattern, _ in factors]

        def scaled(update, *found):
            return update * next((factor for (_, factor), hit in zip(factors, found, strict=True) if hit), 1.0)

        return jax.tree.map(scaled, updates, *masks)

    return optax.stateless(scale)


def _stay() -> optax.GradientTransformation:
    # Minus zero, as minus zero plus zero would lose its sign.
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates))


def path_mask(pattern: str, field: str) -> Callable:
    """A function from parameters to a tree of bools: does `pattern` occur in the parameter's path?

    Args:
      pattern: regular expression.
      field: config key that it comes from, for errors.

    Raises:
      UserError: it is no regular expression, or (on use) it occurs in no path.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: expected a regular expression, found {pattern!r}: {error}") from None

    def mask(params):
        found = _matches(pattern, params)
        if not any(jax.tree.leaves(found)):
            names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            raise UserError(f"{field}: {pattern!r} occurs in no parameter's path, like {names[0]} or {names[-1]}")
        return found

    return mask


def _matches(pattern: str, params):
    return jax.tree_util.tree_map_with_path(lambda path, _: re.search(pattern, _name(path)) is not None, params)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
