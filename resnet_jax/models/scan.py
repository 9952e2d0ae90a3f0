"""Deep nets as loops: the equal blocks of a stage as one that is repeated, and their trees of variables."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_KEPT = "convolution"


def repeated(times: int, remat: bool) -> Callable[[nn.Module, jax.Array], jax.Array]:
    """A function `(block, x) -> output` of `times` blocks after one another, a `nn.scan` if there are several.

    Args:
      times: number of blocks. If it is more than one, all their variables have a leading axis of this size.
      remat: compute all but the outputs of `kept` convolutions, and the blocks' inputs, again in the backward pass.
    """

    def call(block, x):
        return block(x)

    if remat:
        policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
        call = nn.remat(call, policy=policy, prevent_cse=times == 1)
    if times == 1:
        return call
    scan = nn.scan(
        lambda block, x, _: (call(block, x), None), variable_axes={True: 0}, split_rngs={True: True}, length=times
    )
    return lambda block, x: scan(block, x, None)[0]


def kept(conv: Callable) -> Callable:
    """The conv, its output kept for the backward pass where blocks are computed again."""

    def kept_conv(*args, **settings):
        layer = conv(*args, **settings)
        return lambda x: checkpoint_name(layer(x), _KEPT)

    return kept_conv


def stack_blocks(model: nn.Module, variables):
    """The net with `scan_blocks`, and its variables, the same in other arrays.

    Args:
      model: network; one without blocks that can be scanned is returned as it is.
      variables: tree in which the blocks of the net are entries of dicts: {"params", "batch_stats"}, one of these, or
        the state of an optimizer.

    Returns:
      (model, variables).
    """
    if not hasattr(model, "scan_blocks") or model.scan_blocks:
        return model, variables
    scanned = model.clone(scan_blocks=True)

    def stacked(tree: Mapping) -> dict:
        tree = dict(tree)
        for stack, names in _stacks(scanned).items():
            if names[0] in tree:
                tree[stack] = jax.tree.map(lambda *blocks: jnp.stack(blocks), *(tree.pop(name) for name in names))
        return tree

    return scanned, _map_nets(stacked, variables, [name for stage in model.stages for name in stage])


def unstack_blocks(model: nn.Module, variables):
    """The net without `scan_blocks`, and its variables: the inverse of `stack_blocks`."""
    if not getattr(model, "scan_blocks", False):
        return model, variables

    def unstacked(tree: Mapping) -> dict:
        tree = dict(tree)
        for stack, names in _stacks(model).items():
            if stack in tree:
                blocks = tree.pop(stack)
                for index, name in enumerate(names):
                    tree[name] = jax.tree.map(lambda x, index=index: x[index], blocks)
        return tree

    return model.clone(scan_blocks=False), _map_nets(unstacked, variables, list(_stacks(model)))


def convert_blocks(source: nn.Module, model: nn.Module, variables):
    """The variables of a net, `source`, as those of `model`, the same net with or without `scan_blocks`."""
    source, variables = unstack_blocks(source, variables)
    return stack_blocks(source, variables)[1] if getattr(model, "scan_blocks", False) else variables


def _stacks(scanned: nn.Module) -> dict[str, tuple[str, ...]]:
    layers = {layer: names for stage in scanned.layers_of_blocks for layer, names in stage.items()}
    return {layer: names for layer, names in layers.items() if len(names) > 1}


def _map_nets(function: Callable, tree, names: list[str]):
    """The tree, its dicts that hold entries called `names` replaced by the function's."""

    def is_net(part) -> bool:
        return isinstance(part, Mapping) and any(name in part for name in names)

    return jax.tree.map(lambda part: function(part) if is_net(part) else part, tree, is_leaf=is_net)
