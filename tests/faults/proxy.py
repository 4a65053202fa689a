# [Task]: T032 [From]: specs/requirements.md
"""A TCP proxy between the service and PostgreSQL that delays, stalls, cuts, refuses and counts."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from postgresql import free_port

# Closing with this SO_LINGER sends RST.
_RESET = struct.pack("ii", 1, 0)
_CHUNK = 1 << 16


class Proxy:
    """Listens on `port` of 127.0.0.1 and passes on to `upstream`, from a thread of its own.

    `connections` counts those accepted, `round_trips` how often the server had to be waited for:
    a client's bytes after the server's.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self.connections = 0
        self.round_trips = 0
        self._delay_up = self._delay_down = 0.0
        self._mute = False
        self._ends_arrive = True
        self._answers_to_lose = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = free_port()
        self.accept()

    def url(self, url: str) -> str:
        """The same URL by way of the proxy."""
        port = urlsplit(url).port
        return url.replace(f":{port}/", f":{self.port}/")

    @property
    def open_connections(self) -> int:
        return len(self._links)

    @contextmanager
    def delayed(self, up: float, down: float) -> Iterator[None]:
        """Meanwhile bytes are so many seconds under way, to the server and back."""
        self._delay_up, self._delay_down = up, down
        try:
            yield
        finally:
            self._delay_up = self._delay_down = 0.0

    def stall(self) -> None:
        """Swallow the packets of every connection, old and new, until `resume`."""
        self._mute = True
        self._run(self._set_flowing(False))

    def resume(self) -> None:
        """Packets flow again; what TCP would have sent anew arrives now."""
        self._mute = False
        self._run(self._set_flowing(True))

    @contextmanager
    def stranded(self) -> Iterator[None]:
        """Leave every present connection half open meanwhile, then reset it; new ones work."""
        links = list(self._links)
        self._run(self._set_flowing(False))
        try:
            yield
        finally:
            self._run(self._cut(links))

    @contextmanager
    def ends_lost(self) -> Iterator[None]:
        """Meanwhile what the server says arrives, but not that it has closed its connection."""
        links = list(self._links)
        self._ends_arrive = False
        try:
            yield
        finally:
            self._ends_arrive = True
            self._run(self._cut(links))

    def lose_answers(self, count: int) -> None:
        """Reset the connection in place of passing on what the server says next, so many times."""
        self._answers_to_lose = count

    def cut(self) -> None:
        """Reset every present connection."""
        self._run(self._cut(list(self._links)))

    def mute(self) -> None:
        """Accept new connections and never answer them, until `resume`."""
        self._mute = True

    def refuse(self) -> None:
        """Refuse new connections, until `accept`."""
        self._run(self._refuse())

    def accept(self) -> None:
        self._run(self._accept())

    def restore(self) -> None:
        """Let everything through again, whatever a test has left."""
        self.accept()
        self.resume()

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What follows runs in the thread.

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set_flowing(self, flowing: bool) -> None:
        for link in self._links:
            (link.flowing.set if flowing else link.flowing.clear)()

    async def _cut(self, links: list["_Link"]) -> None:
        for link in links:
            link.cut()

    async def _accept(self) -> None:
        if self._acceptor is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(256)
            self._acceptor = self._loop.create_task(self._accept_all(listener))

    async def _accept_all(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self.connections += 1
                task = self._loop.create_task(self._serve(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _refuse(self) -> None:
        if self._acceptor is not None:
            await _end(self._acceptor)
            self._acceptor = None

    async def _close(self) -> None:
        await self._refuse()
        await self._cut(list(self._links))
        for task in list(self._tasks):
            await _end(task)

    async def _serve(self, client: socket.socket) -> None:
        server = socket.socket()
        link = _Link(client, server)
        if self._mute:
            link.flowing.clear()
        self._links.add(link)
        link.tasks = [task for task in [asyncio.current_task()] if task]
        try:
            with client, server:
                for end in (client, server):
                    end.setblocking(False)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A server that is not there is not to be told from one that is.
                await link.flowing.wait()
                await self._loop.sock_connect(server, ("127.0.0.1", self._upstream))
                async with asyncio.TaskGroup() as group:
                    link.tasks = [
                        group.create_task(self._pump(link, client, server, up=True)),
                        group.create_task(self._pump(link, server, client, up=False)),
                    ]
        except* OSError:
            pass
        finally:
            # Only now that both ends have been told.
            self._links.discard(link)

    async def _pump(
        self, link: "_Link", source: socket.socket, sink: socket.socket, *, up: bool
    ) -> None:
        """Pass on what comes, each chunk after the delay, until the source's end; then cut."""
        # Read ahead of what is still under way, so that a delay is no limit of throughput.
        under_way = asyncio.Queue[tuple[float, bytes]]()

        async def read() -> None:
            while data := await self._loop.sock_recv(source, _CHUNK):
                if up and not link.asking:
                    self.round_trips += 1
                link.asking = up
                if not up and self._answers_to_lose:
                    self._answers_to_lose -= 1
                    raise ConnectionResetError
                delay = self._delay_up if up else self._delay_down
                under_way.put_nowait((self._loop.time() + delay, data))
            under_way.put_nowait((self._loop.time(), b""))

        async def write() -> None:
            while True:
                due, data = await under_way.get()
                if due > self._loop.time():
                    await asyncio.sleep(due - self._loop.time())
                await link.flowing.wait()
                if not data:
                    if not up and not self._ends_arrive:
                        return
                    raise ConnectionResetError
                await self._loop.sock_sendall(sink, data)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())


class _Link:
    """A connection: the client's socket, the server's, and whether bytes flow between them."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.flowing = asyncio.Event()
        self.flowing.set()
        # Whether the last bytes were the client's.
        self.asking = False
        self.tasks: list[asyncio.Task[None]] = []

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for task in self.tasks:
            task.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextmanager
def proxying(upstream: int) -> Iterator[Proxy]:
    """A proxy in front of a port, until it is closed."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
