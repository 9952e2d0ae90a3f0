"""Files in buckets, through gcsfs, which asks again where a server is busy; and copies of them."""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence

import filelock

from resnet_jax.errors import UserError
from resnet_jax.workdir import absolute, cache_folder, check_room, is_url, shown_as, write_json


@contextlib.contextmanager
def bucket_errors(url: str) -> Iterator[None]:
    """Say in one line what is wrong with a URL: its bucket, its rights, the network.

    Raises:
      UserError: see there.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{url}: expected the package for such URLs, found none: {error}; pip install gcsfs") from None
    except Exception as error:  # of any file system and its network
        raise UserError(f"{url}: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """The cause of an error of a bucket, and a remedy, in one line."""
    text = " ".join(f"{error}".split())[:200]
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket, or nothing in it at {text}; check the URL"
    if "Forbidden" in text or "401" in text or "403" in text:
        return f"no right to do this: {text}; log in (gcloud auth application-default login), or ask for the right"
    return f"{type(error).__name__}: {text}; check the URL, your rights and the network"


def file_system(url: str) -> tuple[object, str]:
    """(fsspec's file system of a URL, the path in it)."""
    if not url.startswith(("gs://", "gcs://")):
        import fsspec  # on use: hardly any run needs it

        return fsspec.core.url_to_fs(url.rstrip("/"))
    # Not by fsspec's registry: what that gives asks another service for the kind of the bucket, which an emulator has
    # not, and waits for a minute.
    from gcsfs.core import GCSFileSystem

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises, too
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    options = {"endpoint_url": emulator, "token": "anon"} if emulator else {}
    return GCSFileSystem(**options, use_listings_cache=False), url.partition("://")[2].rstrip("/")


def download(url: str, folder: pathlib.Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Copy what lies below a URL to a folder, and return the names below it.

    Args:
      url: URL of a folder.
      folder: local folder.
      wanted: says of the path of a file below the URL whether to copy it.
    """
    files, root = file_system(url)
    found = listing(files, root)
    names = sorted(filter(wanted, found))
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, sum(found[name]["size"] for name in names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.get([f"{root}/{name}" for name in names], [str(folder / name) for name in names])
    return names


def listing(files, root: str) -> dict[str, dict]:
    """The metadata of the files below a folder of a bucket, by path; empty if there is no such folder."""
    try:
        found = files.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {path.removeprefix(f"{root}/"): info for path, info in found.items() if path != root}


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[pathlib.Path]:
    """A path, absolute; for a URL that of a copy, for as long as it is looked at.

    Raises:
      UserError: nothing is there, or it may not be read.
    """
    if not is_url(path):
        yield absolute(path)
        return
    url = path.rstrip("/")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / url.rpartition("/")[2]
        with bucket_errors(url):
            files, root = file_system(url)
            unfinished = tuple(unfinished_steps(listing(files, root)))
            if not download(url, folder, wanted=lambda name: not name.startswith((".lease", *unfinished))):
                raise UserError(f"{url}: expected a run or the folder of a step, found nothing there; check the URL")
        with shown_as(folder, url):
            yield folder


def unfinished_steps(names: Collection[str]) -> list[str]:
    """The folders, each with a slash at its end, of steps that are being uploaded or removed, or were when it ended."""
    marked = (name.removesuffix(UNFINISHED) for name in names if name.endswith(f"/{UNFINISHED}"))
    return [step for step in marked if step + LAST[0] not in names]


LAST = ("manifest.json", "result.json")  # files that say that others are whole, in the order of their upload
UNFINISHED = ".unfinished"  # a file in the folder of a step that is being uploaded or removed


def upload(folder: pathlib.Path, names: Sequence[str], files, root: str) -> None:
    """Copy files of a folder to a folder of a bucket, those last that say that others are whole."""
    groups = [[name for name in names if name.rpartition("/")[2] not in LAST]]
    groups += [[name for name in names if name.rpartition("/")[2] == last] for last in LAST]
    for group in filter(None, groups):
        files.put([str(folder / name) for name in group], [f"{root}/{name}" for name in group])


@contextlib.contextmanager
def outputs_in_buckets(args: argparse.Namespace, *names: str) -> Iterator[None]:
    """Replace URLs of outputs by local paths inside, and upload these files or folders at the end.

    Args:
      args: arguments of a command.
      names: arguments that are paths to write.

    Raises:
      UserError: something is there already, or it cannot be uploaded.
    """
    urls = {name: getattr(args, name) for name in names if is_url(getattr(args, name))}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory()) if urls else None
        for name, url in urls.items():
            with bucket_errors(url):
                files, root = file_system(url)
                if files.exists(root):
                    raise UserError(f"{url}: expected the name of a new file or folder; take another name")
            (pathlib.Path(scratch) / name).mkdir()
            local = pathlib.Path(scratch) / name / url.rstrip("/").rpartition("/")[2]
            stack.enter_context(shown_as(local, url))
            setattr(args, name, str(local))
        try:
            yield
            for name, url in urls.items():
                _upload_output(pathlib.Path(getattr(args, name)), url)
        finally:
            for name, url in urls.items():
                setattr(args, name, url)


def _upload_output(path: pathlib.Path, url: str) -> None:
    with bucket_errors(url):
        files, root = file_system(url)
        if path.is_file():
            files.put_file(str(path), root)
        else:
            upload(path, [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()], files, root)


def local_data(path: str, name: str = "") -> str:
    """A path of data as it is; for a URL that of a copy, which is made once, and again when the bucket has changed.

    Args:
      path: local path or URL of a folder.
      name: folder in it to copy; default: all of it.

    Raises:
      UserError: nothing is there, or it may not be read.
    """
    if not is_url(path):
        return path
    url = "/".join(filter(None, [path.rstrip("/"), name]))
    digest = hashlib.sha256(path.rstrip("/").encode()).hexdigest()[:16]
    folder = cache() / "data" / digest
    listed = folder / f"{name or 'all'}.listing.json"
    folder.mkdir(parents=True, exist_ok=True)
    with bucket_errors(url), filelock.FileLock(folder / ".lock"):
        files, root = file_system(url)
        found = {key: [info["size"], info.get("etag")] for key, info in listing(files, root).items()}
        if not found:
            raise UserError(f"data.data_dir: expected data, found nothing at {url}; check the URL")
        if not listed.exists() or json.loads(listed.read_text()) != found:
            shutil.rmtree(folder / (name or "all"), ignore_errors=True)
            download(url, folder / (name or "all"))
            write_json(listed, found)
    return str(folder if name else folder / "all")


def cache() -> pathlib.Path:
    """The folder for copies: in the user's cache, or else a temporary one."""
    return cache_folder() or pathlib.Path(tempfile.gettempdir()) / "resnet_jax"
