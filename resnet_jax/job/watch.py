"""Watches over a job: a process that fails, or is lost, ends all, and each says why.

Without it, the others wait in a collective for what never comes, for minutes.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

from resnet_jax import signals
from resnet_jax.errors import InterruptedRun, UserError

_FOLDER = "resnet_jax/processes/"  # in the coordinator's store
_INTERVAL = 1.0  # seconds between two looks at the others
_GRACE = 5.0  # seconds in which a process may meet the error of another one by itself, and say it in its own words
_LINGER = 10.0  # seconds that a process which failed waits for the others to hear of it
# Errors of a collective: their cause is another process, which is about to be found out.
_OF_OTHERS = re.compile(r"gloo|nccl|rccl|connection (closed|reset|refused)|socket closed|UNAVAILABLE|ABORTED", re.I)


class _Peer(NamedTuple):
    record: dict
    changed: float  # monotonic time of the last sign of life
    failed: float | None  # the same, when its failure was seen
    replaced: bool = False  # by a new process of the same index, which knows nothing of this run


class Watch:
    """A thread that tells the other processes of this one, and learns of them, through the coordinator's store.

    Only this thread talks to the store, which may keep it waiting for ever.

    Args:
      store: JAX's client of the coordination service.
      process: index of this process.
      num_processes: number of processes in the job.

    Attributes:
      heartbeat: seconds without a sign of life after which a process counts as lost.
      on_asked: called once, in a thread of its own, when another process asks to stop this run; or None.
    """

    def __init__(self, store, process: int, num_processes: int):
        self.heartbeat = 30.0
        self._store, self._process, self._num_others = store, process, num_processes - 1
        self._own = {
            "host": socket.gethostname(),
            "id": uuid.uuid4().hex,
            "beat": 0,
            "state": "running",
            "run": 0,
            "asked": 0,  # the run that this process was asked to stop
            "failure": None,
        }
        self.on_asked: Callable[[], None] | None = None
        self._peers: dict[int, _Peer] = {}
        self._failed: float | None = None  # monotonic time of an error of this process in this run
        self._lost_coordinator: str | None = None  # the reason
        self._inside = False  # a run
        self._ending = threading.Lock()  # never released by who ends this process
        self._wake, self._round = threading.Event(), 0
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._hold)  # kept: C does not
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        threading.Thread(target=self._work, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """For the body of a run: while inside, this process ends when another one fails or is lost.

        All processes are to begin the same runs in the same order.
        """
        self._own["run"] += 1
        self._failed, self._inside = None, True
        if self._lost_coordinator:
            self.coordinator_lost(self._lost_coordinator)
        try:
            with self.telling():
                yield
        finally:
            with self._ending:
                self._inside = False

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an exception inside, before anything on its way out can wait for them."""
        try:
            yield
        except InterruptedRun:  # by all processes after the same step
            raise
        except BaseException as error:
            if self._failed is None:
                if _is_of_others(error):
                    time.sleep(self.heartbeat + 2 * _GRACE)  # by then the culprit has ended this process, too
                self._tell(error)
                self._next_rounds()
            raise

    def ask_others_to_stop(self) -> None:
        """Let the others know that this process was asked to stop the run."""
        self._own["asked"] = self._own["run"]
        self._wake.set()

    def leave(self) -> bool:
        """Wait until the others leave the job, too; True if all did, and none was lost or has failed."""
        self._own["state"] = "left"
        self._next_rounds()
        deadline = float("inf") if self._failed is None else time.monotonic() + _LINGER
        while self._others_at_work() and time.monotonic() < deadline:
            self._next_rounds()
        states = [peer.record["state"] for peer in self._peers.values()]
        if not self._lost_coordinator and states == ["left"] * self._num_others:
            return True
        self._own["state"] = "ended"
        self._next_rounds()
        return False

    def coordinator_lost(self, reason: str) -> None:
        """Called, in another thread, when the connection to process 0 is gone."""
        self._lost_coordinator = reason
        if self._failed is not None:
            time.sleep(_LINGER)
        if self._inside:
            self._end(*(self._own_failure() or self._culprit(grace=0) or self._lost(0, reason)))

    def _hold(self, number):
        """Keep a thread that aborts from ending the process without a word of the culprit.

        Gloo throws in a thread of its own, where nothing catches it, when a peer vanishes in the midst of a collective.
        """
        if self._inside:
            time.sleep(self.heartbeat + 2 * _GRACE)  # by then the watch has found the culprit, if there is one
            self._lost_coordinator = "aborted"  # it may hold a lock that the store waits for
            self._end(*(self._culprit(grace=0) or ("a library has aborted; see its words above", 128 + number)))

    def _tell(self, error):
        message, status = str(error), 1
        if isinstance(error, UserError):
            status = error.exit_status
        else:
            message = f"{type(error).__name__}: {error}"
        self._own["failure"] = {"run": self._own["run"], "message": message[:2000], "status": status}
        self._failed = time.monotonic()
        self._wake.set()

    def _next_rounds(self):
        """Wait until what was done before is told, and the answer is there; not for ever."""
        until, deadline = self._round + 2, time.monotonic() + 2 * _INTERVAL
        while self._round < until and not self._lost_coordinator and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.02)

    def _work(self):
        while True:
            with contextlib.suppress(Exception):  # the store is gone: `coordinator_lost` will be called
                self._publish()
                self._look()
            self._round += 1
            self._heed_others()
            if self._inside and self._failed is None:
                if cause := self._culprit(_GRACE):
                    self._end(*cause)
            elif self._inside and time.monotonic() > self._failed + _LINGER:
                self._end(*self._own_failure())  # something on its way out waits for others
            self._wake.wait(_INTERVAL)
            self._wake.clear()

    def _heed_others(self):
        act, run = self.on_asked, self._own["run"]
        if act and any(peer.record.get("asked") == run for peer in self._peers.values()):
            self.on_asked = None
            threading.Thread(target=act, daemon=True).start()

    def _publish(self):
        self._own["beat"] += 1
        self._store.key_value_set(f"{_FOLDER}{self._process}", json.dumps(self._own), allow_overwrite=True)

    def _look(self):
        for key, value in self._store.key_value_dir_get(_FOLDER):
            index, record, now = int(key.rpartition("/")[2]), json.loads(value), time.monotonic()
            known = self._peers.get(index)
            if index == self._process or (known and known.record["beat"] == record["beat"]):
                continue
            if known and known.record["id"] != record["id"]:
                self._peers[index] = known._replace(replaced=True)
                continue
            failed = now if record["failure"] else None
            if known and known.record["failure"] == record["failure"]:
                failed = known.failed
            self._peers[index] = _Peer(record, now, failed)

    def _others_at_work(self) -> bool:
        if self._lost_coordinator:
            return False
        return any(peer.record["state"] == "running" and not self._is_lost(peer) for peer in self._peers.values())

    def _is_lost(self, peer) -> bool:
        return peer.replaced or time.monotonic() > peer.changed + self.heartbeat

    def _culprit(self, grace: float) -> tuple[str, int] | None:
        """(message, exit status) for the process that keeps this run from its end, if there is one."""
        run = self._own["run"]
        for index, peer in sorted(self._peers.items()):
            failure = peer.record["failure"]
            if failure and failure["run"] == run and time.monotonic() > peer.failed + grace:
                return f"{self._name(index)}: {failure['message']}", failure["status"]
            if peer.record["state"] != "running" and peer.record["run"] < run:
                reason = failure["message"] if failure else "it has ended before this run"
                return f"{self._name(index)}: {reason}", failure["status"] if failure else 1
        for index, peer in sorted(self._peers.items()):
            if peer.record["state"] == "running" and self._is_lost(peer):
                silent = f"no sign of life for {self.heartbeat:g} s"
                return self._lost(index, "it was started again alone" if peer.replaced else silent)
        return None

    def _own_failure(self) -> tuple[str, int] | None:
        failure = self._own["failure"]
        return (failure["message"], failure["status"]) if self._failed is not None else None

    def _lost(self, index, reason) -> tuple[str, int]:
        advice = "start the job again to continue from its last checkpoint"
        return f"{self._name(index)} was lost: {reason}; {advice}", os.EX_TEMPFAIL

    def _name(self, index) -> str:
        return f"process {index} ({self._peers[index].record['host']})" if index in self._peers else f"process {index}"

    def _end(self, message, status):
        self._ending.acquire()
        if not self._inside:  # the run has ended by itself in the meantime
            self._ending.release()
            return
        with contextlib.suppress(OSError):
            os.write(2, f"error: {message}\n".encode())  # another thread may hold the lock of sys.stderr
        self._own["state"] = "ended"
        deadline = time.monotonic() + _LINGER
        with contextlib.suppress(Exception):
            while not self._lost_coordinator:
                self._publish()
                self._look()
                # With process 0 goes the store, from which the others learn the reason.
                if self._process != 0 or not self._others_at_work() or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        signals.end_process(status)


def _is_of_others(error: BaseException) -> bool:
    return type(error).__name__ == "JaxRuntimeError" and _OF_OTHERS.search(str(error)) is not None
