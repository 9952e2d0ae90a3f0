"""The limits of devices, as their makers publish them, and the bounds on speed that follow (rooflines).

Peaks are dense, and per chip:
  TPU v4, v5e, v5p, v6e: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs,
    read in 2026); v4's links: Jouppi et al. 2023, arXiv:2304.01433, table 4 (6 of 50 GB/s). The pages have the
    interconnect in both directions; here it is what a chip can send.
  NVIDIA H100, H200, A100: Tensor Core GPU data sheets.
  CPU: measured.
"""

import functools
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

_GIB = 2**30


class Peak(NamedTuple):
    """The limits of a device.

    Attributes:
      flops: by dtype, FLOP/s; float32 in the precision that JAX takes for it by default (TF32 on GPUs, bfloat16 on
        TPUs).
      bandwidth: memory bandwidth, bytes/s.
      memory: bytes; None where the device itself says.
      interconnect: bytes/s that it sends to the other devices of its slice; None where it is not known.
    """

    flops: dict[str, float]
    bandwidth: float
    memory: int | None = None
    interconnect: float | None = None


def _gpu(bfloat16: float, bandwidth: float) -> Peak:
    return Peak({"bfloat16": bfloat16, "float32": bfloat16 / 2}, bandwidth)


def _tpu(flops: float, bandwidth: float, memory: int, interconnect: float) -> Peak:
    return Peak({"bfloat16": flops, "float32": flops}, bandwidth, memory, interconnect)


_V5P, _V6E = _tpu(459e12, 2765e9, 95 * _GIB, 600e9), _tpu(918e12, 1640e9, 32 * _GIB, 400e9)

# By JAX's device_kind.
PEAKS = {
    "NVIDIA H100 80GB HBM3": _gpu(989e12, 3.35e12),
    "NVIDIA H200": _gpu(989e12, 4.8e12),
    "NVIDIA A100-SXM4-40GB": _gpu(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": _gpu(312e12, 2.039e12),
    "TPU v4": _tpu(275e12, 1228e9, 32 * _GIB, 300e9),
    "TPU v5 lite": _tpu(197e12, 819e9, 16 * _GIB, 200e9),  # v5e
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
}


def peak_of(device: jax.Device) -> Peak | None:
    """The limits of a device; None if they are not known. Devices of a CPU divide its speed."""
    if device.platform != "cpu":
        return PEAKS.get(device.device_kind)
    cpu, devices = measured_peak(), jax.local_device_count("cpu")
    return Peak({dtype: flops / devices for dtype, flops in cpu.flops.items()}, cpu.bandwidth / devices)


def step_bounds(
    peak: Peak, dtype: str, flop: float, traffic: float, collectives: Mapping[str, float], devices: int
) -> dict[str, float]:
    """Seconds that a step needs at the minimum, by what binds it; the slowest is the bound, the others may overlap it.

    A device that takes part in a sum over n devices sends 2 (n - 1) / n times its size, by whatever algorithm (half of
    it to add, half of it to spread the sums), and (n - 1) / n times the size of what is gathered, scattered or
    exchanged.

    >>> step_bounds(Peak({"float32": 1e9}, 1e6, interconnect=1e6), "float32", 3e9, 2e6, {"all-reduce": 1e6}, 2)
    {'compute': 3.0, 'memory': 2.0, 'network': 1.0}

    Args:
      peak: limits of each device.
      dtype: dtype of the computation.
      flop, traffic: FLOP, and bytes of memory traffic, of each device.
      collectives: bytes by kind; see `hlo.collectives`.
      devices: number of devices.
    """
    bounds = {"compute": flop / peak.flops[dtype], "memory": traffic / peak.bandwidth}
    if peak.interconnect is not None:
        sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in collectives.items())
        bounds["network"] = sent * (devices - 1) / devices / peak.interconnect
    return bounds


@functools.cache
def measured_peak(side: int = 2048, numbers: int = 2**26) -> Peak:
    """The CPU's, by a product of float32 matrices, and by an addition to an array far larger than a cache."""
    matrix = jnp.ones((side, side))
    flops = 2 * side**3 / _best_seconds(jax.jit(lambda x, _: x @ matrix), jnp.zeros((side, side)))
    # In place: new memory for the result would be measured with the time that the system takes to hand it out.
    seconds = _best_seconds(jax.jit(lambda x, one: x + one, donate_argnums=0), jnp.ones(numbers))
    return Peak({"float32": flops, "bfloat16": flops}, 2 * 4 * numbers / seconds)


def _best_seconds(function, array: jax.Array, repeats: int = 5) -> float:
    seconds = []
    for _ in range(1 + repeats):  # the first compiles
        start = time.perf_counter()
        array = jax.block_until_ready(function(array, 1.0))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
