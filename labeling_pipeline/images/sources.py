"""What lies under an image root: one walk, every file listed, what does not count with its reason.

A class is a top sub-folder; deeper folders belong to it. Class names are NFC, because macOS
stores "é" as two characters where Linux stores one. Paths stay as the disk spells them, as they
are needed to open the files.

Reasons: ``hidden_file`` (a name or folder that starts with a dot), ``system_file`` (what operating
systems leave behind), ``not_an_image`` (by its extension), ``broken_link``, ``link_outside`` (the
root), ``link_to_folder`` (following those could go round in circles), ``not_a_file`` (pipes and
the like), ``unreadable_folder``, ``undecodable_name`` (bytes that are not UTF-8).
"""

import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from labeling_pipeline.errors import ConfigurationError

# HEIC is in the list so that such photos are reported as unreadable instead of passed over.
IMAGE_EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k", ".jpx"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
    }
)

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
)


@dataclass(frozen=True)
class FoundFile:
    """One file as the walk saw it, without opening it."""

    path: str  # relative to the root, '/' as separator
    class_name: str | None  # NFC name of the top sub-folder; None at the root
    size_bytes: int
    mtime_ns: int
    skipped_reason: str | None = None  # None: the file counts


def scan(root: Path) -> list[FoundFile]:
    """List every file under an image root.

    Args:
        root: the folder to walk. It may be a link itself.

    Returns:
        The files, sorted by path. Sizes and times of links are those of what they point to, or 0
        where that is not looked at.

    Raises:
        ConfigurationError: the root does not exist, is not a folder or may not be read.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ConfigurationError(
            f"the image root {root} {what}; name a folder of images, with one sub-folder a class "
            "(on the command line or in LABELING_IMAGES)"
        )
    real_root = Path(os.path.realpath(root))
    found: list[FoundFile] = []
    # (folder relative to the root, display name of its class, why nothing in it counts)
    pending: list[tuple[str, str | None, str | None]] = [("", None, None)]
    while pending:
        folder, class_name, inherited_reason = pending.pop()
        try:
            with os.scandir(real_root / folder) as entries:
                listed = list(entries)
        except OSError as error:
            if not folder:
                raise ConfigurationError(
                    f"the image root {root} cannot be read ({error.strerror}); "
                    "check its permissions"
                ) from error
            found.append(
                FoundFile(_printable(folder), class_name, 0, 0, inherited_reason or _UNREADABLE)
            )
            continue
        for entry in listed:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                reason = inherited_reason or _folder_reason(entry.name)
                top = class_name if folder else _class_name(entry.name, reason)
                pending.append((path, top, reason))
            else:
                found.append(_look_at(entry, path, real_root, class_name, inherited_reason))
    return sorted(found, key=lambda file: file.path)


_UNREADABLE = "unreadable_folder"


def _look_at(
    entry: os.DirEntry[str],
    path: str,
    real_root: Path,
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
    if reason is None and Path(entry.name).suffix.lower() not in IMAGE_EXTENSIONS:
        reason = "not_an_image"
    return FoundFile(printable, class_name, size_bytes, mtime_ns, reason)


def _name_reason(name: str) -> str | None:
    if name.lower() in _SYSTEM_FILES or name.startswith("._"):
        return "system_file"
    return "hidden_file" if name.startswith(".") else None


def _folder_reason(name: str) -> str | None:
    if name.lower() in _SYSTEM_FOLDERS:
        return "system_file"
    return "hidden_file" if name.startswith(".") else None


def _class_name(folder: str, reason: str | None) -> str | None:
    return None if reason else unicodedata.normalize("NFC", _printable(folder))


def _printable(path: str) -> str:
    """The path with bytes that are not UTF-8 spelled out: neither Arrow nor DuckDB take them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _leads_into(link: str, folder: Path) -> bool:
    return Path(os.path.realpath(link)).is_relative_to(folder)
