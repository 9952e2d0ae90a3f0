"""Devices to compile for: those of this machine, or a slice of TPUs that is not there."""

import importlib.util
import os

import jax

from resnet_jax.errors import UserError

HERE = "here"
_EXAMPLES = "v5e:16x16, v4:2x2x4, v5p:2x2x4 or v6e:4x4"
# Of libtpu, which looks for the chips of this machine and misses them aloud.
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks the cloud for them
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so no other process is in the way
}


def find_devices(topology: str) -> list[jax.Device]:
    """The devices of a topology. Those of TPUs that are not there can be compiled for, not computed on.

    Args:
      topology: "here", or like "v5e:16x16": a generation of TPUs and the chips along each axis of the slice. To be
        called before JAX has started its backends.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if topology == HERE:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology: {topology} needs the TPU compiler, found none; pip install libtpu")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # chips that are here are of no use
    from jax.experimental import topologies

    # The two cores of a v4 are one device, as they are by default where the chips are there.
    settings = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **settings).devices)
    except Exception as error:  # JAX's, of several types
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology: expected one like {_EXAMPLES}, found {topology!r} ({reason})") from None
