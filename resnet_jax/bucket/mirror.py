"""Runs in buckets.

A run works in a local folder. What it writes there is uploaded when a checkpoint is whole, the manifest of the
checkpoint last, so that a reader of the bucket finds whole steps alone. Meanwhile the folder of the step is marked as
unfinished: so what a killed process leaves is told from a step whose manifest was lost.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator

from resnet_jax.bucket.files import (
    LAST,
    UNFINISHED,
    bucket_errors,
    cache,
    download,
    file_system,
    listing,
    reason_of,
    unfinished_steps,
    upload,
)
from resnet_jax.bucket.lease import Lease
from resnet_jax.errors import UserError
from resnet_jax.workdir import StorageError, is_url, shown_as

_MANIFEST = LAST[0]


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
        self._remove_unfinished()
        download(url, folder, wanted=lambda name: name != ".lease")
        self._uploaded = self._state()
        self._publishing = threading.Lock()

    def _check_bucket(self) -> None:
        bucket = self._root.partition("/")[0]
        if not self._files.exists(bucket):
            raise UserError(f"{self.url}: there is no bucket {bucket}, or you may not see it; check the URL")

    def _remove_unfinished(self) -> None:
        """Remove what a process that was killed left of steps that it was uploading or removing."""
        names = listing(self._files, self._root)
        left = tuple(unfinished_steps(names))
        for name in sorted(names, key=lambda name: name.endswith(UNFINISHED)):  # the marks last
            if name.startswith(left) or name.endswith(f"/{UNFINISHED}"):
                self._files.rm_file(f"{self._root}/{name}")

    def close(self) -> None:
        """Give up the lease, and remove the copy."""
        self._lease.release()
        if not self._lease.lost:  # else another process of this machine may work in the copy
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
                raise StorageError(f"{self.url}: {reason_of(error)}; the checkpoints in it are whole") from error

    def _upload(self) -> None:
        now = self._state()
        changed = [name for name, state in now.items() if self._uploaded.get(name) != state]
        gone = sorted(self._uploaded.keys() - now.keys(), key=lambda name: not name.endswith(LAST))
        steps = [name.removesuffix(_MANIFEST) for name in (*changed, *gone) if name.endswith(f"/{_MANIFEST}")]
        marks = [f"{self._root}/{step}{UNFINISHED}" for step in steps]
        for mark in marks:
            self._files.pipe_file(mark, b"")
        upload(self.folder, changed, self._files, self._root)
        self._uploaded |= {name: now[name] for name in changed}
        for name in gone:  # first the manifest of a step: what is left is no step
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")
            del self._uploaded[name]
        for mark in marks:
            self._files.rm_file(mark)

    def _state(self) -> dict[str, tuple[int, int]]:
        """(size, time of the last change) by path; of locks and of what is being written nothing."""
        found = {}
        for folder, folders, names in os.walk(self.folder):  # steps are removed meanwhile, which `rglob` cannot bear
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith(".") and not name.endswith(".tmp"):
                    path = pathlib.Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        found[str(path.relative_to(self.folder))] = path.stat().st_size, path.stat().st_mtime_ns
        return found


def mirror_folder(url: str) -> pathlib.Path:
    """The local folder in which a run in a bucket works."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache() / "buckets" / name


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
    finally:
        mirror.close()
