"""A page that segments photographs: an HTTP server of one page and one question.

GET / is the page. POST /segment takes the bytes of an image file and answers with JSON. Nothing of
a request names a file or is written to one. A browser of this machine also carries the requests of
other pages: those are told by their Host (a name that was made to lead here) and their Origin.
"""

import base64
import errno
import io
import ipaddress
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.inference.photos import read_bytes
from snr_jax.inference.segmenter import Result, Segmenter
from snr_jax.process.signals import Stop, never, unless_asked

logger = logging.getLogger(__name__)

PAGE, SEGMENT = "/", "/segment"
WAITING = 8  # photographs that may wait for the one that is being segmented
SHOWN_PIXELS = 12_000_000  # of a larger photograph the page gets every second pixel, or third
_PATIENCE_SECONDS = 30.0  # for what a client is slow to send
_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy":
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that gets no result: the status, and the line that says why."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


def _closed() -> Refused:
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the page has been closed")


class PageServer(ThreadingHTTPServer):
    """Serves the page of some networks, by name, until the process ends or `stop` says so.

    listening: of `listen`. max_bytes: of a photograph's file. One photograph is segmented at a
    time, by every network.
    """

    daemon_threads = True  # at the end of the process a connection is not waited for

    def __init__(
        self, listening: socket.socket, host: str, segmenters: Mapping[str, Segmenter],
        *, max_bytes: int, stop: Stop = never,
    ) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.segmenters, self.max_bytes, self.stop = segmenters, max_bytes, stop
        self.names = {host.lower(), "localhost"}
        if not is_loopback(listening):
            self.names.add(socket.gethostname().lower())
        self.page = _render(segmenters, max_bytes)
        # A thread of its own, which is waited for at the end: Python may not end within XLA.
        self._worker = ThreadPoolExecutor(1)
        self.seats = threading.BoundedSemaphore(1 + WAITING)

    def service_actions(self) -> None:
        """Ends `serve_forever` by Stopped once a signal has asked for it."""
        if self.stop():
            self._worker.shutdown(cancel_futures=True)  # after the photograph under way
            for _ in range(1 + WAITING):  # all answers are sent
                self.seats.acquire()
            unless_asked(self.stop, "the page is closed")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells of a fault of the program; that a browser has gone is none."""
        if not isinstance(sys.exception(), OSError):
            logger.error("a request was not answered\n%s", traceback.format_exc())

    def segment(self, content: bytes) -> dict[str, Any]:
        """The answer to the bytes of an image file: the photograph and a result of each network.

        Its pictures are at the same size, that of the photograph up to SHOWN_PIXELS; they and the
        labels are addresses of data. Raises UserError for what is no image, Refused after `stop`.
        """
        try:
            future = self._worker.submit(self._segment, content)
        except RuntimeError:  # it takes nothing more
            raise _closed() from None
        try:
            return future.result()
        except CancelledError:
            raise _closed() from None

    def _segment(self, content: bytes) -> dict[str, Any]:
        start = time.perf_counter()
        photo = read_bytes(content)
        results = [_timed(segmenter, photo) for segmenter in self.segmenters.values()]
        seconds = time.perf_counter() - start
        logger.info("a photograph of %dx%d: %.2f s", photo.width, photo.height, seconds)
        step = int(np.ceil(np.sqrt(photo.width * photo.height / SHOWN_PIXELS)))
        seen = np.asarray(photo)[::step, ::step]
        return {
            "width": photo.width, "height": photo.height,
            "photo": _data_uri(seen, "jpeg", quality=90),
            "results": [_answer(result, taken, step) for result, taken in results],
        }  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A socket at which browsers may knock from now on. port 0: any free one.

    Raises UserError where that is taken or no place of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror}); expected "
                        "127.0.0.1, or the address of one of its networks") from None
    except OSError as error:
        why = os.strerror(error.errno).lower()
        remedy = ("another --host; 127.0.0.1 is this machine alone"
                  if error.errno == errno.EADDRNOTAVAIL else
                  "another --port, or 0 for any that is free")
        raise UserError(
            f"--host {host} --port {port} cannot be opened: {why}. Choose {remedy}") from None


def is_loopback(listening: socket.socket) -> bool:
    """Whether this machine alone reaches the socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def address(listening: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _timed(segmenter: Segmenter, photo: Image.Image) -> tuple[Result, float]:
    start = time.perf_counter()
    return segmenter(photo), time.perf_counter() - start


def _render(segmenters: Mapping[str, Segmenter], max_bytes: int) -> bytes:
    """The page, which knows the networks and their classes."""
    networks = [
        {"name": name, "view": str(segmenter.view),
         "classes": [{"name": c.name, "color": c.color} for c in segmenter.classes]}
        for name, segmenter in segmenters.items()
    ]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    served = {"networks": networks, "maxBytes": max_bytes, "segment": SEGMENT}
    return environment.get_template("page.html.j2").render(served=served).encode()


def _answer(result: Result, seconds: float, step: int) -> dict[str, Any]:
    """What the page learns of a result: trainIds, probabilities (0-255) and shares by class."""
    labels, confidence = (array[::step, ::step] for array in (result.labels, result.confidence))
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes))
    return {
        "labels": _data_uri(labels, "png", compress_level=1),
        "confidence": _data_uri(np.rint(confidence * 255).astype(np.uint8), "png",
                                compress_level=1),
        "shares": (counts / result.labels.size).tolist(), "seconds": seconds,
    }  # fmt: skip


def _data_uri(array: np.ndarray, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"  # which asks for a large body only after its headers
    timeout = _PATIENCE_SECONDS

    def do_GET(self) -> None:
        try:
            self._check_place(PAGE)
        except Refused as refused:
            return self.send_error(refused.status, str(refused))
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        try:
            self._check_place(SEGMENT)
            self._check_origin()
            length = self._length()
            if not self.server.seats.acquire(blocking=False):
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE,
                              f"{WAITING} photographs are waiting already; try again later")
        except Refused as refused:
            return self._refuse_unread(refused)
        try:
            answer = self._segmented(self.rfile.read(length), length)
            self._send(HTTPStatus.OK, "application/json", json.dumps(answer).encode())
        except Refused as refused:
            self.send_error(refused.status, str(refused))
        finally:
            self.server.seats.release()

    def _segmented(self, content: bytes, length: int) -> dict[str, Any]:
        if len(content) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, "the photograph arrived in part; send it again")
        try:
            return self.server.segment(content)
        except Refused:
            raise
        except UserError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        except Exception as error:  # a fault of the program: the server goes on
            logger.error("a photograph could not be segmented\n%s", traceback.format_exc())
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR,
                          f"it could not be segmented ({type(error).__name__}); the terminal of "
                          "the server says more") from None

    def _check_place(self, expected: str) -> None:
        """Refuses a request to another name than this machine's, and for another thing."""
        hosts = self.headers.get_all("Host", [])
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?", ", ".join(hosts))
        name = found[1].strip("[]").lower() if found else ""
        if name not in self.server.names and not _is_address(name):
            raise Refused(HTTPStatus.FORBIDDEN,
                          "this page is reached by its address or as localhost alone")
        if self.path != expected:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is {PAGE} to GET and {SEGMENT} to POST")

    def _check_origin(self) -> None:
        """Refuses what another page sends; what is no browser names no page."""
        own = {f"{scheme}://{self.headers['Host']}" for scheme in ("http", "https")}
        if not set(self.headers.get_all("Origin", [])) <= own:
            raise Refused(HTTPStatus.FORBIDDEN, "another page may not send photographs here")

    def _length(self) -> int:
        text = ", ".join(self.headers.get_all("Content-Length", []))
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing, or no number")
        if int(text) > self.server.max_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                          f"the photograph's file has {int(text) / 1e6:.1f} MB; up to "
                          f"{self.server.max_bytes / 1e6:g} are taken (--max_megabytes)")
        return int(text)

    def _refuse_unread(self, refused: Refused) -> None:
        """Answers, and then takes some of what is still being sent.

        A connection that is closed while its client writes is reset, and the answer lost.
        """
        self.send_error(refused.status, str(refused))
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        left = 4 * self.server.max_bytes
        while left > 0 and (part := self.connection.recv(1 << 16)):
            left -= len(part)

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Answers with JSON, also where the request is none of HTTP's."""
        line = message or HTTPStatus(code).phrase
        self._send(code, "application/json", json.dumps({"error": line}).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "snr_jax"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of single requests."""


def _is_address(name: str) -> bool:
    """Whether it is of numbers: nobody can make those lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
