"""The connection of a process to the coordinator, held by us, so that we learn first when it breaks."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable

from resnet_jax.job.address import host_and_port


class Relay:
    """Carries the bytes between JAX's client in this process and the coordinator in process 0.

    JAX's client ends its process with SIGABRT and a C++ stack within milliseconds when its connection breaks, and takes
    no callback that could say what happened. So it gets a connection that does not break: to this relay, on loopback.

    Args:
      coordinator: "HOST:PORT" of the coordinator.

    Attributes:
      address: "HOST:PORT" for JAX's client.
      on_lost: called in a thread, with the reason, when the coordinator is gone. The client is not told.
      timeout: seconds of silence after which it is.
      holding: while False, a connection that breaks is passed on: before the job has begun, and after its end.
    """

    def __init__(self, coordinator: str):
        self._coordinator = host_and_port(coordinator)
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.timeout = 30.0
        self.holding = False
        self._heard = time.monotonic()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        _in_thread(self._accept, listener)

    def _accept(self, listener):
        while True:
            client, _ = listener.accept()
            _in_thread(self._connect, client)

    def _connect(self, client):
        try:
            coordinator = socket.create_connection(self._coordinator, timeout=5)
        except OSError as error:
            if self.holding:
                self.on_lost(str(error))
            else:
                client.close()  # JAX's client tries again until its own timeout
            return
        for each in (client, coordinator):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        coordinator.settimeout(None)
        _in_thread(self._upward, client, coordinator)
        self._downward(coordinator, client)

    def _upward(self, client, coordinator):
        with contextlib.suppress(OSError), coordinator:
            while data := client.recv(1 << 16):
                coordinator.sendall(data)

    def _downward(self, coordinator, client):
        reason, waiting = "its connection was closed", select.poll()
        waiting.register(coordinator, select.POLLIN)
        while True:
            if not waiting.poll(1000):  # milliseconds
                if self.holding and time.monotonic() - self._heard > self.timeout:
                    reason = f"no sign of life for {self.timeout:g} s"
                    break
                continue
            try:
                data = coordinator.recv(1 << 16)
            except OSError as error:
                reason = f"its connection broke ({error.strerror or error})"
                break
            self._heard = time.monotonic()
            if not data:
                break
            with contextlib.suppress(OSError):
                client.sendall(data)
        if self.holding and coordinator.fileno() >= 0:  # else the client has closed it
            self.on_lost(reason)
        else:
            client.close()


def _in_thread(function: Callable, *arguments) -> None:
    threading.Thread(target=function, args=arguments, name="relay", daemon=True).start()
