"""Files among those of other users: opened without following links, named without replacing, made to last."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from .light_stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
CREATED_MODE = 0o600
SQLITE_HEADER = b"SQLite format 3\0"  # how a database begins
BESIDE_SQLITE = ("-wal", "-shm", "-journal")  # what SQLite adds to its name for the files beside it
# What file systems answer to a call that they do not offer: CIFS, exFAT, FUSE, NFS without its lock daemon; AFS
# links within a folder alone (EXDEV).
NOT_OFFERED = frozenset(
    {errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EMLINK, errno.EXDEV}
)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegular(OSError):
    """A path names a link, a pipe, a device or a directory where a regular file is expected."""


def is_not_offered(error: OSError) -> bool:
    """Return whether the file system lacks the call that failed."""
    return error.errno in NOT_OFFERED


def kind_of(status: os.stat_result) -> str | None:
    """Return what a file is if it is not a regular one: "a link", "a pipe" and so on."""
    if stat.S_ISREG(status.st_mode):
        return None
    return next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a device")


def require_regular(path: str | os.PathLike[str], status: os.stat_result) -> os.stat_result:
    """Return the status of a regular file.

    :raises NotRegular: for anything else.
    """
    if kind := kind_of(status):
        raise NotRegular(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return status


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = CREATED_MODE) -> int:
    """Return a descriptor of a regular file, whose status holds for all that is read from it.

    Links are not followed, and pipes and devices are not opened.

    :raises NotRegular: for anything but a regular file.
    """
    try:
        require_regular(path, os.lstat(path))
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:  # the link came after the look
            raise NotRegular(errno.EINVAL, "it is a link, not a regular file", str(path)) from None
        raise
    try:
        require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


# Who else can write


def trusted_owners() -> frozenset[int]:
    """Return the users whose files this process takes: its own, and root."""
    return frozenset({0, os.geteuid()})


def owner_name(uid: int) -> str:
    """Return "user NAME", or "user id N" for a user without a name."""
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user id {uid}"


def others_can_add(folder: Path) -> bool:
    """Return whether another user than this one and root can put files into a folder."""
    return bool(folder.stat().st_mode & WRITABLE_BY_OTHERS) or others_can_replace(folder)


def others_can_replace(folder: Path) -> bool:
    """Return whether another user can put a file in the place of ours: in the folder, or in one above it."""
    return any(_is_open_to_others(path.stat()) for path in _way_to(folder))


def _way_to(folder: Path) -> Iterator[Path]:
    """Yield a folder and those above it, by the path as given, by each link on it, and by the one without links."""
    from pathlib import Path  # takes a while to load, and a start that finds its stamp needs none

    seen: set[Path] = set()
    pending = [Path(os.path.abspath(folder)), Path(os.path.realpath(folder))]
    while pending:
        path = pending.pop()
        for one in {path, *path.parents} - seen:
            seen.add(one)
            if one.is_symlink():
                pending += filter(Path.exists, [_target_of(one)])
            yield one


def _target_of(link: Path) -> Path:
    """Return where a link leads; what it leads through is looked at in its turn."""
    return type(link)(os.path.abspath(os.path.join(os.path.realpath(link.parent), os.readlink(link))))


def _is_open_to_others(status: os.stat_result) -> bool:
    if status.st_uid not in trusted_owners():
        return True
    if status.st_mode & stat.S_ISVTX:  # only the owner of a file may rename or delete it
        return False
    return others_can_write(status)


def others_can_write(status: os.stat_result) -> bool:
    """Return whether the rights of a file or folder let others than its owner write."""
    return bool(status.st_mode & stat.S_IWOTH) or (
        bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(status)
    )


def _is_private_group(status: os.stat_result) -> bool:
    """Return whether a folder's group is the one that many systems create for its owner alone."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}


# Names


def give_name(source: Path, target: Path) -> None:
    """Give a file another name on its file system; without hard links it loses its old one.

    :raises FileExistsError: when something has that name.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if not is_not_offered(error) and error.errno != errno.EACCES:
            raise
        rename_new(source, target)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file without ever replacing another one.

    :raises FileExistsError: when something has that name.
    """
    try:
        _rename_noreplace(source, target)
    except OSError as error:
        if not is_not_offered(error):
            raise
        _rename_over_placeholder(source, target)


def _rename_noreplace(source: Path, target: Path) -> None:
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    names = os.fsencode(source), os.fsencode(target)
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def _rename_over_placeholder(source: Path, target: Path) -> None:
    """Reserve the name by an empty file, and replace that: no other program can take the name in between."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, CREATED_MODE))
    try:
        os.rename(source, target)
    except BaseException:
        if os.path.lexists(source):
            target.unlink()
        raise


def is_placeholder(target: Path, source: Path) -> bool:
    """Return whether a name was only reserved for a file that is not empty, by a process that was killed then."""
    there, wanted = target.lstat(), source.lstat()
    is_empty = stat.S_ISREG(there.st_mode) and there.st_size == 0
    return is_empty and wanted.st_size > 0 and there.st_uid == wanted.st_uid


# Made to last


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk.

    A file system that cannot sync a folder keeps its names by itself.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not is_folder or not (is_not_offered(error) or error.errno in (errno.EBADF, errno.EISDIR)):
            raise
    finally:
        os.close(descriptor)


def make_folders(folder: Path, mode: int = 0o777) -> list[Path]:
    """Make a folder, and those above it that are missing; return what was made, the innermost first.

    Each is on the disk before the next one is made.

    :param mode: of the folder itself, under the umask.
    """
    made: list[Path] = []
    try:
        for path in reversed([folder, *folder.parents]):
            if _made(path, mode if path == folder else 0o777):
                made.insert(0, path)
                _sync_above(path)
    except BaseException:
        remove_folders(made)
        raise
    return made


def _made(path: Path, mode: int) -> bool:
    if path.is_dir():
        return False
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False  # another process made it meanwhile
    return True


def _sync_above(path: Path) -> None:
    try:
        sync(path.parent)
    except PermissionError:  # a folder that this user may enter and not read
        os.sync()


def remove_folders(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def part_of_sqlite(path: Path) -> str:
    """Say of which SQLite database a file is a part, or would be taken for one; "" of none.

    One wrong word would put something else in the place of its rows, of which the newest may stand beside it.
    """
    for end in ("", *BESIDE_SQLITE):
        base = path.name[: len(path.name) - len(end)]
        if base and path.name.endswith(end) and _is_sqlite(path.with_name(base)):
            return f"part of the SQLite database {base}" if end else "a SQLite database"
    return ""


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
