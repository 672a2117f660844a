"""Where images lie: which files there are, and the bytes of one.

A source is a folder of this machine or a URL of anything that fsspec speaks: an object store, an
archive. It is small and can be pickled; threads and worker processes may read through one at the
same time, and a process connects when it first reads.

A scan opens no file. A class is a top sub-folder; deeper folders belong to it. Class names are NFC,
because macOS stores "é" as two characters where Linux stores one. Paths stay as the storage spells
them, as they are needed to open the files.

Reasons why a file does not count: ``hidden_file`` (a name or folder that starts with a dot),
``system_file`` (what operating systems leave behind), ``not_an_image`` (by its extension),
``broken_link``, ``link_outside`` (the root), ``link_to_folder`` (following those could go round in
circles), ``not_a_file`` (pipes and the like), ``unreadable_folder``, ``undecodable_name`` (bytes
that are not UTF-8), ``unsafe_name`` (a part that is empty, ``.`` or ``..``).

Reasons why the bytes of one cannot be had: those of `labeling_pipeline.images.opening`.
"""

import calendar
import errno
import functools
import json
import os
import posixpath
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from labeling_pipeline.errors import (
    ConfigurationError,
    ImageError,
    MissingDependencyError,
    SourceError,
)
from labeling_pipeline.images.hashing import content_hash
from labeling_pipeline.images.opening import VANISHED, Stamp, check_stamp, read_file
from labeling_pipeline.images.reading import EXTENSIONS

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
)


class SourceSettings(BaseModel):
    """Where the images lie and how files come to their classes: section ``source`` of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = Field(
        None, description="a folder or a URL: s3://bucket/photos, zip:///data/photos.zip"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="what fsspec takes for the URL, such as endpoint_url; secrets come from the "
        "environment",
    )
    layout: Literal["folders", "flat"] = Field(
        "folders",
        description="folders: the class is the top sub-folder; flat: every class of the plan "
        "applies to every file",
    )
    manifest: str | None = Field(
        None,
        description="a CSV or JSONL file with path and class of each image, instead of a layout; "
        "relative to the images",
    )

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in _option_names(options):
            if re.search(r"secret|password|passwd|credential|token|connection_string", name) or (
                re.search(r"(^|_)key$", name)
            ):
                raise ValueError(
                    f"expected no secret, got {name!r}: leave it to the environment, as "
                    "AWS_SECRET_ACCESS_KEY or FSSPEC_<PROTOCOL>_<OPTION>"
                )
        return options

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and _names_password(url):
            raise ValueError(_PASSWORD)
        return url

    @model_validator(mode="after")
    def _check_layout(self) -> "SourceSettings":
        if self.manifest is not None and self.layout == "flat":
            raise ValueError("expected a manifest or the layout flat, got both: drop one")
        return self


def _option_names(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield str(name).lower()
        if isinstance(value, Mapping):
            yield from _option_names(value)


class FoundFile(NamedTuple):
    """One file as the walk saw it, without opening it."""

    path: str  # relative to the root, '/' as separator
    class_name: str | None  # NFC name of the top sub-folder; None at the root
    size_bytes: int
    mtime_ns: int
    skipped_reason: str | None = None  # None: the file counts
    etag: str | None = None


LISTING = pa.schema(
    {
        "path": pa.string(),
        "class_name": pa.string(),
        "size_bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "skipped_reason": pa.string(),
        "etag": pa.string(),
    }
)
"""Columns of a scan: those of `FoundFile`."""


class ImageSource(Protocol):
    """Where images lie."""

    @property
    def root(self) -> str:
        """The folder or URL, as people and the home know it; holds no secret."""

    @property
    def name(self) -> str:
        """The last part of it."""

    @property
    def folder(self) -> Path | None:
        """The folder, where the files lie on this machine."""

    def scan(self) -> pa.Table:
        """List every file, in no particular order.

        Returns:
            Columns as in `LISTING`. Sizes and times of links are those of what they point to, or 0
            where that is not looked at; what the storage does not say is as in `Stamp`.

        Raises:
            ConfigurationError: there is nothing of that name, or it may not be listed.
            SourceError: the storage could not be reached, also not on trying again.
        """

    def read(self, path: str, expected: Stamp | None = None) -> bytes:
        """The bytes of one file.

        expected: how the scan saw the file; another one is refused.

        Raises:
            ImageError: it cannot be had, see the module for the reasons.
            ConfigurationError, SourceError: as `scan`; no image can be read.
        """

    def locate(self, path: str) -> str:
        """Absolute path or URL of a file, for other tools."""

    def read_companion(self, name: str) -> bytes:
        """The bytes of a file that goes with the images: a manifest, a ground truth.

        name: relative to the root (``..`` is allowed), an absolute path of this machine or a URL.

        Raises:
            ConfigurationError: it cannot be read.
            SourceError: as `scan`.
        """


def read_known(source: ImageSource, path: str, image_id: str) -> bytes:
    """The bytes of a file that cleaning saw.

    Raises:
        ImageError: as `ImageSource.read`; or ``changed``: it holds another image now.
        ConfigurationError, SourceError: as `ImageSource.read`.
    """
    data = source.read(path)
    if content_hash(data) != image_id:
        raise ImageError(
            "changed", "the file holds another image since it was cleaned; the next inventory tells"
        )
    return data


def find_companion(source: ImageSource, name: str) -> bytes | None:
    """As `ImageSource.read_companion`; ``None`` if there is no such file."""
    try:
        return source.read_companion(name)
    except ConfigurationError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def path_within(root: str) -> str:
    """The path of an image root within its storage: ``bucket/photos`` of ``s3://bucket/photos``, of
    an archive what lies in it."""
    first, chained, _ = root.partition("::")
    before, is_url, path = first.partition("://")
    return path if is_url else "" if chained else before


def open_source(root: str | Path, options: Mapping[str, Any] | None = None) -> ImageSource:
    """The source of a folder or URL. Nothing is looked at yet.

    Args:
        root: a folder; a ZIP archive; a URL as fsspec takes it, ``::`` between the links of a
            chain. ``zip:///data/photos.zip`` is short for ``zip::file:///data/photos.zip``.
        options: for URLs: what fsspec takes for the protocol, by protocol in a chain.

    Raises:
        ConfigurationError: the URL holds a password.
    """
    text = str(root)
    if _names_password(text):
        raise ConfigurationError(f"{_without_password(text)}: {_PASSWORD}")
    if "::" not in text and text.startswith("file://"):
        text = text.removeprefix("file://")
    if "::" not in text and text.startswith("zip:///"):
        return UrlSource(
            f"zip::file://{Path(text.removeprefix('zip://')).resolve()}", options or {}
        )
    if "://" in text or re.match("[a-z0-9]+::", text):
        return UrlSource(text.rstrip("/"), options or {})
    path = Path(text).resolve()
    if path.suffix.lower() == ".zip" and path.is_file():
        return UrlSource(f"zip::file://{path}", options or {})
    return FolderSource(path)


_PASSWORD = (
    "expected a URL without a password, which would be stored and shown: leave it to the "
    "environment, as FSSPEC_<PROTOCOL>_<OPTION>"
)


def _names_password(root: str) -> bool:
    return any(urlsplit(link).password for link in root.split("::") if "://" in link)


def _without_password(root: str) -> str:
    return re.sub(r"://[^/@]*@", "://", root)


# Folders ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderSource:
    """A folder of this machine. path: absolute."""

    path: Path

    @property
    def root(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return unicodedata.normalize("NFC", self.path.name) or "root"

    @property
    def folder(self) -> Path | None:
        """The folder."""
        return self.path

    def scan(self) -> pa.Table:
        """See `ImageSource`. The folder may be a link itself."""
        if not self.path.is_dir():
            what = "is not a folder" if self.path.exists() else "does not exist"
            raise ConfigurationError(
                f"the image root {self.path} {what}; name a folder of images, with one sub-folder "
                "a class (on the command line or in LABELING_IMAGES)"
            )
        return listing(_walk(self.path))

    def read(self, path: str, expected: Stamp | None = None) -> bytes:
        """See `ImageSource`."""
        return read_file(self.path / path, expected)

    def locate(self, path: str) -> str:
        """See `ImageSource`."""
        return str(self.path / path)

    def read_companion(self, name: str) -> bytes:
        """See `ImageSource`."""
        if "://" in name:
            return _read_url(name, {})
        return _read_file((self.path / name).resolve())


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _walk(root: Path) -> Iterator[FoundFile]:
    real_root = os.path.realpath(root)
    # (folder relative to the root, display name of its class, why nothing in it counts)
    pending: list[tuple[str, str | None, str | None]] = [("", None, None)]
    while pending:
        folder, class_name, inherited_reason = pending.pop()
        try:
            with os.scandir(f"{real_root}/{folder}") as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        reason = inherited_reason or _folder_reason(entry.name)
                        top = class_name if folder else _class_name(entry.name, reason)
                        pending.append((path, top, reason))
                    else:
                        yield _look_at(entry, path, real_root, class_name, inherited_reason)
        except OSError as error:
            if not folder:
                raise ConfigurationError(
                    f"the image root {root} cannot be read ({error.strerror}); "
                    "check its permissions"
                ) from error
            reason = inherited_reason or "unreadable_folder"
            yield FoundFile(_printable(folder), class_name, 0, 0, reason)


def _look_at(
    entry: os.DirEntry[str],
    path: str,
    real_root: str,
    class_name: str | None,
    inherited_reason: str | None,
) -> FoundFile:
    reason = inherited_reason or _name_reason(entry.name)
    size_bytes = mtime_ns = 0
    try:
        if entry.is_symlink() and not _leads_into(entry.path, real_root):
            # A link that dangles outside is broken before it is outside.
            reason = reason or ("link_outside" if Path(entry.path).exists() else "broken_link")
        else:
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                reason = reason or "link_to_folder"
            elif not stat.S_ISREG(status.st_mode):
                reason = reason or "not_a_file"
            else:
                size_bytes, mtime_ns = status.st_size, status.st_mtime_ns
    except OSError:
        reason = reason or "broken_link"
    printable = _printable(path)
    if printable != path:
        reason = reason or "undecodable_name"
    return FoundFile(
        printable, class_name, size_bytes, mtime_ns, reason or _extension_reason(entry.name)
    )


def _leads_into(link: str, folder: str) -> bool:
    return Path(os.path.realpath(link)).is_relative_to(folder)


# URLs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UrlSource:
    """Whatever fsspec speaks. options: as `open_source` takes them."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The URL."""
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL; of an archive, without its extension."""
        first, _, archive = self.url.partition("::")
        inside = first.partition("://")[2].rstrip("/")
        last = (inside or archive).rpartition("/")[2]
        name = last if inside else last.partition(".")[0]
        return unicodedata.normalize("NFC", name) or "root"

    @property
    def folder(self) -> Path | None:
        """There is none."""
        return None

    def scan(self) -> pa.Table:
        """See `ImageSource`."""
        # An open archive does not show that another one has taken its place.
        files, base = self._connect(anew="::" in self.url)
        try:
            return listing(_found(info, base) for info in _infos(files, base, self.url))
        except (ConfigurationError, SourceError):
            raise
        except Exception as error:
            raise self._refused(error) from error
        finally:
            # What a listing remembers would hide later changes.
            files.invalidate_cache()

    def read(self, path: str, expected: Stamp | None = None) -> bytes:
        """See `ImageSource`."""
        files, base = self._connect()
        name = posixpath.join(base, path)
        now = expected
        try:
            if expected is not None:
                now = _stamp(_retried(files.info, name))
                check_stamp(now, expected)
            data = _retried(_contents, files, name, now)
        except ImageError:
            raise
        except FileNotFoundError as error:
            raise ImageError("vanished", VANISHED) from error
        # Archives and storages raise nearly anything for one file that they cannot give.
        except Exception as error:
            if _may_pass(error):
                raise self._unreachable(error) from error
            raise ImageError("unreadable", f"the file cannot be read: {_told(error)}") from error
        if expected is not None and expected.size_bytes not in (-1, len(data)):
            raise ImageError("changed", "the file changed while it was read")
        return data

    def locate(self, path: str) -> str:
        """See `ImageSource`."""
        first, *others = self.url.split("::")
        first = first if "://" in first else f"{first}://"
        return "::".join([posixpath.join(first, path), *others])

    def read_companion(self, name: str) -> bytes:
        """See `ImageSource`."""
        if "://" in name:
            same = urlsplit(name).scheme == urlsplit(self.url).scheme
            return _read_url(name, self.options if same else {})
        if name.startswith("/"):
            return _read_file(Path(name))
        files, base = self._connect()
        path = posixpath.normpath(posixpath.join(base, name))
        if path.startswith(".."):
            raise ConfigurationError(f"{name}: leads out of {self.url}; name an absolute path")
        try:
            return _retried(files.cat_file, path)
        except Exception as error:
            raise self._refused(error, name) from error

    def _connect(self, *, anew: bool = False) -> tuple[Any, str]:
        """The file system and the root within it; one connection for each process."""
        key = (os.getpid(), self.url, json.dumps(self.options, sort_keys=True, default=str))
        with _connecting:
            if anew or key not in _connections:
                try:
                    _connections[key] = _retried(_file_system, self.url, self.options)
                except Exception as error:
                    raise self._refused(error) from error
            return _connections[key]

    def _unreachable(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.url} could not be reached: {_told(error)}. Try again later; what was done is "
            "kept"
        )

    def _refused(
        self, error: Exception, what: str | None = None
    ) -> ConfigurationError | SourceError:
        if _may_pass(error):
            return self._unreachable(error)
        if isinstance(error, ImportError):
            return MissingDependencyError(
                f"{self.url}: {_told(error)}; for S3: pip install 'labeling-pipeline[s3]'"
            )
        return ConfigurationError(
            f"{what or self.url} cannot be read{f' from {self.url}' if what else ''}: "
            f"{_told(error)}. Check the URL, `source.options` in the plan and the credentials in "
            "the environment"
        )


# (process, URL, options) -> file system and root within it. A connection does not survive a fork.
_connections: dict[tuple[int, str, str], tuple[Any, str]] = {}
_connecting = threading.Lock()

# An archive is read piece by piece. What fsspec fetches for a piece by default, 5 to 50 MB, suits
# reading from front to back; labeling reads in another order.
_ARCHIVE_BLOCK_BYTES = 2**20


def _file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    import fsspec

    protocols = [link.partition("://")[0] for link in url.split("::")]
    others = [name for name in options if name not in protocols]
    if len(protocols) > 1 and others:
        raise ValueError(
            f"the options of a chain go by protocol ({', '.join(protocols)}), got {others[0]!r}"
        )
    own = {"skip_instance_cache": True}
    if protocols[0] != "zip" or len(protocols) == 1:
        files, base = fsspec.url_to_fs(url, **options, **own)
        return files, base.rstrip("/")
    from fsspec.implementations.zip import ZipFileSystem

    inside, _, target = url.partition("::")
    below = options if "::" in target else options.get(protocols[1], {})
    around, path = fsspec.url_to_fs(target, **below, **own)
    file = around.open(path, "rb", block_size=_ARCHIVE_BLOCK_BYTES)
    archive = ZipFileSystem(file, **options.get("zip", {}))
    # The first question fills its directory, and a second one meanwhile would find half of it.
    archive.exists("")
    return archive, inside.partition("://")[2].strip("/")


def _infos(files: Any, base: str, url: str) -> Iterator[dict[str, Any]]:
    """What the storage says of each file; folder by folder, for what it says takes memory."""
    from fsspec.archive import AbstractArchiveFileSystem

    found = False
    if isinstance(files, AbstractArchiveFileSystem):
        top = files.find(base, detail=True).values()
    else:
        top = _retried(files.ls, base, detail=True)
    for info in top:
        if info["name"].strip("/") == base.strip("/"):
            if info["type"] == "file" and info.get("size"):
                raise ConfigurationError(
                    f"{url} is one file; name a folder of images, or an archive as zip::{url}"
                )
            continue
        if info["type"] == "directory":
            below = _retried(files.find, info["name"], detail=True).values()
        else:
            below = (info,)
        for one in below:
            found = True
            yield one
    if not found:
        # An object store has no empty folders: it is as good as a misspelt name.
        raise ConfigurationError(f"{url}: there is no file; check the URL")


def _contents(files: Any, name: str, now: Stamp | None) -> bytes:
    """The bytes of a file. What is packed may be a thousand times as large as its archive says, and
    what has no size may have no end.

    Raises:
        ImageError: ``file_too_large``.
    """
    from fsspec.archive import AbstractArchiveFileSystem

    if isinstance(files, AbstractArchiveFileSystem):
        return files.cat_file(name, end=files.info(name)["size"] + 1)
    if now is None or now.size_bytes != -1:
        return files.cat_file(name)
    data = bytearray()
    with files.open(name, "rb") as file:
        while piece := file.read(2**20):
            data += piece
            check_stamp(Stamp(len(data), 0), None)
    return bytes(data)


def _found(info: Mapping[str, Any], base: str) -> FoundFile:
    path = info["name"][len(base) :] if info["name"].startswith(base) else info["name"]
    path = path.removeprefix("/") if base else path
    parent, _, name = path.rpartition("/")
    class_name, reason = _folder_of(parent, is_top="/" not in path)
    printable = _printable(path)
    reason = reason or _name_reason(name)
    if printable != path:
        reason = reason or "undecodable_name"
    if info["type"] != "file":
        reason = reason or "not_a_file"
    stamp = _stamp(info)
    return FoundFile(
        printable,
        class_name,
        stamp.size_bytes,
        stamp.mtime_ns,
        reason or _extension_reason(name),
        stamp.etag,
    )


@functools.lru_cache(4096)
def _folder_of(folder: str, is_top: bool) -> tuple[str | None, str | None]:
    """Class of a folder, and why nothing in it counts."""
    if is_top:
        return None, None
    parts = folder.split("/")
    unsafe = "unsafe_name" if {"", ".", ".."} & set(parts) else None
    reason = unsafe or next((r for part in parts if (r := _folder_reason(part))), None)
    return _class_name(parts[0], unsafe or _folder_reason(parts[0])), reason


def _stamp(info: Mapping[str, Any]) -> Stamp:
    etag = next((str(info[key]) for key in _ETAGS if info.get(key) is not None), None)
    time = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    size = info.get("size")
    return Stamp(-1 if size is None else int(size), _nanoseconds(time), etag)


# What file systems call it: S3 and HTTP, Azure, Google; ZIP has a checksum.
_ETAGS = ("ETag", "etag", "content_md5", "md5Hash", "CRC")
_TIMES = (
    *("LastModified", "last_modified", "mtime", "updated", "modified", "created"),
    *("date_time", "timeModified"),
)


def _nanoseconds(time: Any) -> int:
    """A time as file systems write it, in ns since 1970; 0 where it is none."""
    try:
        if isinstance(time, datetime):
            return calendar.timegm(time.utctimetuple()) * 10**9 + time.microsecond * 1000
        if isinstance(time, str):
            return _nanoseconds(datetime.fromisoformat(time))
        if isinstance(time, tuple):
            return calendar.timegm((*time, 0, 0, 0)) * 10**9
        # One file may be listed with a float and described with a datetime.
        return round(time * 1e6) * 1000 if isinstance(time, int | float) else 0
    except (ValueError, OverflowError):
        return 0


def _read_url(url: str, options: Mapping[str, Any]) -> bytes:
    parent, _, name = url.rpartition("/")
    return UrlSource(parent, options).read_companion(name)


# What can change by itself, by the names of errors and of their bases: every storage library has
# its own, and none is imported for it.
_PASSING = frozenset(
    {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
    | {"ClientPayloadError", "IncompleteRead", "Timeout"}
)
_PASSING_NUMBERS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}
)


def _may_pass(error: BaseException) -> bool:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    return any(kind.__name__ in _PASSING for kind in type(error).__mro__)


def _retried(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    attempts = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential_jitter(initial=0.2, max=2, jitter=0.2),
        # Some libraries try again themselves before they give up.
        stop=stop_after_attempt(5) | stop_after_delay(5),
        reraise=True,
    )
    return attempts(call, *args, **named)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# What both share --------------------------------------------------------------------------------


def listing(files: Iterable[FoundFile]) -> pa.Table:
    """The table of a scan. Of a million files only some thousands are Python objects at a time."""
    rest = iter(files)
    batches = []
    while chunk := list(islice(rest, 65_536)):
        columns = dict(zip(FoundFile._fields, zip(*chunk, strict=True), strict=True))
        batches.append(pa.RecordBatch.from_pydict(columns, schema=LISTING))
    return pa.Table.from_batches(batches, schema=LISTING)


def _name_reason(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "unsafe_name"
    if name.lower() in _SYSTEM_FILES or name.startswith("._"):
        return "system_file"
    return "hidden_file" if name.startswith(".") else None


def _folder_reason(name: str) -> str | None:
    if name.lower() in _SYSTEM_FOLDERS:
        return "system_file"
    return "hidden_file" if name.startswith(".") else None


def _extension_reason(name: str) -> str | None:
    extension = posixpath.splitext(name)[1].lower()
    return None if extension in EXTENSIONS else "not_an_image"


def _class_name(folder: str, reason: str | None) -> str | None:
    return None if reason else unicodedata.normalize("NFC", _printable(folder))


def _printable(path: str) -> str:
    """The path with bytes that are not UTF-8 spelled out: neither Arrow nor DuckDB take them."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")
