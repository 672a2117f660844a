"""What is sent: how much of it is taken, and images out of files whose names and types say nothing.

Limits come before the work that they limit: bytes are counted while they arrive, and the size of an
image is read from its header before anything is decoded.
"""

import asyncio
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from fastapi import UploadFile
from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeling_pipeline.errors import RequestError
from labeling_pipeline.images.reading import read_image, readable_formats
from labeling_pipeline.service.config import ServiceConfig
from labeling_pipeline.service.problems import error_response

MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 << 10
"""A field that is no file holds names and numbers; this is far more than any needs."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF"),
    *("BMP", "TIFF", "JPEG2000", "PPM", "PSD", "QOI"),
)
"""What is decoded: formats in use, and none that wraps an image of another, as icons do: that one
would say how large it is only when it is decoded."""


class BodyLimit:
    """Refuses a body that is too large, as soon as that is known, or that takes too long."""

    def __init__(self, app: ASGIApp, config: ServiceConfig) -> None:
        self._app = app
        self._max_bytes = config.max_request_bytes
        self._timeout_s = config.timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = (
            f"expected a request of at most {self._max_bytes} bytes: send fewer or smaller files"
        )
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await error_response(RequestError(413, too_large))(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        seen = 0
        complete = False

        async def receive_limited() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                # The framework lets no other exception pass from within its parser.
                raise HTTPException(
                    408, f"expected the whole request within {self._timeout_s:g} s: send it again"
                ) from None
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, too_large)
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_limited, send)


@dataclass(frozen=True)
class Upload:
    """A file that may be decoded. pixels: how many its header says, 0 if it says nothing."""

    file: BinaryIO
    pixels: int

    def read(self) -> np.ndarray:
        """Decode it; blocks.

        Returns:
            (height, width, 3) uint8 RGB, EXIF-upright.

        Raises:
            ImageError: it is no image that can be read.
        """
        self.file.seek(0)
        return read_image(self.file.read(), FORMATS)


def accept(file: UploadFile, config: ServiceConfig) -> Upload:
    """Look at a file's size and header; blocks.

    Raises:
        RequestError: it is too large, or shows too many pixels; status 413.
    """
    if (file.size or 0) > config.max_file_bytes:
        raise RequestError(
            413,
            f"expected a file of at most {config.max_file_bytes} bytes, got {file.size}: save it "
            "smaller",
        )
    width, height = _size_px(file.file)
    if width * height > config.max_pixels:
        raise RequestError(
            413,
            f"expected an image of at most {config.max_pixels} pixels, got {width} x {height}: "
            "scale it down",
        )
    return Upload(file.file, width * height)


def _size_px(file: BinaryIO) -> tuple[int, int]:
    """(width, height) that the header says; nothing where there is none to read, for then there
    is nothing to decode either."""
    try:
        with Image.open(file, formats=readable_formats(FORMATS)) as image:
            return image.size
    except Image.DecompressionBombError:
        raise RequestError(
            413, f"expected at most {Image.MAX_IMAGE_PIXELS} pixels, got twice as many or more"
        ) from None
    except Exception:  # damaged files make Pillow raise nearly anything
        return 0, 0
