"""Checkpoints in buckets and on other servers, copied here for as long as they are read."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from resnet_jax.bucket.files import UNFINISHED, bucket_errors, file_system
from resnet_jax.checkpoint.card import FILE, read_card
from resnet_jax.checkpoint.earlier import META
from resnet_jax.checkpoint.manifest import FILE as MANIFEST
from resnet_jax.checkpoint.store import DIRECTORY, SavedSteps
from resnet_jax.errors import UserError
from resnet_jax.workdir import absolute, is_url


@contextlib.contextmanager
def local(path: str | pathlib.Path, step: str | int = "best") -> Iterator[pathlib.Path]:
    """An absolute path; for a URL like gs://bucket/run that of a copy of the step, or of the file, that it names.

    Args:
      path: local path, or a URL of any file system that fsspec knows.
      step: "best", "latest" or a number; for the URL of a run directory. Only this step's weights are copied.

    Raises:
      UserError: nothing is there, or the package for this kind of URL is not installed.
    """
    if not is_url(path):
        yield absolute(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        with bucket_errors(str(path)):
            copied = _copy(str(path), pathlib.Path(folder) / "run", step)
        yield copied


def _copy(url: str, folder: pathlib.Path, step: str | int) -> pathlib.Path:
    files, root = file_system(url)

    def get(name: str, to: pathlib.Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        files.get(f"{root}/{name}" if name else root, str(to), recursive=True)

    def get_step(at: str, to: pathlib.Path) -> None:
        for entry in files.ls(f"{root}/{at}" if at else root, detail=False):
            name = pathlib.PurePosixPath(entry).name
            if name != "optimizer":
                get(f"{at}/{name}".lstrip("/"), to / name)

    if files.isfile(root):
        get("", folder / pathlib.PurePosixPath(root).name)
        return folder / pathlib.PurePosixPath(root).name
    if files.isfile(f"{root}/{MANIFEST}") or files.isdir(f"{root}/{META}"):
        get_step("", folder / DIRECTORY / pathlib.PurePosixPath(root).name)
        return folder / DIRECTORY / pathlib.PurePosixPath(root).name
    for name in (FILE, "config.json"):
        if files.isfile(f"{root}/{name}"):
            get(name, folder / name)
    if not folder.exists():
        raise UserError(f"{url}: expected a run, the folder of a step or a .safetensors file, found none there")
    for entry in files.ls(f"{root}/{DIRECTORY}", detail=False):
        number = pathlib.PurePosixPath(entry).name
        if number.isdecimal():
            here = f"{DIRECTORY}/{number}"
            found = [name for name in (MANIFEST, META, UNFINISHED) if files.exists(f"{root}/{here}/{name}")]
            if found != [UNFINISHED]:
                (folder / here).mkdir(parents=True)  # without a manifest it is corrupt
                for name in found[:1]:
                    get(f"{here}/{name}", folder / here / name)
    card = read_card(folder)
    steps = SavedSteps(folder, card.best_metric if card else "accuracy")
    chosen = f"{DIRECTORY}/{steps.resolve(step)}"
    get_step(chosen, folder / chosen)
    return folder / chosen
