"""A lock in a bucket."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from resnet_jax.errors import WorkdirInUse
from resnet_jax.workdir import StorageError

_SECONDS_OF_LEASE, _SECONDS_BETWEEN_RENEWALS = 60, 15


class Lease:
    """An object in a bucket that keeps other processes out, as a lock keeps them out of a local folder.

    A thread renews it. Each write asks for the generation that was seen before, so that of two processes one wins. A
    process that was killed leaves its lease behind: it is over at once if the process ran on this machine, else when
    it was not renewed for a minute.

    Args:
      files: fsspec's file system.
      path: path of the object.
      url: URL of what it guards, for messages.

    Attributes:
      lost: another process has taken it.

    Raises:
      WorkdirInUse: another process holds it.
    """

    def __init__(self, files, path: str, url: str):
        self._files, self._path, self._url = files, path, url
        self._over, self.lost = threading.Event(), False
        self._id = uuid.uuid4().hex
        self._generation = self._acquire()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `StorageError` if another process has taken the lease."""
        if self.lost:
            raise StorageError(f"{self._url}: another process took this run over, since this one was not heard of")

    def release(self) -> None:
        """Let others in."""
        self._over.set()
        self._thread.join()
        if not self.lost:
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
            if holder.get("id") == self._id:
                return found
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

    def _was_written(self) -> bool:
        """True if the lease is still this one: an answer was lost, and what was written was sent again."""
        try:
            holder, generation = self._read()
        except Exception:  # the network is away; the next renewal tells
            return True
        if holder.get("id") == self._id:
            self._generation = generation
        return holder.get("id") == self._id

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
        holder = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
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
                self.lost = not self._was_written()
                if self.lost:
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
