"""The page: what it answers equals the segmenter's, and what it does not answer."""

import base64
import functools
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import Stopped, UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.inference import server
from snr_jax.inference.segmenter import load
from snr_jax.workdir import checkpoints

MAX_BYTES = 40_000


def untrained(path, seed):
    """A network with kernels so large that its classes and confidences vary."""
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 15 * x if path[-1].key == "kernel" else x, initial_variables(model, seed)
    )
    meta = {"model": architecture(model), "source": {"step": 0, "input_size": (33, 65)}}
    checkpoints.save_variables(path, variables, meta)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("untrained")
    return [untrained(folder / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def segmenters(folders):
    return {f"</script>{folder.name}": load(folder) for folder in folders}


@pytest.fixture(scope="module")
def page(segmenters):
    """A server of both networks that runs in a thread."""
    with server.listen("127.0.0.1", 0) as listening:
        running = server.PageServer(listening, "127.0.0.1", segmenters, max_bytes=MAX_BYTES)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask_at(page, method, path, body=None, **headers):
    """The status, headers and body of an answer, the body parsed if it is JSON."""
    connection = http.client.HTTPConnection(*page.socket.getsockname()[:2], timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        length = {} if body is None else {"Content-Length": len(body)}
        for name, value in (length | headers).items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        if response.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return response.status, response.headers, content
    finally:
        connection.close()


@pytest.fixture
def ask(page):
    """ask("POST", "/segment", body, Host=...) → as `ask_at`."""
    return functools.partial(ask_at, page)


def photo(height=40, width=72, kind="png", **options):
    """The bytes of a photograph, and what it shows."""
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue(), values


def decoded(address):
    head, content = address.split(",")
    kind = re.fullmatch("data:image/(png|jpeg);base64", head)[1]
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.format == kind.upper()
    return np.asarray(image)


def test_the_page_needs_nothing_else_and_knows_the_networks(ask, segmenters):
    status, headers, content = ask("GET", "/")
    text = content.decode()
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"(https?:)?//\w", text) and text.count("</script>") == 1
    served = json.loads(re.search("const served = (.*);", text)[1])
    assert [network["name"] for network in served["networks"]] == list(segmenters)
    assert served["networks"][0]["classes"][13] == {"name": "car", "color": [0, 0, 142]}
    assert served["maxBytes"] == MAX_BYTES


def test_the_answer_is_that_of_the_segmenters(ask, segmenters):
    """Of a photograph that its EXIF turns, as both see it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    content, values = photo(exif=exif)
    status, _, answer = ask("POST", "/segment", content)
    assert status == 200 and (answer["width"], answer["height"]) == (40, 72)
    assert decoded(answer["photo"]).shape == (72, 40, 3)
    all_labels = []
    for given, segmenter in zip(answer["results"], segmenters.values(), strict=True):
        result = segmenter(np.rot90(values, -1))
        assert (decoded(given["labels"]) == result.labels).all()
        assert (decoded(given["confidence"]) == np.rint(255 * result.confidence)).all()
        shares = [(result.labels == i).mean() for i in range(len(result.classes))]
        np.testing.assert_allclose(given["shares"], shares)
        assert 0 < given["seconds"] < 60
        all_labels.append(result.labels)
    assert (all_labels[0] != all_labels[1]).any()


def test_of_a_large_photograph_every_third_pixel_is_shown(ask, segmenters, monkeypatch):
    monkeypatch.setattr(server, "SHOWN_PIXELS", 400)
    content, values = photo(50, 70)
    _, _, answer = ask("POST", "/segment", content)
    result = next(iter(segmenters.values()))(values)
    given = answer["results"][0]
    assert (answer["width"], answer["height"]) == (70, 50)
    assert (decoded(given["labels"]) == result.labels[::3, ::3]).all()
    assert decoded(given["confidence"]).shape == decoded(answer["photo"]).shape[:2] == (17, 24)
    assert given["shares"][0] == (result.labels == 0).mean()


@pytest.mark.parametrize("content, words", [
    (b"", "is damaged, or no file of BMP, JPEG"), (b"no image", "is damaged, or no file of"),
    (photo()[0][:3000], "truncated"), (photo(kind="gif")[0], "or no file of"),
    (photo(kind="eps")[0], "or no file of"),  # for which Pillow would start a program
])  # fmt: skip
def test_what_is_no_photograph(content, words, ask):
    status, _, answer = ask("POST", "/segment", content)
    assert status == 422 and words in answer["error"] and "\n" not in answer["error"]
    assert answer["error"].startswith("cannot be read as an image: ")


def test_a_photograph_of_too_many_pixels(ask, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    status, _, answer = ask("POST", "/segment", photo()[0])
    assert status == 422 and "exceeds limit of 2000 pixels; scale it down first" in answer["error"]


def test_a_fault_of_the_program_is_told_and_the_server_goes_on(ask, page, monkeypatch, caplog):
    def broken(photo):
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(page, "segmenters", {"broken": broken})
        status, _, answer = ask("POST", "/segment", photo()[0])
    assert status == 500 and "(RuntimeError)" in answer["error"] and "secret" not in answer["error"]
    assert "RuntimeError: secret" in caplog.text
    assert ask("POST", "/segment", photo()[0])[0] == 200


@pytest.mark.parametrize("path", [
    "/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/page.html.j2", "/server.py",
    "/?", "/segment", "/index.html", "/segment/../", "http://localhost/",
])  # fmt: skip
def test_there_is_nothing_else(path, ask):
    status, _, answer = ask("GET", path)
    assert (status, answer) == (404, {"error": "there is / to GET and /segment to POST"})
    if path != "/segment":
        assert ask("POST", path, photo()[0])[0] == 404
    assert ask("POST", "/", photo()[0])[0] == 404


def test_two_names_are_none(page):
    with socket.create_connection(page.socket.getsockname(), timeout=60) as sender:
        sender.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert sender.makefile("rb").readline().split()[1] == b"403"


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LOCALHOST:9000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200),
    ("192.168.0.7:8000", 200), ("evil.example", 403), ("evil.example:8000", 403), ("", 403),
    ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost@evil", 403),
    ("evil\t127.0.0.1", 403), (socket.gethostname() + ".", 403),
])  # fmt: skip
def test_another_name_that_leads_here_is_refused(host, status, ask):
    assert ask("GET", "/", Host=host)[0] == status
    got, _, answer = ask("POST", "/segment", photo()[0], Host=host)
    assert got == status and ("by its address" in answer.get("error", "")) == (status == 403)


@pytest.mark.parametrize("origin, status", [
    ("http://localhost:7", 200), ("http://localhost", 403), ("http://localhost:8", 403),
    ("http://evil.example", 403), ("null", 403), ("", 403), ("file://", 403),
])  # fmt: skip
def test_what_another_page_sends_is_refused(origin, status, ask):
    got, _, answer = ask("POST", "/segment", photo()[0], Host="localhost:7", Origin=origin)
    assert got == status and ("another page" in answer.get("error", "")) == (status == 403)


def test_sizes(ask):
    status, _, answer = ask("POST", "/segment", bytes(MAX_BYTES * 3))
    assert status == 413 and "has 0.1 MB; up to 0.04 are taken" in answer["error"]
    assert ask("POST", "/segment", bytes(MAX_BYTES))[0] == 422
    # What is announced counts, and nothing is waited for.
    assert ask("POST", "/segment", Content_Length=10**15)[0] == 413
    for length in ("-1", "1e3", "+5", "9" * 5000, "5, 5"):
        assert ask("POST", "/segment", Content_Length=length)[0] == 411
    assert ask("POST", "/segment", Transfer_Encoding="chunked")[0] == 411
    status, headers, answer = ask("PUT", "/segment", photo()[0])
    assert status == 501 and "error" in answer and headers["Server"] == "snr_jax"


def test_a_photograph_that_arrives_in_part_gets_no_result(page):
    head = b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(page.socket.getsockname(), timeout=60) as sender:
        sender.sendall(head + b"1234")
        sender.shutdown(socket.SHUT_WR)
        assert b"arrived in part" in sender.makefile("rb").read()


def test_one_at_a_time_and_a_few_wait(ask, page, segmenters, monkeypatch):
    """What comes besides is told so; all that wait get their answer."""
    inside, most, entered, go_on = [], [], threading.Semaphore(0), threading.Event()
    segmenter = next(iter(segmenters.values()))

    def slow(photo):
        inside.append(photo)
        most.append(len(inside))
        entered.release()
        assert go_on.wait(60)
        inside.pop()
        return segmenter(photo)

    monkeypatch.setattr(page, "segmenters", {"slow": slow})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask("POST", "/segment", photo()[0])))
               for _ in range(1 + server.WAITING)]
    for thread in threads:
        thread.start()
    assert entered.acquire(timeout=60)
    until(lambda: page.seats._value == 0)
    status, _, answer = ask("POST", "/segment", photo()[0])
    assert status == 503 and "8 photographs are waiting already" in answer["error"]
    assert ask("GET", "/")[0] == 200
    go_on.set()
    for thread in threads:
        thread.join()
    assert [status for status, *_ in answers] == [200] * len(threads) and set(most) == {1}
    assert ask("POST", "/segment", photo()[0])[0] == 200


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signal_ends_it_after_the_photograph_under_way(segmenters):
    asked, answers, entered, go_on = [], {}, threading.Event(), threading.Event()
    segmenter = next(iter(segmenters.values()))

    class Slow:
        view, classes = segmenter.view, segmenter.classes

        def __call__(self, photo):
            entered.set()
            assert go_on.wait(60)
            return segmenter(photo)

    with server.listen("::1" if socket.has_ipv6 else "127.0.0.1", 0) as listening:
        running = server.PageServer(listening, "localhost", {"slow": Slow()}, max_bytes=MAX_BYTES,
                                    stop=lambda: asked[0] if asked else None)

        def post(name):
            answers[name] = ask_at(running, "POST", "/segment", photo()[0])

        with ThreadPoolExecutor(3) as pool:
            served = pool.submit(running.serve_forever, 0.02)
            first = pool.submit(post, "first")
            assert entered.wait(60)
            second = pool.submit(post, "second")
            until(lambda: running.seats._value == server.WAITING - 1)
            asked.append(signal.SIGTERM)
            second.result(60)
            assert answers["second"][0] == 503
            assert answers["second"][2] == {"error": "the page has been closed"}
            assert not served.done()
            go_on.set()
            first.result(60)
            assert answers["first"][0] == 200
            with pytest.raises(Stopped, match="SIGTERM: the page is closed"):
                served.result(60)
        with pytest.raises(server.Refused, match="closed"):
            running.segment(photo()[0])


def test_where_it_listens():
    with server.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert server.is_loopback(listening)
        assert server.address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"--port {port} cannot be opened: address already in "
                                            "use. Choose another --port, or 0"):
            server.listen("127.0.0.1", port)
    with server.listen("0.0.0.0", 0) as listening:
        assert not server.is_loopback(listening)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("arguments, words", [
    ((), "--checkpoint is missing"), (("--checkpoint=nowhere",), "nowhere"),
    (("--checkpoint=a", "b", "c"), "expected [CHECKPOINT], got b c"),
    (("--checkpoint=a", "a"), "a is given twice"), (("--checkpoint=a", "--host="), "--host is mis"),
    (("--checkpoint=a", "--port=70000"), "--port=70000: 70000 is not an integer in"),
    (("--checkpoint=a", "--port=-1"), "in the range [0, 65535]"),
    (("--checkpoint=a", "--host=300.1.1.1"), "--host 300.1.1.1 is no address"),
    (("--checkpoint=a", "--host=192.0.2.1"), "--host 192.0.2.1 --port 0 cannot be opened"),
    (("--checkpoint=a", "--max_megabytes=0"), "--max_megabytes is 0; expected more than 0"),
    (("--checkpoint=a", "--max_megabytes=nan"), "--max_megabytes is nan"),
])  # fmt: skip
def test_mistakes(arguments, words, refused, cache):
    port = () if any("--port" in word for word in arguments) else ("--port=0",)
    assert words in refused("serve", *arguments, *port, "--compilation_cache", cache)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command(host, process, folders, cache):
    running = process("serve", "--checkpoint", *folders, "--port=0", "--host", host,
                      "--compilation_cache", cache)
    lines = [running.stdout.readline() for _ in range(3 + (host == "0.0.0.0"))]
    if host == "0.0.0.0":
        assert re.match(r"WARNING: --host 0.0.0.0: whoever reaches port \d+ of this ", lines.pop(0))
    assert lines[0] == f"{folders[0]}: 19 classes, sees photographs at 33x65 as in its training\n"
    port = re.fullmatch(rf"ready: http://{re.escape(host)}:(\d+) \(Ctrl-C ends it\)\n", lines[2])[1]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("POST", "/segment", photo()[0])
    assert len(json.loads(connection.getresponse().read())["results"]) == 2
    connection.close()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert re.fullmatch(r"a photograph of 72x40: \d+\.\d\d s\n", out)
    assert (running.returncode, err) == (130, "SIGINT: the page is closed\n")


def test_no_data_set_is_read_for_it():
    """Nor what trains: the page starts in seconds."""
    program = "import sys, snr_jax.serve; print({'tensorflow', 'clu', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True).stdout == "set()\n"
