"""A TCP proxy before a storage that cuts connections in the middle of a file, or lets nothing through any more."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, List

BLOCK = 65536


class Proxy:
    """`cut_after`: bytes of one connection, both ways together, after which it is cut; 0: never. `is_frozen`: nothing passes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.cut_after = 0
        self.n_cut = 0
        self.n_connections = 0
        self.is_frozen = False
        self._is_over = False
        self._threads: List[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, work: Callable[..., None], *given: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                theirs, _ = self._listening.accept()
                ours = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self.n_connections += 1
            self._begin(self._pass_on, theirs, ours)

    def _pass_on(self, theirs: socket.socket, ours: socket.socket) -> None:
        passed, other = 0, {theirs: ours, ours: theirs}
        with suppress(OSError), theirs, ours:
            while not self._is_over:
                for ready in select.select([theirs, ours], [], [], 0.1)[0]:
                    if self.is_frozen:
                        continue
                    data = ready.recv(BLOCK)
                    if not data:
                        return
                    passed += len(data)
                    if self.cut_after and passed > self.cut_after:
                        self.n_cut += 1
                        return
                    other[ready].sendall(data)

    def close(self) -> None:
        self._is_over = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for each in list(self._threads):
            each.join()
        self._listening.close()


@contextmanager
def before(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
