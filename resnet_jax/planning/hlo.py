"""Memory traffic and collectives of a compiled program, counted from its text (optimised HLO)."""

import collections
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)(.*)$")
_ARRAY = re.compile(r"([a-z]+(\d*)\w*)\[([\d,]*)\]((?:\{[^}]*\})?)")
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
# They move nothing themselves: names of what lies there, the ends of what a "-start" began, and what runs others.
_STILL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    operands: list[str]
    rest: str  # attributes, among them the computations that it calls
    text: str  # between the parentheses: the operands, or the value of a constant


class Collective(NamedTuple):
    """All collectives of one kind.

    Attributes:
      count: number of runs.
      size: bytes of their results on a device.
    """

    count: int
    size: int


def main_memory_traffic(program: str) -> int:
    """Bytes that a program reads from and writes to the main memory of its device (HBM), inputs and outputs of fusions.

    XLA's own count, `cost_analysis()["bytes accessed"]`, adds what its instructions find in on-chip memory (memory
    space 1 in their layouts), counts an array three times that is copied there and read, and the body of a loop once.
    It can fall when this rises.

    Args:
      program: optimised HLO, as from `compiled.as_text()`.
    """
    computations, entry = _parse(program)
    runs = _executions(computations, entry)
    bodies = {name for body in computations.values() for line in body for name in _run_by(line)}
    return sum(runs[name] * _traffic(computations[name]) for name in {entry, *bodies})


def collectives(program: str) -> dict[str, Collective]:
    """The collectives of a program by kind, those in loops as often as they are run.

    Args:
      program: optimised HLO, as from `compiled.as_text()`.
    """
    computations, entry = _parse(program)
    runs, found = _executions(computations, entry), {}
    for name, body in computations.items():
        for line in body:
            kind = line.operation.removesuffix("-start")
            if kind in COLLECTIVES and runs[name]:
                sizes = [size for size, _ in _arrays(line.shape)]
                if (
                    kind != line.operation and kind != "all-reduce"
                ):  # its outputs are the operands again, and the result
                    sizes = sizes[len(line.operands) : 2 * len(line.operands)]
                count, size = found.get(kind, Collective(0, 0))
                found[kind] = Collective(count + runs[name], size + runs[name] * sum(sizes))
    return found


def _parse(program: str) -> tuple[dict[str, list[_Instruction]], str]:
    """(instructions by computation, each after those that it calls, as XLA writes them; name of the entry)."""
    computations, entry, body = {}, "", []
    for line in program.splitlines():
        if start := _COMPUTATION.match(line):
            body = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, operation, operands, rest = found.groups()
            body.append(_Instruction(name, shape, operation, re.findall(r"%([\w.-]+)", operands), rest, operands))
    return computations, entry


def _called(line: _Instruction) -> list[tuple[str, str]]:
    """(attribute, computation) of all that an instruction runs."""
    return [
        (attribute, name) for attribute, names in _CALLS.findall(line.rest) for name in re.findall(r"%([\w.-]+)", names)
    ]


def _run_by(line: _Instruction) -> list[str]:
    """The computations of control flow that an instruction runs; those of fusions and sums are a part of it."""
    return [name for attribute, name in _called(line) if attribute in ("body", "branch_computations")]


def _executions(computations, entry) -> collections.Counter:
    """The number of runs of each computation."""
    runs = collections.Counter({entry: 1})
    for name in reversed(computations):
        for line in computations[name]:
            for attribute, called in _called(line):
                times = _trips(line, computations) if attribute == "body" else 1
                runs[called] += runs[name] * times
    return runs


def _trips(loop: _Instruction, computations) -> int:
    """The number of iterations of a loop: as XLA notes it, or else the only number in its condition, or else 1."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    condition = dict(_called(loop))["condition"]
    numbers = {line.text for line in computations.get(condition, []) if line.operation == "constant"}
    (number,) = numbers if len(numbers) == 1 else ("1",)
    return int(number) if number.isdigit() else 1


def _traffic(body: list[_Instruction]) -> int:
    shapes, total = {}, 0
    for line in body:
        shapes[line.name] = _arrays(line.shape)
        if line.operation not in _STILL and not line.operation.endswith("-done") and "ConcatBitcast" not in line.rest:
            read = [array for operand in line.operands for array in shapes.get(operand, [])]
            total += _moved(line.operation, shapes[line.name], read)
    return total


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
