"""Runs, weights and data in buckets, like gs://bucket/run, by copies on the local disk.

A run in a bucket works in a local folder. What it writes there is uploaded when a checkpoint is whole, the manifest of
the checkpoint last, so that a reader of the bucket finds whole steps alone. Reads and writes are retried by gcsfs.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from resnet_jax.errors import UserError, WorkdirInUse
from resnet_jax.workdir import StorageError, cache_folder, check_room, is_url, shown_as

LAST = ("manifest.json", "result.json")  # files that say that others are whole, in the order of their upload
_TEMPORARY = (".lock", ".tmp")  # ends of names that are not uploaded
_SECONDS_OF_LEASE, _SECONDS_BETWEEN_RENEWALS = 60, 15


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
        raise UserError(f"{url}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
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
    sizes = _listing(files, root)
    names = sorted(filter(wanted, sizes))
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, sum(sizes[name] for name in names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.get([f"{root}/{name}" for name in names], [str(folder / name) for name in names])
    return names


def _listing(files, root: str) -> dict[str, int]:
    """Sizes by path below a folder of a bucket; nothing where there is none."""
    try:
        found = files.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {path.removeprefix(f"{root}/"): info["size"] for path, info in found.items() if path != root}


class Mirror:
    """A folder of a bucket, and its local copy, which `publish` uploads.

    Args:
      url: URL of the folder.
      folder: local folder, which is emptied.

    Attributes:
      folder: as given.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.url, self.folder = url, folder
        self._files, self._root = file_system(url)
        self._check_bucket()
        self._lease = Lease(self._files, f"{self._root}/.lease", url)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        download(url, folder, wanted=lambda name: name != ".lease")
        self._uploaded = self._state()
        self._publishing = threading.Lock()

    def _check_bucket(self) -> None:
        bucket = self._root.partition("/")[0]
        if not self._files.exists(bucket):
            raise UserError(f"{self.url}: there is no bucket {bucket}, or you may not see it; check the URL")

    def close(self) -> None:
        """Give up the lease, and remove the copy."""
        self._lease.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Upload what has changed, then remove what is gone.

        Raises:
          StorageError: it cannot be uploaded, or another process has taken over the run.
        """
        with self._publishing:
            try:
                self._lease.check()
                self._upload()
            except StorageError:
                raise
            except Exception as error:  # of the network, after several tries
                raise StorageError(f"{self.url}: {_reason(error)}; the checkpoints in it are whole") from error

    def _upload(self) -> None:
        now = self._state()
        changed = [name for name, state in now.items() if self._uploaded.get(name) != state]
        for last in (None, *LAST):
            names = [name for name in changed if (name.rpartition("/")[2] in LAST) == bool(last)]
            names = [name for name in names if last is None or name.endswith(last)]
            if names:
                local, there = [str(self.folder / name) for name in names], [f"{self._root}/{name}" for name in names]
                self._files.put(local, there)
                self._uploaded |= {name: now[name] for name in names}
        gone = sorted(self._uploaded.keys() - now.keys(), key=lambda name: not name.endswith(LAST))
        for name in gone:  # first the manifest of a step: what is left is no step
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")
            del self._uploaded[name]

    def _state(self) -> dict[str, tuple[int, int]]:
        """(size, time of the last change) by path; of what is being written nothing."""
        found = {}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            hidden = any(part.startswith((".saving-", ".deleting-")) for part in path.parts)
            if not hidden and not name.endswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        found[name] = path.stat().st_size, path.stat().st_mtime_ns
        return found


class Lease:
    """An object in a bucket that keeps other processes out, as a lock keeps them out of a local folder.

    A thread renews it. Each write asks for the generation that was seen before, so that of two processes one wins. A
    process that was killed leaves its lease behind: it is over at once if the process ran on this machine, else when
    it was not renewed for a minute.

    Args:
      files: fsspec's file system.
      path: path of the object.
      url: URL of what it guards, for messages.

    Raises:
      WorkdirInUse: another process holds it.
    """

    def __init__(self, files, path: str, url: str):
        self._files, self._path, self._url = files, path, url
        self._over, self._lost = threading.Event(), False
        self._generation = self._acquire()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `StorageError` if another process has taken the lease."""
        if self._lost:
            raise StorageError(f"{self._url}: another process took this run over, since this one was not heard of")

    def release(self) -> None:
        """Let others in."""
        self._over.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(Exception):  # it ends by itself
                self._files.rm_file(self._path)

    def _acquire(self) -> str:
        seen, end = None, time.monotonic() + _SECONDS_OF_LEASE
        generation = "0"  # of an object that is not there
        while True:
            try:
                return self._write(generation)
            except FileExistsError:
                holder, found = self._read()
            seen = seen or found
            is_alive = found != seen  # it was renewed meanwhile
            if is_alive and not _is_gone(holder):
                raise WorkdirInUse(
                    f"workdir: another run is at work in {self._url}, process {holder['pid']} on {holder['host']}; "
                    "wait for it or take another"
                )
            if found == "0" or _is_gone(holder) or time.monotonic() > end:
                generation = found
            else:
                self._over.wait(1.0)

    def _read(self) -> tuple[dict, str]:
        """(who holds the lease, its generation), or "0" if it is not there."""
        try:
            generation = self._files.info(self._path)["generation"]
            return json.loads(self._files.cat_file(self._path)), str(generation)
        except FileNotFoundError:
            return {}, "0"

    def _write(self, generation: str) -> str:
        """Write the lease over this generation of it, and return the new one.

        Raises:
          FileExistsError: it has another.
        """
        bucket, _, key = self._path.partition("/")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        parts = [
            f"--part\nContent-Type: application/json; charset=UTF-8\n\n{json.dumps({'name': key})}",
            f"--part\nContent-Type: application/json\n\n{json.dumps(holder)}",
            "--part--",
        ]
        written = self._files.call(  # gcsfs writes files without a word on generations
            "POST",
            f"{self._files.base.removesuffix('/storage/v1/')}/upload/storage/v1/b/{{}}/o",
            bucket,
            uploadType="multipart",
            ifGenerationMatch=generation,
            headers={"Content-Type": "multipart/related; boundary=part"},
            data="\n".join(parts).encode(),
            json_out=True,
        )
        return str(written["generation"])

    def _renew(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_RENEWALS):
            try:
                self._generation = self._write(self._generation)
            except FileExistsError:
                self._lost = True
                return
            except Exception:  # the network is away; when it is back, either the lease is still ours or it is not
                continue


def _is_gone(holder: dict) -> bool:
    """True for a process of this machine that does not run any more."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return holder["pid"] == os.getpid()  # that of a process before this one, as in a container that is started again


def mirror_folder(url: str) -> pathlib.Path:
    """The local folder in which a run in a bucket works."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return (cache_folder() or pathlib.Path(tempfile.gettempdir()) / "resnet_jax") / "buckets" / name


@contextlib.contextmanager
def opened(workdir: str | pathlib.Path) -> Iterator[Mirror | None]:
    """The mirror of a run directory in a bucket; None for one on the local disk.

    Messages of errors inside name the bucket.

    Raises:
      UserError: the bucket is not there, or may not be written.
      WorkdirInUse: another process is at work in it.
    """
    if not is_url(workdir):
        yield None
        return
    url = str(workdir).rstrip("/")
    if not url.startswith(("gs://", "gcs://")):
        raise UserError(f"workdir: expected a local folder or gs://BUCKET/PATH, found {url}")
    folder = mirror_folder(url)
    with bucket_errors(url):
        mirror = Mirror(url, folder)
    try:
        with shown_as(folder, url):
            try:
                yield mirror
            except BaseException:
                with contextlib.suppress(StorageError):  # what came first is said
                    mirror.publish()
                raise
            mirror.publish()
    except UserError as error:
        error.args = (str(error).replace(str(folder), url),)
        raise
    finally:
        mirror.close()
