"""Serve a bundle over TCP: conditions in, every frame out, without a line of C++.

    python scripts/serve.py --bundle street.v2v --port 7860
    python scripts/serve.py --bundle street.v2v --device cuda

One client at a time; others are told that the server is busy and may come back. Numbers are big-endian, pictures are
raw rows of pixels. Everything is a message: 1 byte of kind, 4 bytes of length, then so many bytes.

from the server
    H  JSON, once, at the beginning: name, height, width, fps, frames_waited, and of a condition its parts (name, shape
       and little-endian numpy type of each, in order) and bytes
    F  a frame: 4 bytes of index, 1 byte (1: a keyframe), height x width x 3 bytes of RGB
    D  JSON, once, at the end: frames and keyframes
    E  a sentence, once, in the place of D (and of H where the server is busy); the connection is then closed
from the client
    C  a condition: the bytes of its parts, one after the other
    D  no more conditions (0 bytes); the frames still due come before the server's D

A client reads while it sends (``Client`` below does): frames that nobody takes hold the server up, and after
``--timeout-s`` it gives the client up. There is neither encryption nor a password: keep it on this machine, the
default, or put a proxy with both in front. Where a pipe is enough, take ``fastv2v stream --conditions - --out -``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.engines import AUTO
from export.runtime import ConditionMap, DeliveredFrame, Stream, open_bundle
from fastv2v.commands.arguments import parse
from fastv2v.errors import ConfigError, DataError, FastV2VError

log = logging.getLogger(__name__)
_HEAD = struct.Struct("!cI")
_FRAME = struct.Struct("!I?")
_GRACE_S = 0.2
"""How long a newcomer waits for a client that is just leaving."""
_GOODBYE_S = 1.0
"""How long a client that is turned away may take to hear why."""
_LARGEST_SENTENCE = 1 << 16
"""Bytes of JSON or of a sentence that a client takes."""


@dataclass(frozen=True, kw_only=True)
class ServeArgs:
    """Serve a bundle to one client after the other over TCP."""

    bundle: Path
    """Bundle folder, NAME.v2v."""
    host: str = "127.0.0.1"
    """IPv4 or IPv6 address to listen on. Anybody who reaches it can use the bundle: there is no password."""
    port: int = 7860
    """Port to listen on; 0 takes a free one, which is printed."""
    engine: str = AUTO
    """Engine, as NAME or NAME:PRECISION; auto takes the fastest that was measured and accepted at export."""
    device: str | None = None
    """cuda, cuda:1 ...: make, keep and fill in all frames there."""
    host_code: bool = False
    """Let a named engine that was built into the bundle bring code of its own for the CPU, as version-compatible ones
    of TensorRT do. Only for bundles from people you trust."""
    threads: int | None = None
    """CPU threads; all by default."""
    causal: bool = False
    """Answer every condition with its frame at once; quality is lower."""
    timeout_s: float = 30.0
    """Seconds after which a client that neither sends nor reads is given up."""
    clients: int | None = None
    """Stop after so many; by default never."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"a port lies between 0 and 65535, got {self.port}")
        if self.timeout_s <= 0 or (self.clients is not None and self.clients < 1):
            raise ConfigError(
                f"timeout_s must be above 0 and clients at least 1, got {self.timeout_s} and {self.clients}"
            )


class Part(NamedTuple):
    """One array of a condition."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """How many bytes it takes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def parts_of(manifest: Manifest) -> tuple[Part, ...]:
    """What a condition of this bundle is made of."""
    spec = manifest.condition
    if spec.kind == "maps":
        return (Part("maps", (spec.map_channels, *manifest.size), "<f4"),)
    fits_a_byte = max(spec.num_classes - 1, spec.ignore_id or 0) < 256
    parts = [Part("labels", manifest.size, "|u1" if fits_a_byte else "<i4")]
    if spec.use_instances:
        parts.append(Part("instances", manifest.size, "<i4"))
    return tuple(parts)


def send(connection: socket.socket, kind: bytes, *pieces: bytes | memoryview) -> None:
    """Send one message."""
    connection.sendall(_HEAD.pack(kind, sum(len(piece) for piece in pieces)))
    for piece in pieces:
        connection.sendall(piece)


def receive(connection: socket.socket, sizes: Mapping[bytes, tuple[int, int]]) -> tuple[bytes, bytearray]:
    """Take one message.

    Args:
        connection: to the other side.
        sizes: least and most bytes of every kind that may come.

    Raises:
        ConnectionError: if the other side has gone.
        DataError: if it sends something else; nothing of that is read.
        TimeoutError: if head or rest take longer than the connection's time limit.
    """
    kind, length = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if kind not in sizes:
        raise DataError(f"a message of kind {kind!r} came; known are {', '.join(x.decode() for x in sizes)}")
    least, most = sizes[kind]
    if not least <= length <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise DataError(f"a message {kind.decode()} of {length} bytes came; it has {wanted}")
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, filled = memoryview(data), 0
    # The socket's own limit is for each piece that comes; one byte now and then would never exceed it.
    limit = connection.gettimeout()
    end = None if limit is None else time.monotonic() + limit
    while filled < count:
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"{filled} of {count} bytes came in {limit} s")
        took = connection.recv_into(view[filled:])
        if not took:
            raise ConnectionError(f"the connection ended after {filled} of {count} bytes")
        filled += took
    return data


def received_conditions(connection: socket.socket, manifest: Manifest) -> Iterator[ConditionMap]:
    """The conditions a client sends, until it says that there are no more.

    Raises:
        ConnectionError: if it goes without a word.
        DataError: if it sends something else.
    """
    parts = parts_of(manifest)
    whole = sum(part.num_bytes for part in parts)
    while True:
        kind, data = receive(connection, {b"C": (whole, whole), b"D": (0, 0)})
        if kind == b"D":
            return
        arrays: dict[str, NDArray[Any]] = {}
        begin = 0
        for part in parts:
            array = np.frombuffer(data, part.dtype, int(np.prod(part.shape)), begin)
            arrays[part.name] = array.reshape(part.shape)
            begin += part.num_bytes
        yield ConditionMap(labels=arrays.get("labels"), instances=arrays.get("instances"), maps=arrays.get("maps"))


def serve_client(connection: socket.socket, stream: Stream) -> None:
    """Make a client's video; whatever it does wrong is told to it in one sentence."""
    manifest = stream.manifest
    parts = parts_of(manifest)
    hello = {
        "name": manifest.name,
        "height": manifest.size[0],
        "width": manifest.size[1],
        "fps": manifest.fps,
        "frames_waited": stream.frames_waited,
        "parts": [{"name": x.name, "shape": x.shape, "dtype": x.dtype} for x in parts],
        "bytes": sum(x.num_bytes for x in parts),
    }
    stream.restart()
    try:
        send(connection, b"H", json.dumps(hello).encode())
        for item in stream.frames(received_conditions(connection, manifest)):
            _send_frame(connection, item)
        told = {"frames": stream.stats.frames, "keyframes": stream.stats.keyframes}
        send(connection, b"D", json.dumps(told).encode())
    except FastV2VError as error:
        log.warning("a client was turned away: %s", error)
        _part_with(connection, str(error))
    except TimeoutError:
        log.warning("a client was silent for %g s and given up", connection.gettimeout() or 0)
        _part_with(connection, "nothing came or was taken for too long")
    except OSError as error:
        log.warning("a client went away: %s", error)


def _send_frame(connection: socket.socket, item: DeliveredFrame) -> None:
    send(connection, b"F", _FRAME.pack(item.index, item.is_keyframe), item.frame.data.cast("B"))


def _part_with(connection: socket.socket, sentence: str) -> None:
    """Tell why the connection ends; one who does not listen any more misses it."""
    with contextlib.suppress(OSError):
        connection.settimeout(_GOODBYE_S)
        end = time.monotonic() + _GOODBYE_S
        send(connection, b"E", sentence.encode())
        # What still lies unread would make the system drop the sentence with the connection; but who goes on sending
        # is not waited for.
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16) and time.monotonic() < end:
            pass


def serve(listener: socket.socket, stream: Stream, *, timeout_s: float = 30.0, clients: int | None = None) -> None:
    """Serve one client after the other; who comes meanwhile is told to come back.

    Args:
        listener: accepts connections.
        stream: of the bundle; begun anew for each client.
        timeout_s: see ``ServeArgs``.
        clients: stop after so many, turned away ones not counted; None: never.
    """
    manifest = stream.manifest
    if manifest.condition.guidance_levels:
        log.warning("%s is guided by what was painted, and clients say not where; no frame is guided", manifest.name)
    served = 0
    busy: threading.Thread | None = None
    while clients is None or served < clients:
        connection, address = listener.accept()
        connection.settimeout(timeout_s)
        if busy is not None:
            busy.join(_GRACE_S)
        if busy is not None and busy.is_alive():
            log.info("%s came while another is served", address)
            threading.Thread(target=_turn_away, args=(connection,), daemon=True).start()
            continue
        log.info("serving %s", address)
        busy = threading.Thread(target=_serve_and_close, args=(connection, stream), daemon=True)
        busy.start()
        served += 1
    if busy is not None:
        busy.join()


def _serve_and_close(connection: socket.socket, stream: Stream) -> None:
    with connection:
        serve_client(connection, stream)


def _turn_away(connection: socket.socket) -> None:
    with connection:
        _part_with(connection, "another client is being served; come back when it is done")


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Args:
        host: IPv4 or IPv6 address, or a name; ``::`` takes both kinds where the system can.
        port: 0 takes a free one.

    Raises:
        ConfigError: if the address is not this machine's, or the port is taken or not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "another program listens there; end it, or give another --port (0 takes a free one)",
            errno.EACCES: "this user may not take that port; give one from 1024 on",
        }
        remedy = remedies.get(error.errno or 0, f"{error.strerror}; give an address of this machine as --host")
        raise ConfigError(f"cannot listen on port {port} of {host}: {remedy}") from error


class Client:
    """The other side, as an example and for tests.

    Args:
        address: host and port of the server.
        timeout_s: seconds to wait for it.

    Raises:
        DataError: if the server refuses; the message is its own.
        OSError: if there is none.
    """

    def __init__(self, address: tuple[str, int], timeout_s: float = 30.0) -> None:
        self.connection = socket.create_connection(address, timeout=timeout_s)
        self.hello: dict[str, Any] = json.loads(self._next({b"H": (2, _LARGEST_SENTENCE)})[1])
        """What the server told of the bundle."""
        self.done: dict[str, Any] | None = None
        """What it told at the end."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()

    def frames(self, conditions: Iterable[tuple[NDArray[Any], ...]]) -> Iterator[tuple[int, bool, NDArray[np.uint8]]]:
        """Every frame of a video, while another thread sends the conditions.

        Args:
            conditions: the parts of each, in the order of ``hello``.

        Yields:
            Index, whether it is a keyframe, and the frame (H, W, 3).

        Raises:
            DataError: if the server refuses; the message is its own.
        """
        sender = threading.Thread(target=self._send_all, args=(conditions,), daemon=True)
        sender.start()
        height, width = self.hello["height"], self.hello["width"]
        whole = _FRAME.size + height * width * 3
        while True:
            kind, data = self._next({b"F": (whole, whole), b"D": (2, _LARGEST_SENTENCE)})
            if kind == b"D":
                self.done = json.loads(data)
                sender.join()
                return
            index, is_keyframe = _FRAME.unpack_from(data)
            yield index, is_keyframe, np.frombuffer(data, np.uint8, offset=_FRAME.size).reshape(height, width, 3)

    def _send_all(self, conditions: Iterable[tuple[NDArray[Any], ...]]) -> None:
        types = [part["dtype"] for part in self.hello["parts"]]
        with contextlib.suppress(OSError):  # a server that refuses says why, to the thread that reads
            for arrays in conditions:
                pieces = [np.ascontiguousarray(x, dtype).tobytes() for x, dtype in zip(arrays, types, strict=True)]
                send(self.connection, b"C", *pieces)
            send(self.connection, b"D")

    def _next(self, sizes: Mapping[bytes, tuple[int, int]]) -> tuple[bytes, bytearray]:
        kind, data = receive(self.connection, {**sizes, b"E": (0, _LARGEST_SENTENCE)})
        if kind == b"E":
            raise DataError(data.decode())
        return kind, data


def main(argv: list[str]) -> int:
    """``python scripts/serve.py --bundle NAME.v2v``."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    args = parse(ServeArgs, "serve.py", argv)
    try:
        with (
            open_bundle(
                args.bundle,
                engine=args.engine,
                device=args.device,
                threads=args.threads,
                causal=args.causal,
                host_code=args.host_code,
            ) as stream,
            listen(args.host, args.port) as listener,
        ):
            host, port = listener.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            print(f"{args.bundle.name} in {stream.engine_name} on {where}:{port}", flush=True)
            serve(listener, stream, timeout_s=args.timeout_s, clients=args.clients)
    except KeyboardInterrupt:
        return 0
    except (FastV2VError, OSError) as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
