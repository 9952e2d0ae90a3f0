"""Data parallelism: the only file that names the device axis."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError

AXIS = "data"


def _shard_map(function: Callable, mesh: Mesh, donate: bool) -> Callable:
    # check_vma=False: with the default, a gradient taken inside is summed over devices already, and its mean is wrong
    # by their number.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def _pmap(function: Callable, mesh: Mesh, donate: bool) -> Callable:
    # pmap wants an argument that differs between devices; ours, which do not, follow it.
    mapped = jax.pmap(
        lambda device, *arguments: function(*arguments),
        axis_name=AXIS,
        in_axes=(0, None, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=(1,) if donate else (),
    )
    return functools.partial(mapped, np.arange(mesh.size))


def join_processes() -> None:
    """Find the other processes of this job (TPU pod, SLURM, MPI, Kubernetes) and connect to them.

    To be called before anything asks for devices.

    Raises:
      UserError: there is nothing to join.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"parallel.distributed: expected a job of several processes, found none to join ({error}); start it with "
            "your cluster's launcher (srun, mpirun, ...) or set JAX_COORDINATOR_ADDRESS"
        ) from None


def is_main_process() -> bool:
    """Does this process write what only one may write?"""
    return jax.process_index() == 0


WRAPPERS = {"shard_map": _shard_map, "pmap": _pmap}


class DataParallel:
    """Runs a function of two arguments on every device, each on its own part of the batch.

    Arguments and results are replicated.

    Inside the function `shard()`, `mean(tree)` and `sum(tree)` speak to the other devices.
    """

    def __init__(self, devices: Sequence[jax.Device], wrapper: str = "shard_map"):
        # Auto axes: with the default, explicit ones, shard_map rejects inputs that are not sharded yet.
        self.mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.shards = len(devices)
        self._wrap = WRAPPERS[wrapper]

    def compile(self, function: Callable, donate: bool = False) -> Callable:
        """The function on all devices at once; `donate` gives up the first argument's memory."""
        return self._wrap(function, self.mesh, donate)

    def replicate(self, tree):
        """Copy arrays from the host, or from one device, to every device."""
        # A copy: device_put may alias an array of the host, and memory that is donated will be written to. What is on
        # a device goes to others directly, but not to those of other processes.
        stays = jax.Array if jax.process_count() == 1 else ()
        tree = jax.tree.map(lambda x: x if isinstance(x, stays) else np.array(x), tree)
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def shard(self) -> jax.Array:
        """Which part of the batch is this device's (traced)."""
        return jax.lax.axis_index(AXIS)

    def mean(self, tree):
        """The mean over devices (traced)."""
        return jax.lax.pmean(tree, AXIS)

    def sum(self, tree):
        """The sum over devices (traced)."""
        return jax.lax.psum(tree, AXIS)

    def batch_statistics_axis(self, scope: str, group_size: int) -> dict:
        """Arguments of `layers.batch_norm` that make batch statistics `local`, `global` or shared by a `group`."""
        if scope == "local":
            return {}
        if scope == "global":
            return {"axis_name": AXIS}
        devices = range(self.shards)
        groups = tuple(tuple(devices[start : start + group_size]) for start in devices[::group_size])
        return {"axis_name": AXIS, "axis_index_groups": groups}
