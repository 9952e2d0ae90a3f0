"""Data parallelism: the only file that names the device axis."""

import socket
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.data.order import StepInputs
from resnet_jax.errors import UserError

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
            "your cluster's launcher (srun, mpirun, ...), or call jax.distributed.initialize with addresses before"
        ) from None


def _is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _bytes(x) -> bytes:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x).tobytes()


def check_same_everywhere(content: bytes, what: str) -> None:
    """Refuse what differs between the processes of a job.

    Raises:
      UserError: it does; the processes and hosts that differ from the first are named.
    """
    if jax.process_count() == 1:
        return
    name, own = socket.gethostname().encode()[:64], np.zeros(64, np.uint8)
    own[: len(name)] = list(name)
    checksums, hosts = multihost_utils.process_allgather((np.uint32(zlib.crc32(content)), own))
    others = np.flatnonzero(np.ravel(checksums) != checksums[0])
    if len(others):
        names = [f"{index} ({bytes(hosts[index]).rstrip(bytes(1)).decode()})" for index in others]
        raise UserError(
            f"parallel.distributed: expected the same {what} in every process, found another in process "
            f"{', '.join(names)} than in process 0; start all of them with the same code, config, data and workdir"
        )


def agreed(function: Callable, what: str):
    """The value of a function; where it refuses in one process, all end, and none waits for it.

    Raises:
      UserError: its own, or that another process had one.
    """
    value, refusal = None, None
    try:
        value = function()
    except UserError as error:
        refusal = error
    try:
        check_same_everywhere(str(refusal).encode(), what)
    except UserError:
        if refusal is None:
            raise
    if refusal:
        raise refusal
    return value


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
        self.compiles_ahead = wrapper != "pmap"

    def compile(self, function: Callable, donate: bool = False) -> Callable:
        """The function on all devices at once, with `lower` as of `jax.jit`; `donate` gives up the first's memory."""
        return self._wrap(function, self.mesh, donate)

    def replicate(self, tree):
        """Copy arrays from the host, or from one device, to every device.

        Raises:
          UserError: processes have different arrays.
        """
        everywhere, one_process = NamedSharding(self.mesh, _REPLICATED), jax.process_count() == 1
        if not one_process:
            check_same_everywhere(b"".join(map(_bytes, jax.tree.leaves(tree))), "state")

        def one(x):
            if _is_key(x):
                return jax.random.wrap_key_data(one(jax.random.key_data(x)))
            # A copy: a device may alias an array of the host, and memory that is donated will be written to. What is
            # on a device goes to others directly, but not to those of other processes.
            x = x if isinstance(x, jax.Array) and one_process else np.array(x)
            # Not device_put, which compares the arrays of all processes one by one, by a program for each shape.
            return jax.make_array_from_process_local_data(everywhere, x)

        return jax.tree.map(one, tree)

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
