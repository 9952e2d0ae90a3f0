"""Memory traffic of a compiled program, counted from its text."""

import math
import re

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)(.*)$", re.MULTILINE)
_ARRAY = re.compile(r"([a-z]+(\d*)\w*)\[([\d,]*)\]((?:\{[^}]*\})?)")
# They move nothing themselves: names of what lies there, or the ends of what a "-start" began.
_STILL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, is in the device's main memory) of each array in the shape of an instruction."""
    arrays = []
    for _, bits, dims, layout in _ARRAY.findall(shape):
        size = math.prod(int(length) for length in dims.split(",") if length) * int(bits or 8) // 8
        arrays.append((size, "S(" not in layout))
    return arrays


def _moved(operation: str, outputs: list[tuple[int, bool]], operands: list[tuple[int, bool]]) -> int:
    if operation in ("copy-start", "slice-start"):  # its outputs are the operand again, the copy, and a handle
        target = outputs[0] if operation == "copy-start" else outputs[1]
        return target[0] * (target[1] + operands[0][1])
    return sum(size for size, is_in_main_memory in [*outputs, *operands] if is_in_main_memory)


def main_memory_traffic(program: str) -> int:
    """Bytes that a program reads from and writes to the main memory of its device (HBM), inputs and outputs of fusions.

    XLA's own count, `cost_analysis()["bytes accessed"]`, adds what its instructions find in on-chip memory (memory
    space 1 in their layouts) and counts an array three times that is copied there and read. It can fall when this
    rises.

    Args:
      program: optimised HLO, as from `compiled.as_text()`. Bodies of loops are not looked into.
    """
    shapes, total = {}, 0
    for name, shape, operation, operands, rest in _INSTRUCTION.findall(program[program.index("\nENTRY ") :]):
        shapes[name] = _arrays(shape)
        if operation not in _STILL and not operation.endswith("-done") and "ConcatBitcast" not in rest:
            read = [array for operand in re.findall(r"%([\w.-]+)", operands) for array in shapes.get(operand, [])]
            total += _moved(operation, shapes[name], read)
    return total
