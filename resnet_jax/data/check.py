"""Look at a folder of images: python -m resnet_jax.data.check FOLDER"""

import collections
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from resnet_jax.commands import Parser, command_line, make_console
from resnet_jax.data.decode import CorruptImage, decode
from resnet_jax.data.files import FORMATS
from resnet_jax.data.reader import prefetch
from resnet_jax.data.splits import open_sources
from resnet_jax.progress import progress_bars, watch

_SHOWN = 10  # of a list of files


def print_check(console: Console, sources: Mapping) -> None:
    """Counts by class and split; then sizes, modes, suffixes, corrupt files and duplicates.

    Args:
      console: where to print.
      sources: by name of the split; see `sources`.
    """
    console.print(_counts(sources))
    with progress_bars(console) as bars:
        looks = {split: list(watch(bars, split, _look(source), len(source))) for split, source in sources.items()}
    table = Table(title="images", title_justify="left")
    for column in ("split", "height x width: min, median, max", "modes", "suffixes", "corrupt"):
        table.add_column(column, overflow="fold")
    for split, found in looks.items():
        sizes = sorted((look.size for look in found if look.size), key=lambda size: size[0] * size[1])
        middle = [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else []
        table.add_row(
            split,
            ", ".join(f"{height}x{width}" for height, width in middle),
            _tally(look.mode for look in found if look.mode),
            _tally(os.path.splitext(look.name)[1].lower() for look in found),
            str(sum(look.size is None for look in found)),
        )
    console.print(table)
    for name in _shortened([look.name for found in looks.values() for look in found if look.size is None]):
        console.print(f"corrupt: {name}", soft_wrap=True)
    for names in _shortened(list(_duplicates(looks))):
        console.print(names if isinstance(names, str) else f"the same image: {', '.join(names)}", soft_wrap=True)


def _counts(sources) -> Table:
    table = Table(title="examples", title_justify="left")
    table.add_column("class", overflow="fold")
    for split in sources:
        table.add_column(split, justify="right")
    class_names = next(iter(sources.values())).class_names
    counts = [np.bincount(source.labels, minlength=len(class_names)) for source in sources.values()]
    for label, name in enumerate(class_names):
        table.add_row(name, *(f"{count[label]:,}" for count in counts))
    table.add_section()
    table.add_row("all", *(f"{count.sum():,}" for count in counts))
    table.add_row("largest / smallest", *(f"{count.max() / max(count.min(), 1):.1f}" for count in counts))
    return table


class _Look(collections.namedtuple("_Look", "name digest size mode")):
    """An image file: its path, a digest of its content, (height, width) or None if it is corrupt, Pillow's mode."""


def _look(source) -> Iterator[_Look]:
    def look(index):
        encoded = source.read(index).image
        name, digest = source.name(index), hashlib.sha256(encoded).hexdigest()
        try:
            height, width, _ = decode(encoded).shape
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                return _Look(name, digest, (height, width), image.mode)
        except CorruptImage:
            return _Look(name, digest, None, None)

    return iter(prefetch(look, len(source)))


def _duplicates(looks) -> Iterator[list[str]]:
    """Names of the files of one content that lie in several splits or classes."""
    by_content = collections.defaultdict(list)
    for split, look in ((split, look) for split, found in looks.items() for look in found if look.size):
        by_content[look.digest].append((split, look.name))
    for places in by_content.values():
        if len({(split, os.path.dirname(name)) for split, name in places}) > 1:
            yield [f"{name} ({split})" for split, name in places]


def _tally(values) -> str:
    return ", ".join(f"{value} ({count:,})" for value, count in collections.Counter(values).most_common())


def _shortened(values: list) -> list:
    return values[:_SHOWN] + ([f"and {len(values) - _SHOWN} more"] if len(values) > _SHOWN else [])


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m resnet_jax.data.check", description=__doc__.split(":")[0])
    parser.add_argument("folder", help="a folder as data.name=folder or tar takes it")
    with command_line():
        args = parser.parse_args(argv)
        kind = "tar" if list(pathlib.Path(args.folder).expanduser().glob("train*.tar")) else "folder"
        print_check(make_console(), open_sources(kind, args.folder, use_validation_split=True)[1])


if __name__ == "__main__":
    main()
