"""The most probable classes of images as people and programs read them: table, JSON Lines, CSV."""

import argparse
import csv
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from resnet_jax.commands import make_console
from resnet_jax.config.runs import load_model
from resnet_jax.data.imagenet import readable_class_names
from resnet_jax.environment import memory_errors, use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Classified, classify
from resnet_jax.evaluation.images import find_images, read_views
from resnet_jax.evaluation.overlays import overlay_file, overlay_folder, write_overlay
from resnet_jax.progress import progress_bars, watch

_NAMED = 3  # problems, where there are nothing else
_MAX_BATCH = {"cpu": 16}  # more is no faster there and takes memory
_MAX_BATCH_OF_ACCELERATORS = 128


def print_classes(args: argparse.Namespace) -> int:
    """Print the most probable classes of images on stdout as they come, and on stderr what cannot be read.

    Args:
      args: parsed command line of `predict`.

    Returns:
      How many images could not be read.

    Raises:
      UserError: no run, no images at all, a folder or an output that cannot be written.
    """
    use_compilation_cache()
    if args.top < 1:
        raise UserError(f"--top: expected a number of classes, min 1, found {args.top}")
    total, longest_path = _survey(args.images)
    card, model, variables = load_model(args.checkpoint, args.step, ema=args.ema, name=args.model)
    preprocessing, batch_size = card.create_preprocessing(), _batch_size(total)
    views = read_views(find_images(args.images), preprocessing, ahead=2 * batch_size)
    settings = {"batch_size": batch_size, "top": min(args.top, len(card.class_names)), "maps": args.cam is not None}
    rows = classify(model, variables, preprocessing, views, **settings)
    folder = None if args.cam is None else overlay_folder(args.cam)
    errors, screen = make_console(file=sys.stderr), make_console()
    if screen.is_terminal and errors.is_terminal:
        screen = errors  # Rich keeps bars and rows apart only on one console
    write = FORMATS[args.format](screen, readable_class_names(card.class_names), longest_path, folder is not None)
    skipped = 0
    with memory_errors("JAX_PLATFORMS=cpu in the environment"), progress_bars(errors) as bars:
        for row in watch(bars, "predicting", rows, total):
            path, pixels, problem = row.view
            if problem:
                errors.out(f"skipped {_printable(path)}: {problem}", highlight=False)
                skipped += 1
                continue
            file = None
            if folder is not None:
                file = overlay_file(folder, path)
                write_overlay(file, pixels, row.heat)
            write(row, file)
            screen.file.flush()
            if screen.file.failed:
                raise UserError(f"stdout: it cannot be written from {_printable(path)} on: no reader, or a full disk")
    return skipped


def _survey(names: Sequence[str]) -> tuple[int, int]:
    """(number of images, length of the longest path); a first walk over all folders, in which no file is opened."""
    total, longest, problems = 0, 0, []
    for path, problem in find_images(names):
        if problem:
            problems.append(f"{_printable(path)}: {problem}")
        else:
            total, longest = total + 1, max(longest, len(_printable(path)))
    if not total:
        raise UserError(f"expected images, found none: {'; '.join(problems[:_NAMED])}")
    return total, longest


def _batch_size(images: int) -> int:
    """A power of two, so that few programs are compiled, and no larger than one or two images need."""
    limit = _MAX_BATCH.get(jax.default_backend(), _MAX_BATCH_OF_ACCELERATORS)
    return min(limit, 1 << (images - 1).bit_length())


def _printable(path: str) -> str:
    """The path on one line, without what a terminal would obey."""
    return path if path.isprintable() else ascii(path)


def _guesses(row: Classified, class_names: Sequence[str]) -> list[tuple[int, str, float]]:
    """(label, class name, probability), the best first."""
    pairs = zip(row.labels.tolist(), row.probabilities.tolist(), strict=True)
    return [(label, class_names[label], probability) for label, probability in pairs]


Write = Callable[[Classified, pathlib.Path | None], None]  # of an image and the file of its overlay


def _write_text(screen: Console, text: str) -> None:
    if screen.is_terminal:
        screen.out(text, end="", highlight=False)
    else:
        screen.file.write(text)  # as it is: Rich would replace tabs


def _json_writer(screen: Console, class_names: Sequence[str], longest_path: int, with_maps: bool) -> Write:
    def write(row, file):
        guesses = [
            {"label": label, "class": name, "probability": float(f"{probability:.6g}")}
            for label, name, probability in _guesses(row, class_names)
        ]
        line = {"image": row.view.path, "predictions": guesses, **({"cam": str(file)} if with_maps else {})}
        _write_text(screen, json.dumps(line) + "\n")

    return write


def _csv_writer(screen: Console, class_names: Sequence[str], longest_path: int, with_maps: bool) -> Write:
    def write_lines(lines):
        with io.StringIO(newline="") as text:
            csv.writer(text, lineterminator="\n").writerows(lines)
            _write_text(screen, text.getvalue())

    def write(row, file):
        last = [str(file)] if with_maps else []
        guesses = enumerate(_guesses(row, class_names), start=1)
        write_lines([row.view.path, rank, label, name, f"{p:.6g}", *last] for rank, (label, name, p) in guesses)

    write_lines([["image", "rank", "label", "class", "probability", *(["cam"] if with_maps else [])]])
    return write


def _table_writer(screen: Console, class_names: Sequence[str], longest_path: int, with_maps: bool) -> Write:
    # Rich prints a table when it is complete: here each image has its own, with the same widths.
    widths = {"image": max(longest_path, 5), "class": max(5, *map(len, class_names)), "probability": 11}
    room = screen.width - widths["probability"] - 2 * len(widths)
    widths["class"] = min(widths["class"], room // 2)
    widths["image"] = min(widths["image"], room - widths["class"])
    has_header = itertools.chain([True], itertools.repeat(False))

    def write(row, file):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=next(has_header))
        for name, width in widths.items():
            justify = "right" if name == "probability" else "left"
            table.add_column(name, overflow="fold", width=width, justify=justify)
        path = _printable(row.view.path)
        for _, name, probability in _guesses(row, class_names):
            table.add_row(path, name, f"{probability:.2%}")
            path = ""
        screen.print(table)

    return write


# (screen, class names, length of the longest path, True if there are overlays) -> the function that writes an image
FORMATS: dict[str, Callable[[Console, Sequence[str], int, bool], Write]] = {
    "table": _table_writer,
    "json": _json_writer,
    "csv": _csv_writer,
}
