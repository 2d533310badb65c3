"""What a failure says: its innermost cause in one line, and the remedy. Pure.

A failure comes from this process, or from a worker as Ray's wrapper around a printed traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import TypeVar

from perennial.errors import MISTAKES, PerennialError, StorageError, StorageFull

E = TypeVar("E", bound=BaseException)

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'^ *File ".*", line \d+', re.MULTILINE)
_CAUSED = "The above exception was the direct cause of the following exception"
_MODULE = re.compile(r"^(?:\w+\.)+(?=\w+(?::|$))")
_FULL = re.compile(
    r"no space left on device|disk quota exceeded|disk is full|QuotaExceeded|StorageFull"
    r"|InsufficientStorage",
    re.IGNORECASE,
)
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_FREE_ROOM = "free room there and repeat the command: it goes on where it stood"
_REMEDIES = {
    errno.EROFS: "mount that file system writable, or name another folder",
    errno.EACCES: "give this user the right to read and write it",
    errno.EPERM: "give this user the right to read and write it",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`) and repeat the command",
    errno.ENFILE: "raise this machine's limit of open files (fs.file-max)",
    errno.EIO: "check that disk, then repeat the command",
    errno.ESTALE: "mount that file system again, then repeat the command",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or name another file system",
}


def causes(failure: BaseException) -> Iterator[BaseException]:
    """Yield the failure and its causes, in this process or in a Ray task."""
    link: BaseException | None = failure
    seen: list[BaseException] = []
    while isinstance(link, BaseException) and not any(link is before for before in seen):
        seen.append(link)
        yield link
        link = getattr(link, "cause", None) or link.__cause__


def find_cause(failure: BaseException | None, kind: type[E]) -> E | None:
    """Return the innermost cause of a kind, or None.

    Args:
        failure: what was caught, if anything.
        kind: the class to look for.
    """
    links = [] if failure is None else [*causes(failure)]
    return next((link for link in reversed(links) if isinstance(link, kind)), None)


def own_of(failure: BaseException) -> BaseException | None:
    """Return the first cause that is no wrapper of Ray's; None where only a text is left of it."""
    return next((link for link in causes(failure) if not _is_wrapper(link)), None)


def describe(failure: BaseException) -> str:
    """Return a failure in one line: its sentence, and its innermost cause where that says more.

    A bug has its class in it, because `'x'` alone says little.
    """
    links, own = list(causes(failure)), own_of(failure)
    if own is None:
        return _sentence(failure)
    line = _sentence(own)
    around = [text for link in links[: links.index(own)] if _FRAME.search(text := str(link))]
    innermost = innermost_of(around[0]) if around else ""
    if not around and links[-1] is not own:
        # The workers' texts behind a failure of our own: it names the one that counts.
        is_named = _is_wrapper(links[-1]) and isinstance(own, PerennialError)
        innermost = "" if is_named else _with_class(links[-1])
    message = innermost.partition(": ")[2] or innermost
    return line if message in line else f"{line} ({innermost})"


def innermost_of(traceback: str) -> str:
    """Return `Class: message` of the first cause in a printed traceback, in one line."""
    first = _ESCAPES.sub("", traceback).partition(_CAUSED)[0]
    lines = first.splitlines()
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    rest = lines[frames[-1] + 1 :] if frames else lines
    while rest and (rest[0].startswith("    ") or not rest[0].strip()):
        del rest[0]  # the source of the last frame
    return _MODULE.sub("", " ".join(" ".join(rest).split()))


def without_escapes(text: str) -> str:
    """Return a text without the codes that colour it on a terminal."""
    return _ESCAPES.sub("", text)


def _is_wrapper(failure: BaseException) -> bool:
    of_ray = type(failure).__module__.partition(".")[0] == "ray"
    return of_ray or _FRAME.search(str(failure)) is not None


def _sentence(failure: BaseException) -> str:
    text = str(failure)
    if _FRAME.search(text):
        return innermost_of(text)
    line = " ".join(_ESCAPES.sub("", text).split())
    if not line or isinstance(failure, MISTAKES):
        return f"{type(failure).__name__}: {line}".rstrip(": ")
    return line


def _with_class(failure: BaseException) -> str:
    line = _sentence(failure)
    name = type(failure).__name__
    return line if line.startswith(name) else f"{name}: {line}"


def is_storage_full(failure: BaseException) -> bool:
    """Return whether a store or a disk had no room, here or where a worker ran."""
    return any(
        getattr(link, "errno", None) in _FULL_NUMBERS or _FULL.search(_sentence(link))
        for link in causes(failure)
    )


def remedy_of(failure: BaseException) -> str:
    """Return the remedy for a refusal of a store or a disk, or "" where none is known.

    A store notes on its errors what its server's code asks for.
    """
    links = list(causes(failure))
    noted = [note for link in links for note in getattr(link, "__notes__", ())]
    if noted:
        return str(noted[0])
    if is_storage_full(failure):
        return _FREE_ROOM
    numbers = (link.errno for link in links if isinstance(link, OSError))
    return next((_REMEDIES[number] for number in numbers if number in _REMEDIES), "")


def storage_error(failure: BaseException) -> StorageError:
    """Return a refusal of a store or a disk with its own words, its place and the remedy."""
    line = _placed(failure) if isinstance(failure, OSError) else describe(failure)
    remedy = remedy_of(failure)
    full = StorageFull if is_storage_full(failure) else StorageError
    return full(f"{line}; {remedy}" if remedy and remedy not in line else line)


def _placed(failure: OSError) -> str:
    """Return what an error is about, and the words of the service or the system."""
    if failure.strerror is None or _is_wrapper(failure):
        return describe(failure)
    return ": ".join(str(part) for part in (failure.filename, failure.strerror) if part)
