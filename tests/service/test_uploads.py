"""Whatever is sent, the answer is a useful problem, and the next request works."""

import asyncio
import io
import itertools
import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.service.conftest import Gate, image_bytes

CATEGORIES = {"categories": "cat"}
JSON = {"accept": "application/json"}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A few kilobytes that would decode to width x height pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width // 8 + 1) * 8), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def in_ico(png: bytes) -> bytes:
    """An icon that says it is 16 x 16 px."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def in_icns(png: bytes) -> bytes:
    """An icon that says it is 128 x 128 px."""
    block = b"ic07" + struct.pack(">I", len(png) + 8) + png
    return b"icns" + struct.pack(">I", len(block) + 8) + block


def scan_bomb() -> bytes:
    """A JPEG that would be gone over ten thousand times, in a megabyte."""
    file = io.BytesIO()
    Image.new("RGB", (5_000, 5_000)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xc4") : -2] * 10_000 + whole[-2:]


def text_bomb() -> bytes:
    """A small PNG with a text chunk that would inflate to 256 MiB."""
    deflate = zlib.compressobj(9)
    packed = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(256)) + deflate.flush()
    whole = image_bytes()
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + packed) + whole[33:]


def tiff_without_end() -> bytes:
    """A TIFF whose directory points to itself."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    return bytes(data)


def assert_still_works(client) -> None:
    files = {"file": ("a.png", image_bytes(), "image/png")}
    reply = client.post("/detection", files=files, data=CATEGORIES)
    assert reply.status_code == 200, reply.text


def assert_useful(reply: httpx.Response, *statuses: int) -> None:
    assert reply.status_code in statuses, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == reply.status_code
    assert len(problem["detail"]) > 20
    for internal in ("Traceback", "site-packages", "/tmp", ".py", "object at 0x", "<class"):
        assert internal not in problem["detail"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", 422, id="empty"),
        pytest.param(b"hello", 422, id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, id="eps"),
        pytest.param(b"GIF89a", 422, id="a header alone"),
        pytest.param(b"\xff\xd8\xff" + bytes(99), 422, id="a damaged header"),
        pytest.param(image_bytes()[:-200], 422, id="truncated"),
        pytest.param(png_bomb(60_000, 60_000), 413, id="a bomb that Pillow refuses"),
        pytest.param(png_bomb(9_000, 9_000), 413, id="a bomb beyond our limit"),
        pytest.param(text_bomb(), 422, id="a bomb of text"),
        pytest.param(in_ico(png_bomb(9_000, 9_000)), 422, id="a bomb in an icon"),
        pytest.param(in_icns(png_bomb(9_000, 9_000)), 422, id="a bomb in an icon of a Mac"),
        pytest.param(scan_bomb(), 422, id="a bomb of scans"),
        pytest.param(bytes(21 << 20), 413, id="a file that is too large"),
    ],
)
def test_a_file_that_is_no_good_image_is_a_problem_and_the_next_request_works(client, data, status):
    files = {"file": ("photo.jpg", data, "image/jpeg")}
    assert_useful(client.post("/detection", files=files, data=CATEGORIES), status)
    assert_still_works(client)


@pytest.mark.parametrize("wrap", [in_ico, in_icns])
def test_nothing_is_decoded_that_does_not_say_beforehand_how_large_it_is(serve, monkeypatch, wrap):
    client = serve()
    decoded = []
    load = PngImagePlugin.PngImageFile.load_prepare
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile,
        "load_prepare",
        lambda self: decoded.append(self.size) or load(self),
    )
    for image in (image_bytes(), wrap(image_bytes())):
        client.post("/detection", files={"file": image}, data=CATEGORIES, headers=JSON)
    assert decoded == [(120, 90)]


def test_a_file_that_points_to_itself_is_answered(client):
    files = {"file": ("photo.tif", tiff_without_end(), "image/tiff")}
    reply = client.post("/detection", files=files, data=CATEGORIES)
    assert reply.status_code in (200, 422)
    assert_still_works(client)


def test_the_type_is_read_from_the_content_whatever_name_and_header_say(client):
    files = {"file": ("../../etc/passwd\r\n.exe", image_bytes(kind="WEBP"), "text/html")}
    reply = client.post("/detection", files=files, data=CATEGORIES)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_are_an_answer_or_a_problem(client, kind):
    whole = image_bytes(64, 64, kind)
    rng = np.random.default_rng(5)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] ^= 1 << rng.integers(0, 8)
        reply = client.post("/detection", files={"file": bytes(data)}, data=CATEGORIES)
        if reply.status_code != 200:
            assert_useful(reply, 413, 422)
    assert_still_works(client)


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + value + b"\r\n"


GOOD = part("file", image_bytes(), "a.png") + part("categories", b"cat")


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        pytest.param(GOOD + part("file", b"x", "b.png") * 16 + b"--line--", (400,), id="files"),
        pytest.param(GOOD + part("x", b"x") * 99 + b"--line--", (400,), id="fields"),
        pytest.param(GOOD + part("model", bytes(1 << 20)) + b"--line--", (400,), id="a huge field"),
        pytest.param(GOOD + part("x" * 99_999, b"x") + b"--line--", (400,), id="a huge name"),
        pytest.param(GOOD[:-40], (400, 422), id="cut in the middle"),
        pytest.param(b"--line\r\n\r\n\r\n--line--", (400,), id="a part without a name"),
        pytest.param(b"\0" * 999, (400, 422), id="no parts"),
        pytest.param(b"", (400, 422), id="nothing"),
        pytest.param(
            part("file", image_bytes()) + part("categories", b"cat") + b"--line--",
            (422,),
            id="a file sent as text",
        ),
        pytest.param(
            part("file", image_bytes(), "a.png")
            + part("categories", b"cat", "c.txt")
            + b"--line--",
            (422,),
            id="text sent as a file",
        ),
        pytest.param(
            part("file", image_bytes(), "a.png") + part("categories", b"\xff\xfe\0") + b"--line--",
            (200, 422),
            id="text that is no UTF-8",
        ),
    ],
)
def test_a_request_in_bad_form_is_a_problem_and_the_next_request_works(client, body, statuses):
    headers = {"content-type": "multipart/form-data; boundary=line"}
    reply = client.post("/detection", content=body, headers=headers)
    assert reply.status_code in statuses, reply.text
    if reply.status_code != 200:
        assert_useful(reply, *statuses)
    assert_still_works(client)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "multipart/form-data", "text/plain", "", "multipart/form-data; boundary="],
)
def test_a_body_of_another_type_is_a_problem(client, content_type):
    reply = client.post("/detection", content=GOOD, headers={"content-type": content_type})
    assert_useful(reply, 400, 422)


def test_a_request_that_is_too_large_is_refused_before_it_is_read(serve):
    client = serve(max_file_bytes=1000, max_request_bytes=2000)

    def never() -> Iterator[bytes]:
        yield b"--line"
        raise AssertionError("the body was read")

    headers = {"content-type": "multipart/form-data; boundary=line", "content-length": "3000"}
    reply = asyncio.run(_post(client.app, headers, never()))
    assert_useful(reply, 413)


def test_a_request_that_never_says_how_large_it_is_is_cut_off(serve):
    client = serve(max_file_bytes=1000, max_request_bytes=20_000)
    sent = []

    def endless() -> Iterator[bytes]:
        yield part("file", b"", "a.png")[:-2]
        while len(sent) < 1000:
            sent.append(1)
            yield bytes(1000)

    headers = {"content-type": "multipart/form-data; boundary=line"}
    reply = asyncio.run(_post(client.app, headers, endless()))
    assert_useful(reply, 413)
    assert len(sent) < 30


def test_a_request_that_does_not_arrive_in_time_is_given_up(serve):
    client = serve(timeout_s=0.2)
    headers = {"content-type": "multipart/form-data; boundary=line"}
    reply = asyncio.run(_post(client.app, headers, iter([b"--line"]), stalls=True))
    assert_useful(reply, 408)


def held(client) -> Gate:
    """A gate before the model of a service."""
    (model,) = client.app.state.service.models.values()
    return Gate(model)


def test_a_full_queue_is_a_503_with_the_time_to_come_again(serve):
    client = serve(queue_images=2, max_files=2)
    gate = held(client)

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as many:
            files = {"file": image_bytes()}
            asked = [
                asyncio.create_task(many.post("/detection", files=files, data=CATEGORIES))
                for _ in range(8)
            ]
            first_back = [await one for one in itertools.islice(asyncio.as_completed(asked), 6)]
            gate.open()
            assert [one.status_code for one in await asyncio.gather(*asked)].count(200) == 2
            return first_back

    for reply in client.portal.call(crowd):
        assert_useful(reply, 503)
        assert int(reply.headers["retry-after"]) >= 1
    assert_still_works(client)
    assert client.get("/health").json()["queue"] == {"depth": 0, "limit": 2}


def test_what_is_not_answered_in_time_is_a_503_with_the_time_to_come_again(serve):
    client = serve(timeout_s=1.0)
    gate = held(client)
    reply = client.post("/detection", files={"file": image_bytes()}, data=CATEGORIES)
    assert_useful(reply, 503)
    assert "no answer within 1 s" in reply.json()["detail"]
    assert int(reply.headers["retry-after"]) >= 1
    gate.open()
    assert_still_works(client)


def test_who_hangs_up_is_not_worked_for(serve, tmp_path):
    log = tmp_path / "asked.jsonl"
    client = serve(script_keys={"log": str(log)})
    gate = held(client)
    body = part("file", image_bytes(), "a.png") + part("categories", b"gone") + b"--line--"
    headers = {"content-type": "multipart/form-data; boundary=line"}

    async def hang_up() -> None:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as other:
            busy = asyncio.create_task(
                other.post("/detection", files={"file": image_bytes()}, data=CATEGORIES)
            )
            await gate.closes()
            assert await _send(client.app, headers, iter([body]), gone_after_s=0.1) == []
            gate.open()
            assert (await busy).status_code == 200

    client.portal.call(hang_up)
    assert_still_works(client)
    assert [json.loads(line)["labels"] for line in log.read_text().splitlines()] == [["cat"]] * 2
    assert client.get("/health").json()["queue"]["depth"] == 0


async def _post(app, headers, chunks, stalls: bool = False) -> httpx.Response:
    """What an application answers to a body that it takes chunk by chunk."""
    start, *parts = await _send(app, headers, chunks, stalls=stalls)
    return httpx.Response(
        start["status"], headers=start["headers"], content=b"".join(p["body"] for p in parts)
    )


async def _send(
    app, headers, chunks, *, stalls: bool = False, gone_after_s: float = 60.0
) -> list[dict]:
    messages: list[dict] = []
    all_sent = False

    async def receive() -> dict:
        nonlocal all_sent
        if not all_sent:
            chunk = next(chunks, None)
            if chunk is not None:
                return {"type": "http.request", "body": chunk, "more_body": True}
            all_sent = True
            if not stalls:
                return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(gone_after_s)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        messages.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/detection",
        "raw_path": b"/detection",
        "query_string": b"",
        "root_path": "",
        "headers": [*raw, (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return messages
