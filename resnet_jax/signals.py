"""Requests to stop a run: Ctrl-C, a scheduler's signals, a terminal that is closed."""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

# A preemption is announced by SIGTERM, and by some schedulers by SIGUSR1 or SIGUSR2; a closed terminal sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Handlers that a library has set by itself are not known to the module `signal`.
_handler_of_c = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
_set_handler_of_c = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(("PyOS_setsig", ctypes.pythonapi))
_ONE_REQUEST = 0.5  # seconds: timeout(1) and others signal a process and then its group, which it is in


@contextlib.contextmanager
def stop_requests(
    on_first: Callable[[signal.Signals], None],
) -> Iterator[Callable[[], signal.Signals | None]]:
    """A function that says which signal came first, or None. A second one, later on, ends the process at once.

    Signals can be handled in the main thread only; elsewhere they are the caller's. One that is ignored, as SIGHUP is
    under nohup, stays so.

    Args:
      on_first: called when the first signal comes, in a thread of its own: the main one may hold any lock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    first: list[signal.Signals] = []
    # Python calls a handler between two instructions of the main thread, which may be a long way off: in a compilation,
    # say. The number of the signal is written to this socket at once.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def on_signal(number, frame=None):
        if not first:
            first.append(signal.Signals(number))

    def watch():
        first_time = None
        while received := receiver.recv(1):
            number = received[0]
            if number not in STOP_SIGNALS:
                continue
            if first_time is None:
                first_time = time.monotonic()
                on_signal(number)
                threading.Thread(target=on_first, args=first, daemon=True).start()  # it may wait
            elif time.monotonic() - first_time > _ONE_REQUEST:
                end_process(128 + number)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    previous_socket = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    of_c = {number: _handler_of_c(number) for number in heeded}
    previous = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        yield lambda: first[0] if first else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
            _set_handler_of_c(number, of_c[number])
        signal.set_wakeup_fd(previous_socket)
        sender.close()
        watcher.join()
        receiver.close()


def handler_of_libraries(number: signal.Signals) -> Callable[[int], None]:
    """The handler of a signal as it is now, though it may not be Python's."""
    pointer = _handler_of_c(number)
    is_function = pointer not in (None, signal.SIG_IGN)
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(pointer) if is_function else lambda number: None


def end_on_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, as long as it has nothing to save.

    The exception that Python raises instead is a traceback while modules are imported, and is lost in a callback.
    """
    _end_at([signal.SIGINT], b"interrupted\n")


def end_outside_of_training() -> None:
    """Let any request to stop end the process at once, as long as it has nothing to save; to a scheduler: try again.

    While the interpreter ends, requests are ignored: it takes but a moment, and its status says how the run ended.
    """
    _end_at(STOP_SIGNALS, b"stopped outside of training; nothing was lost\n", os.EX_TEMPFAIL)
    atexit.register(_ignore)  # before all others, so that it is called last


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_at(numbers: Sequence[signal.Signals], message: bytes, status: int | None = None) -> None:
    def end(number, frame):
        with contextlib.suppress(OSError):
            os.write(2, message)
        end_process(128 + number if status is None else status)

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def end_process(status: int) -> None:
    """End this process and its children, whatever they are at."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)
