"""Flags that XLA reads when JAX starts its backends."""

import functools
import os
import pathlib
import re

_YNN = "xla_cpu_experimental_ynn_fusion_type"
CHOSEN = f"--{_YNN}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of the processor, like "avx2" and "avx512f", as Linux names them; empty where it is unknown."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return frozenset(flags[1].split()) if flags else frozenset()


def with_fast_convolutions(flags: str, features: frozenset[str]) -> str:
    """XLA_FLAGS that let XLA's own code compute convolutions, where YNNPACK's are slow: with AVX2, AVX-512 or not.

    jaxlib 0.10 to 0.12 give all that YNNPACK can do to YNNPACK; the flag leaves it the dots. Training is then 0.9 to
    2.5 times as fast, by net, version and processor, with less memory (benchmarks/NOTES.md).

    Args:
      flags: the user's; the same flag among them, and the name of a file of flags, stay as they are.
      features: as from `cpu_features`.
    """
    is_file = bool(flags.strip()) and not flags.strip().startswith("-")
    if is_file or _YNN in flags or "avx2" not in features:
        return flags
    return f"{flags} {CHOSEN}".strip()


def choose_flags() -> None:
    """Set XLA_FLAGS for this process and those that it starts; without effect once JAX has started its backends."""
    os.environ["XLA_FLAGS"] = with_fast_convolutions(os.environ.get("XLA_FLAGS", ""), cpu_features())
