"""Memory that a compiled program needs, memory that a device has, and the largest batch that fits."""

import os
import pathlib

import jax

from resnet_jax.errors import UserError


def memory_needed(compiled: jax.stages.Compiled) -> int | None:
    """Bytes on each device while the program runs: arguments, outputs that take no argument's place, and temporaries.

    It is the compiler's own plan; what libraries allocate beside it, on CPUs a few MB, is not in it.

    Returns:
      None where the compiler does not say.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + outputs + plan.temp_size_in_bytes + plan.generated_code_size_in_bytes


def memory_of(device: jax.Device) -> int | None:
    """Bytes that programs may use on a device of this process; None if it does not say.

    Devices of a CPU divide the memory of the machine, or of the container (its cgroup).
    """
    if device.platform == "cpu":
        return machine_memory() // jax.local_device_count("cpu")
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


def machine_memory(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Bytes of memory that this process may use: those of the machine, or fewer by the limit of its cgroup.

    Args:
      root: where `proc` and `sys` lie.
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *_cgroup_limits(root)])


def _cgroup_limits(root: pathlib.Path) -> list[int]:
    """The limits of this process's cgroup, version 1 or 2, and of those that it lies in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = pathlib.PurePosixPath(path.lstrip("/"))
        found = [top / folder / name for folder in (own, *own.parents)]
        texts = [file.read_text().strip() for file in found if file.is_file()]
        limits += [int(text) for text in texts if text.isdigit()]  # else "max"; version 1 has a huge number for it
    return limits


def largest_batch(available: int, small: tuple[int, int], large: tuple[int, int], multiple: int = 1) -> int:
    """The largest batch that should fit: the memory of a step is almost affine in its batch.

    >>> largest_batch(1000, small=(0, 200), large=(32, 360), multiple=8)  # 200 + 5 * batch
    160

    Args:
      available: bytes.
      small, large: (batch, bytes) of two batches; of batch 0 the bytes are those of the state.
      multiple: divisor of every possible batch.

    Returns:
      The batch, or 0 if none fits.
    """
    per_image = max((large[1] - small[1]) / (large[0] - small[0]), 1)
    images = small[0] + (available - small[1]) / per_image
    return max(0, int(images // multiple * multiple))


def check_fits(needed: int, available: int | None, what: str, advice: str) -> None:
    """Refuse a program that needs more memory than there is.

    Args:
      needed, available: bytes on each device; None if it is not known.
      what: the program, for the message.
      advice: remedy, for the message.

    Raises:
      UserError: it does.
    """
    if available is not None and needed > available:
        raise UserError(
            f"device memory: {what} needs {size_text(needed)} on each device, which has {size_text(available)}; "
            f"try {advice}"
        )


def size_text(size: float) -> str:
    """A number of bytes in words, by powers of 10.

    >>> size_text(205_702_144), size_text(17_179_869_184), size_text(20)
    ('205.7 MB', '17.18 GB', '20 B')
    """
    for unit, digits, word in ((1e9, 2, "GB"), (1e6, 1, "MB"), (1e3, 1, "kB")):
        if size >= unit:
            return f"{size / unit:,.{digits}f} {word}"
    return f"{size:,.0f} B"
