"""Looks inside a net: layer responses, gradients, branches, lesions and exact batch statistics.

Pure functions of a model, its variables and a batch. Models show what is looked at: norms of the main path their output
in the collection "responses" (`models.norm.announced`), blocks their two addends in "addends" (`Block.joined`), which
also reads the collection "lesions".
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.errors import UserError
from resnet_jax.models.profile import Layer, recorded_layers
from resnet_jax.models.shortcuts import no_shortcut


def make_layer_diagnostics(model, *, mean: Callable) -> Callable:
    """Make a function `(variables, batch, key) -> diagnostics` of a net in training mode, which changes nothing.

    Args:
      model: its norms announced, its blocks joined by `Block.joined`.
      mean: over devices.

    Returns:
      The function. Its batch holds this device's `image`, float32 (b, h, w, c), and `target`, float32 (b, classes).
      Its diagnostics are float32 scalars by name of layer or block:
        `response_std`: standard deviation of each norm's output, over images, pixels and channels (He et al. 2015,
          Figure 7: after BN, before the nonlinearity or the addition).
        `grad_norm`: L2 norm of the mean loss's gradient by all weights of a block (or of a layer outside blocks).
        `branch_to_skip`: root mean square of a block's branch, as it is added, over that of its shortcut; infinite in
          a plain net.
        `norm_scale`: mean absolute scale (gamma) of each norm.
      It raises `UserError`, while it is traced, if a layer or a block does not show itself.
    """

    def loss_and_looks(params, batch_stats, batch, key):
        with recorded_layers() as layers:
            logits, looks = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats", "addends", "responses"],
                rngs={"dropout": key},
            )
        responses = {"/".join((*path[:-2], path[-1])): x for path, (x,) in _leaves(looks.get("responses", {}))}
        addends = looks.get("addends", {})
        _check_all_are_seen(model, layers, responses, addends)
        return jnp.mean(optax.softmax_cross_entropy(logits, batch["target"])), (responses, addends)

    def diagnostics(variables: dict, batch: dict, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        grads, (responses, addends) = jax.grad(loss_and_looks, has_aux=True)(params, batch_stats, batch, key)
        grads = mean(grads)
        moments = mean({name: (jnp.mean(_f32(x)), jnp.mean(_f32(x) ** 2)) for name, x in responses.items()})
        powers = mean(
            {block: {name: jnp.mean(_f32(x) ** 2) for name, (x,) in both.items()} for block, both in addends.items()}
        )
        return {
            "response_std": {name: jnp.sqrt(square - first**2) for name, (first, square) in moments.items()},
            "grad_norm": {name: optax.tree.norm(part) for name, part in grads.items()},
            "branch_to_skip": {name: jnp.sqrt(power["branch"] / power["skip"]) for name, power in powers.items()},
            "norm_scale": _norm_scales(params, responses),
        }

    return diagnostics


def make_batch_moments(model, *, mean: Callable) -> Callable:
    """Make a function `(variables, batch, key) -> moments` of the batch alone, to be averaged over many batches.

    `moments` has the tree of `batch_stats`, with E[x^2] in place of the variances: their means over batches make exact
    statistics (`statistics_of_moments`; Wu and Johnson 2021, "Rethinking Batch in BatchNorm", section 3).

    Args:
      model: with norms of momentum 0, so that their running values become those of the batch.
      mean: over devices.
    """

    def moments(variables: dict, batch: dict, key: jax.Array) -> dict:
        _, updated = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return mean(_map_statistics(lambda mean, var: {"mean": mean, "var": var + mean**2}, updated["batch_stats"]))

    return moments


def statistics_of_moments(moments: dict) -> dict:
    """`batch_stats` from moments that were averaged over batches."""
    return _map_statistics(lambda mean, square: {"mean": mean, "var": square - mean**2}, moments)


def lesions(model, variables: dict) -> Iterator[tuple[str, str, dict]]:
    """(kind, name, variables) of the net with each block "removed", then with neighbours "swapped".

    Removed: the branch gives zero and the shortcut, projections included, is all that remains (Veit et al. 2016,
    section 4.1); not in a plain net, where nothing would. These variables have a collection "lesions" more, in which
    `Block.joined` finds the branch switched off. Swapped: two neighbours of a stage exchange all their weights
    (section 4.3, in its smallest step); only where these have the same shapes.
    """
    blocks = block_names(model)
    is_plain = getattr(model, "shortcut", None) is no_shortcut
    for removed in [] if is_plain else blocks:
        # Switches for all blocks, so that one compiled program serves every lesion.
        switches = {block: {"branch_is_on": np.bool_(block != removed)} for block in blocks}
        yield "removed", removed, {**variables, "lesions": switches}
    for stage in getattr(model, "stages", ()):
        for first, second in zip(stage, stage[1:], strict=False):
            if _shapes(variables["params"][first]) == _shapes(variables["params"][second]):
                swap = {first: second, second: first}
                swapped = {
                    collection: {name: tree[swap.get(name, name)] for name in tree}
                    for collection, tree in variables.items()
                    if tree
                }
                yield "swapped", f"{first}, {second}", {**variables, **swapped}


def block_names(model) -> list[str]:
    """`stage1_block1`, `stage1_block2`, ... in the order of the forward pass; none in a net without blocks.

    Raises:
      UserError: a net whose blocks are scanned, so that they do not show themselves one by one.
    """
    if getattr(model, "scan_blocks", False):
        raise UserError(
            "diagnostics: expected a net that runs its blocks one by one, found scan_blocks; convert the net and its "
            "variables by models.scan.unstack_blocks"
        )
    return [block for stage in getattr(model, "stages", ()) for block in stage]


def _check_all_are_seen(model, layers: list[Layer], responses: dict, addends: dict) -> None:
    norms = [layer for layer in layers if layer.is_on_main_path and layer.parameters and not layer.multiply_adds]
    unseen = [layer.name for layer in norms if layer.name not in responses]
    if unseen:
        raise UserError(
            f"diagnostics: expected layers with a kernel and norms that are announced, found {', '.join(unseen)}; "
            "make norms by the `norm` that a block or stem is given, or wrap them in models.norm.announced"
        )
    if set(addends) != set(block_names(model)):
        raise UserError(
            f"diagnostics: expected the addends of blocks {block_names(model)}, found those of {sorted(addends)}; "
            "derive blocks from models.blocks.Block"
        )


def _norm_scales(params: dict, responses: dict) -> dict[str, jax.Array]:
    scales = {}
    for name in responses:
        layer = params
        for part in name.split("/"):
            layer = layer.get(part, {})
        if not layer.keys() <= {"scale", "bias"}:
            raise UserError(
                f"diagnostics: expected a norm's parameters to be scale and bias, found {sorted(layer)} in {name}"
            )
        if "scale" in layer:
            scales[name] = jnp.mean(jnp.abs(layer["scale"]))
    return scales


def _leaves(tree: dict) -> list[tuple[tuple[str, ...], tuple]]:
    """(path, `sow`'s tuple of values) of each entry."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return [(tuple(part.key for part in path), x) for path, x in found]


def _map_statistics(function: Callable, tree: dict) -> dict:
    if all(isinstance(part, dict) for part in tree.values()):
        return {name: _map_statistics(function, part) for name, part in tree.items()}
    if tree.keys() != {"mean", "var"}:
        raise UserError(f"batch_stats: expected the statistics mean and var of a norm, found {sorted(tree)}")
    return function(tree["mean"], tree["var"])


def _shapes(tree) -> tuple:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaf.shape for leaf in leaves)


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
