"""Data parallelism: the only file that names the device axis."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.data.order import StepInputs

AXIS = "data"

_REPLICATED, _SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def _shard_map(function: Callable, mesh: Mesh, donate: bool) -> Callable:
    # check_vma=False: with the default, a gradient taken inside is summed over devices already, and its mean is wrong
    # by their number.
    arguments = (_REPLICATED, StepInputs(replicated=_REPLICATED, sharded=_SHARDED))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=_REPLICATED, check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def _pmap(function: Callable, mesh: Mesh, donate: bool) -> Callable:
    # pmap wants an argument that differs between devices; ours, which do not, follow it.
    mapped = jax.pmap(
        lambda device, *arguments: function(*arguments),
        axis_name=AXIS,
        in_axes=(0, None, StepInputs(replicated=None, sharded=0)),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=(1,) if donate else (),
    )

    def by_device(inputs):
        return inputs._replace(sharded=jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), inputs.sharded))

    def call(first, inputs):
        return mapped(np.arange(mesh.size), first, by_device(inputs))

    call.lower = lambda first, inputs: mapped.lower(np.arange(mesh.size), first, jax.eval_shape(by_device, inputs))
    return call


def _is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _checksum(tree) -> jax.Array:
    """A number, uint32, that another one bit anywhere in the tree changes (traced).

    The sum of all words, each times an odd number of its own, so that exchanged words and arrays are seen, too.
    """
    total, offset = jnp.uint32(0), 0
    for leaf in map(_words, jax.tree.leaves(tree)):
        position = jnp.arange(leaf.size, dtype=jnp.uint32) + np.uint32(offset % 2**32)
        mixed = (position ^ (position >> 15)) * np.uint32(0x9E3779B1)
        total += jnp.sum(leaf * (mixed ^ (mixed >> 13) | 1), dtype=jnp.uint32)
        offset += leaf.size
    return total


def _words(x) -> jax.Array:
    """The bits of an array as uint32 (n,) (traced)."""
    x = jax.random.key_data(x) if _is_key(x) else x.astype(jnp.uint8) if x.dtype == bool else x
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jnp.ravel(jax.lax.bitcast_convert_type(x, word)).astype(jnp.uint32)


def is_main_process() -> bool:
    """True in the process that writes what only one may write."""
    return jax.process_index() == 0


WRAPPERS = {"shard_map": _shard_map, "pmap": _pmap}


class DataParallel:
    """Runs a function of something and `StepInputs` on every device, each on its own part of the batch.

    The first argument, the replicated part of the inputs, and results are replicated.

    Inside the function `shard()`, `mean(tree)`, `sum(tree)` and `all_gather(tree)` speak to the other devices.
    """

    def __init__(self, devices: Sequence[jax.Device], wrapper: str = "shard_map"):
        # Auto axes: with the default, explicit ones, shard_map rejects inputs that are not sharded yet.
        self.mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._sharded = NamedSharding(self.mesh, _SHARDED)
        self.shards = len(devices)
        self._wrap = WRAPPERS[wrapper]

    def compile(self, function: Callable, donate: bool = False) -> Callable:
        """The function on all devices at once, with `lower` as of `jax.jit`; `donate` gives up the first's memory."""
        return self._wrap(function, self.mesh, donate)

    def replicate(self, tree):
        """Copy arrays from the host, or from one device, to every device.

        That processes have the same arrays is not checked; see `training.agreement`.
        """
        everywhere, one_process = NamedSharding(self.mesh, _REPLICATED), jax.process_count() == 1

        def one(x):
            if _is_key(x):
                return jax.random.wrap_key_data(one(jax.random.key_data(x)))
            # A copy: a device may alias an array of the host, and memory that is donated will be written to. What is
            # on a device goes to others directly, but not to those of other processes.
            x = x if isinstance(x, jax.Array) and one_process else np.array(x)
            # Not device_put, which compares the arrays of all processes one by one, by a program for each shape.
            return jax.make_array_from_process_local_data(everywhere, x)

        return jax.tree.map(one, tree)

    @functools.cached_property
    def checksums(self) -> Callable:
        """Of a replicated tree to uint32 (shards,), the checksum of each device's own copy."""
        mapped = jax.shard_map(
            lambda tree: _checksum(tree)[None],
            mesh=self.mesh,
            in_specs=_REPLICATED,
            out_specs=_SHARDED,
            check_vma=False,
        )
        return jax.jit(mapped)

    def rows(self, batch_size: int) -> np.ndarray:
        """Positions in a global batch that belong to devices of this process, int (b,), sorted."""
        parts = self._sharded.addressable_devices_indices_map((batch_size,)).values()
        return np.sort(np.concatenate([np.arange(batch_size)[part] for part in parts]))

    def distribute(self, tree):
        """Arrays of the global batch, from the `rows` of this process."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._sharded, x), tree)

    def shard(self) -> jax.Array:
        """Index of this device's part of the batch (traced)."""
        return jax.lax.axis_index(AXIS)

    def mean(self, tree):
        """The mean over devices (traced)."""
        return jax.lax.pmean(tree, AXIS)

    def sum(self, tree):
        """The sum over devices (traced)."""
        return jax.lax.psum(tree, AXIS)

    def all_gather(self, tree):
        """Arrays of all devices, one after another along the first axis (traced)."""
        return jax.lax.all_gather(tree, AXIS, tiled=True)

    def batch_statistics_axis(self, scope: str, group_size: int) -> dict:
        """Settings of a batch norm that make its statistics `local`, `global` or common to a `group` of devices."""
        if scope == "local":
            return {}
        if scope == "global":
            return {"axis_name": AXIS}
        devices = range(self.shards)
        groups = tuple(tuple(devices[start : start + group_size]) for start in devices[::group_size])
        return {"axis_name": AXIS, "axis_index_groups": groups}
