"""Tables and bars of saved measurements. Nothing is run.

    python -m benchmarks.step_time --against torch flax --save benchmarks/results/cpu.jsonl
    python -m benchmarks.report                       # of benchmarks/results/*.jsonl, into docs/
    python -m benchmarks.report cpu.jsonl --out DIR

Writes benchmarks_results.md and a picture of each benchmark. Of measurements of the same candidate, case and device the
last one counts.
"""

import argparse
import json
import pathlib
from collections.abc import Iterable, Sequence

from resnet_jax.commands import command_line, writing_file
from resnet_jax.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_NEEDED = ("benchmark", "case", "candidate", "device", "date", "command")
_SHOWN = {*_NEEDED, "versions", "rounds", "seconds", "images_per_second", "speed_of_first", "fraction_of_roofline"}

Group = tuple[str, str, str]  # benchmark, case, device


def read_lines(files: Iterable[pathlib.Path]) -> list[dict]:
    """The measurements in files of JSON lines, those of a file in its order.

    Raises:
      UserError: there are none, or a line is no measurement.
    """
    lines = []
    for file in files:
        try:
            texts = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"report: {file} cannot be read: {reason}; give files that --save wrote") from None
        for number, text in enumerate(texts, start=1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                line = None
            missing = [key for key in _NEEDED if key not in line] if isinstance(line, dict) else ["JSON"]
            if not missing and not isinstance(line["case"], dict):
                missing = ["a case with names and values"]
            if missing:
                raise UserError(
                    f"report: expected a measurement in line {number} of {file}, found none ({', '.join(missing)} is "
                    "missing); give files that --save wrote"
                )
            lines.append(line)
    if not lines:
        raise UserError(
            "report: expected measurements, found none; run a benchmark with --save benchmarks/results/NAME.jsonl"
        )
    return lines


def grouped(lines: Sequence[dict]) -> dict[Group, list[dict]]:
    """The last measurement of each candidate, by benchmark (in the order of the alphabet), case and device."""
    latest = {}
    for line in lines:
        case = ", ".join(f"{name} {value}" for name, value in line["case"].items())
        # What is no timing has a line of its own.
        latest[line["benchmark"], case, line["device"], line["candidate"], "seconds" in line] = line
    groups = {}
    for (*group, _, _), line in latest.items():
        groups.setdefault(tuple(group), []).append(line)
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def table(lines: Sequence[dict]) -> str:
    """Markdown: a row for each candidate of a case."""
    header = ("candidate", "images/s", "seconds", "speed of the first over it", "of the roofline", "more", "date")
    rows = [header, ("---",) * len(header)]
    for line in lines:
        fraction = line.get("fraction_of_roofline")
        rows.append((
            line["candidate"],
            *(_text(line.get(name)) for name in ("images_per_second", "seconds", "speed_of_first")),
            "" if fraction is None else f"{100 * fraction:.3g}%",
            ", ".join(f"{name} {_text(value)}" for name, value in line.items() if name not in _SHOWN),
            line["date"],
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def markdown(groups: dict[Group, list[dict]]) -> str:
    """The page: a section for each benchmark, a table for each of its cases."""
    parts = [
        "# Results of the benchmarks",
        "Written by `python -m benchmarks.report` from saved measurements. Rates and times are medians [min, max] over "
        "the rounds; a speed below 1 says that the candidate is faster than the first one of its table.",
    ]
    previous = None
    for (benchmark, case, device), lines in groups.items():
        if benchmark != previous:
            parts += [f"## {benchmark}", f"![{benchmark}]({picture_name(benchmark)})"]
        previous = benchmark
        commands = "\n".join(dict.fromkeys(line["command"] for line in lines))
        versions = "; ".join(dict.fromkeys(line.get("versions", "unknown versions") for line in lines))
        parts += [
            f"### {case or 'default'}",
            f"On {device}, with {versions}:",
            table(lines),
            f"```bash\n{commands}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def picture_name(benchmark: str) -> str:
    """File name of a benchmark's picture."""
    return f"benchmarks_{benchmark}.png"


def _text(value: object) -> str:
    """A number, or [median, min, max], or what else a line may hold; nothing for None."""
    if isinstance(value, list):
        median, low, high = map(_text, value)
        return f"{median} [{low}, {high}]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="default: all of benchmarks/results")
    parser.add_argument("--out", type=pathlib.Path, default=_ROOT / "docs", help="folder; default: docs")
    args = parser.parse_args()
    with command_line():
        from benchmarks.plots import plot_benchmark

        groups = grouped(read_lines(args.files or sorted((_ROOT / "benchmarks" / "results").glob("*.jsonl"))))
        with writing_file(args.out, "--out"):
            args.out.mkdir(parents=True, exist_ok=True)
        for benchmark in dict.fromkeys(benchmark for benchmark, *_ in groups):
            own = {f"{case}\n{device}": lines for (name, case, device), lines in groups.items() if name == benchmark}
            plot_benchmark(own, args.out / picture_name(benchmark), benchmark)
        (args.out / "benchmarks_results.md").write_text(markdown(groups))
        print(args.out / "benchmarks_results.md")


if __name__ == "__main__":
    main()
