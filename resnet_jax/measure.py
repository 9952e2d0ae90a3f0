"""What happens inside a net: layer responses, gradients, branches, lesions and exact batch statistics."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from resnet_jax.models.layers import no_shortcut


def make_layer_measures(model, *, mean: Callable) -> Callable:
    """A function `(variables, batch, key) -> measures` that looks at a net in training mode and changes nothing.

    Args:
      model: with batch norms called `bn...`, and blocks that show their "addends".
      mean: over devices.

    Returns:
      The function. Its batch holds this device's `image`, float32 (b, h, w, c), and `target`, float32 (b, classes).
      Its measures are float32 scalars by name of layer or block:
        `response_std`: standard deviation of each norm's output, over images, pixels and channels (He et al. 2015,
          Figure 7: after BN, before the nonlinearity or the addition).
        `grad_norm`: L2 norm of the mean loss's gradient by all weights of a block (or of a layer outside blocks).
        `branch_to_skip`: root mean square of what a block's branch adds, over that of what its shortcut adds;
          infinite in a plain net.
        `norm_scale`: mean absolute scale (gamma) of each norm.
    """

    def loss_and_looks(params, batch_stats, batch, key):
        logits, looks = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats", "addends", "intermediates"],
            capture_intermediates=lambda module, _: _is_norm(module.name),
            rngs={"dropout": key},
        )
        return jnp.mean(optax.softmax_cross_entropy(logits, batch["target"])), looks

    def measures(variables: dict, batch: dict, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        params = variables["params"]
        grads, looks = jax.grad(loss_and_looks, has_aux=True)(params, variables.get("batch_stats", {}), batch, key)
        grads = mean(grads)
        responses = {path.removesuffix("/__call__"): x for path, x in _leaves(looks["intermediates"])}
        moments = mean({name: (jnp.mean(_f32(x)), jnp.mean(_f32(x) ** 2)) for name, x in responses.items()})
        powers = mean(
            {
                block: {name: jnp.mean(_f32(x) ** 2) for name, (x,) in addends.items()}
                for block, addends in looks.get("addends", {}).items()
            }
        )
        return {
            "response_std": {name: jnp.sqrt(square - first**2) for name, (first, square) in moments.items()},
            "grad_norm": {name: optax.tree.norm(part) for name, part in grads.items()},
            "branch_to_skip": {name: jnp.sqrt(power["branch"] / power["skip"]) for name, power in powers.items()},
            "norm_scale": {
                path.removesuffix("/scale"): jnp.mean(jnp.abs(x))
                for path, x in _leaves(params)
                if path.endswith("/scale") and _is_norm(path.split("/")[-2])
            },
        }

    return measures


def make_batch_statistics(model_without_momentum, *, mean: Callable) -> Callable:
    """A function `(variables, batch, key) -> moments` of the batch alone, to be averaged over many batches.

    The model's norms have momentum 0, so that their running values become those of the batch. `moments` has the tree
    of `batch_stats`, with E[x^2] in place of the variances: their means over batches make exact statistics
    (`statistics_of_moments`; Wu and Johnson 2021, "Rethinking Batch in BatchNorm", section 3).
    """

    def moments(variables: dict, batch: dict, key: jax.Array) -> dict:
        _, updated = model_without_momentum.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return mean(_map_statistics(lambda mean, var: {"mean": mean, "var": var + mean**2}, updated["batch_stats"]))

    return moments


def statistics_of_moments(moments: dict) -> dict:
    """`batch_stats` from moments that were averaged over batches."""
    return _map_statistics(lambda mean, square: {"mean": mean, "var": square - mean**2}, moments)


def lesions(model, variables: dict) -> Iterator[tuple[str, str, dict]]:
    """(kind, name, variables) of the net with each block "removed", then with neighbours "swapped".

    Removed: the branch gives zero and the shortcut, projections included, is all that remains (Veit et al. 2016,
    section 4.1); not in a plain net, where nothing would. Swapped: two neighbours of a stage exchange all their weights
    (section 4.3, in its smallest step); only where these have the same shapes.
    """
    blocks = block_names(variables["params"])
    is_plain = getattr(model, "shortcut", None) is no_shortcut
    for block in [] if is_plain else blocks:
        params = variables["params"][block]
        # The branch ends with them (v1) or with the convolution (v2); what comes before, the shortcut may need (v2).
        last = max(name.removeprefix("conv") for name in params if name.startswith("conv"))
        ends = (f"conv{last}", f"bn{last}")
        branch_off = {
            name: jax.tree.map(jnp.zeros_like, part) if name in ends else part for name, part in params.items()
        }
        yield "removed", block, {**variables, "params": {**variables["params"], block: branch_off}}
    for first, second in zip(blocks, blocks[1:], strict=False):
        trees = [variables["params"][block] for block in (first, second)]
        if first.split("_")[0] == second.split("_")[0] and _shapes(trees[0]) == _shapes(trees[1]):
            swap = {first: second, second: first}
            swapped = {
                collection: {name: tree[swap.get(name, name)] for name in tree}
                for collection, tree in variables.items()
                if tree
            }
            yield "swapped", f"{first}, {second}", {**variables, **swapped}


def block_names(params: dict) -> list[str]:
    """`stage1_block1`, `stage1_block2`, ... in the order of the forward pass."""
    names = [name for name in params if "_block" in name]
    return sorted(names, key=lambda name: tuple(map(int, name.removeprefix("stage").split("_block"))))


_SHORTCUT_LAYERS = ("downsample_", "gate")


def _is_norm(name: str | None) -> bool:
    return name is not None and "bn" in name and not name.startswith(_SHORTCUT_LAYERS)


def _leaves(tree) -> list[tuple[str, jax.Array]]:
    """(path like stage1_block1/bn1/scale, array); `sow`'s tuples of one count as their entry."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in paths]
    return [(name, x[0] if isinstance(x, tuple) else x) for name, x in named]


def _map_statistics(function: Callable, tree: dict) -> dict:
    if "mean" in tree:
        return function(tree["mean"], tree["var"])
    return {name: _map_statistics(function, part) for name, part in tree.items()}


def _shapes(tree) -> tuple:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaf.shape for leaf in leaves)


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
