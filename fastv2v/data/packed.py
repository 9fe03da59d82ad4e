"""Packed data sets: all files of a data set in one LMDB database. Torch-free.

``NAME.lmdb/`` holds the bytes of every file as they are on disk, so that what is decoded is the same, and opening a
data set of a million frames asks the file system for one file. In it are three tables:

    (main)  b"fastv2v-packed"  JSON: schema, source, folders, num_files, num_bytes
    files   <relative path>    the bytes of the file
    checks  <relative path>    its size and CRC-32; for an empty folder the key ends in "/"

Keys have forward slashes and are sorted by their bytes, so that a folder is a range of keys and no list of files is
held in memory. ``data_path`` gives a path that is used like any other; whoever reads a data set through paths reads a
packed one without knowing.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from types import ModuleType
from typing import IO, Any, Final, Literal

from fastv2v.errors import DataError, MissingExtraError

if sys.platform == "win32":
    from pathlib import WindowsPath as _SystemPath
else:
    from pathlib import PosixPath as _SystemPath

Progress = Callable[[int, int], None]
"""Called with the steps done and their total."""
Convert = Callable[[str, bytes], bytes]
"""What is stored of a file, from its key and its bytes."""

_RECORD_KEY: Final = b"fastv2v-packed"
_SCHEMA: Final = 1
_CHECK: Final = struct.Struct("<QI")  # size, CRC-32
_DATA_FILE: Final = "data.mdb"
_ROOT_SUFFIXES: Final = (".json", ".txt")
_BATCH_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class PackSummary:
    """What was packed."""

    target: Path
    """The packed data set."""
    num_files: int
    """Files in it."""
    num_bytes: int
    """Their bytes."""
    num_sequences: int
    """Folders that directly hold files, each counted once for its phase however many kinds of files it has."""
    packed_bytes: int
    """Bytes of the database on disk."""
    seconds: float
    """Time taken, with the check at the end."""


def is_packed(path: Path) -> bool:
    """Whether a folder is an LMDB database; if it is none of ours, opening it says so."""
    return os.path.isfile(os.path.join(path, _DATA_FILE))


def data_path(path: Path) -> Path:
    """The path of a data set, to be used in the same way whether it is packed or not.

    Args:
        path: a folder, or a packed data set.

    Returns:
        ``path``; where it is packed, as one from which everything below it can be listed and read.
    """
    if not is_packed(path):
        return Path(path)
    _forget_replaced(path)
    return PackedPath(path)


class PackedPath(_SystemPath):
    """A path at or below a packed data set: ``/``, listing and reading work as for files on disk.

    Its text says all, so it may be compared, sorted, pickled and sent to other processes.
    """

    # Known where a listing gave the path: a packed data set does not change, and whoever lists it asks next.
    _kind: Literal["file", "folder"] | None = None

    def is_file(self) -> bool:
        """Whether a file is packed under this path."""
        if self._kind is not None:
            return self._kind == "file"
        files, key = _locate(self)
        return files.is_file(key)

    def is_dir(self) -> bool:
        """Whether something is packed below this path."""
        if self._kind is not None:
            return self._kind == "folder"
        files, key = _locate(self)
        return files.is_dir(key)

    def exists(self) -> bool:
        """Whether it is a packed file or folder."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[PackedPath]:  # type: ignore[override]
        """What lies in this folder, folders last, each sorted.

        Raises:
            NotADirectoryError: if this is no packed folder.
        """
        files, key = _locate(self)
        if not files.is_dir(key):
            raise NotADirectoryError(errno.ENOTDIR, "there is no such folder in the packed data set", str(self))
        names, folders = files.list_directory(key)
        for number, name in enumerate((*names, *folders)):
            path = self / name
            path._kind = "file" if number < len(names) else "folder"
            yield path

    def open(self, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """The file for reading; ``mode`` is ``r`` or ``rb``.

        Raises:
            OSError: for another mode.
            DataError: as ``PackedFiles.read_bytes``.
        """
        if mode not in ("r", "rt", "rb"):
            raise OSError(errno.EROFS, "a packed data set is read-only", str(self))
        data = io.BytesIO(self.read_bytes())
        return data if mode == "rb" else io.TextIOWrapper(data, options.get("encoding"), options.get("errors"))

    def read_bytes(self) -> bytes:
        """The bytes of the file.

        Raises:
            DataError: as ``PackedFiles.read_bytes``.
        """
        files, key = _locate(self)
        return files.read_bytes(key)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:  # type: ignore[override]
        """The text of the file.

        Raises:
            DataError: as ``PackedFiles.read_bytes``.
        """
        with self.open(encoding=encoding, errors=errors) as file:
            return str(file.read())


class PackedFiles:
    """Reads the files of a packed data set.

    The database is opened on first use, once in each process: also after a fork, and after this object was pickled. It
    stays open for whoever reads it next, until ``close`` or the end of the process.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._where = os.path.realpath(root)

    @property
    def record(self) -> Mapping[str, Any]:
        """What was noted when it was packed: ``source``, ``folders``, ``num_files`` and ``num_bytes``."""
        with self._reading("its record") as opened:
            return opened.record

    def paths(self) -> tuple[PurePosixPath, ...]:
        """All files, relative to the root, sorted.

        Raises:
            DataError: if this is no packed data set or is damaged.
        """
        with self._reading("its list of files") as opened, opened.env.begin(db=opened.checks) as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        return tuple(PurePosixPath(os.fsdecode(key)) for key in keys if not key.endswith(b"/"))

    def read_bytes(self, relative: PurePath | str) -> bytes:
        """The bytes of one file, compared with the size and CRC-32 that were noted when it was packed.

        Args:
            relative: path below the root.

        Raises:
            DataError: if there is no such file, or it is damaged; or if this is no packed data set.
        """
        key = _key(relative)
        with self._reading(os.fsdecode(key)) as opened, opened.env.begin(buffers=True) as transaction:
            check, data = transaction.get(key, db=opened.checks), transaction.get(key, db=opened.files)
            if check is None:
                raise DataError(f"{self.root / relative}: there is no such file in this packed data set")
            if data is None:
                raise DataError(f"{self.root / relative}: the bytes of this packed file are missing; pack it again")
            if len(check) != _CHECK.size or _CHECK.unpack(check) != (len(data), zlib.crc32(data)):
                raise DataError(f"{self.root / relative}: this packed file is damaged; pack the data set again")
            return bytes(data)

    def is_file(self, relative: PurePath | str) -> bool:
        """Whether there is such a file."""
        key = _key(relative)
        with self._reading(os.fsdecode(key)) as opened, opened.env.begin(db=opened.checks) as transaction:
            return bool(key) and transaction.get(key) is not None

    def is_dir(self, relative: PurePath | str) -> bool:
        """Whether there is such a folder; the root is one."""
        prefix = _prefix(relative)
        with self._reading(str(relative)) as opened, opened.env.begin(db=opened.checks) as transaction:
            cursor = transaction.cursor()
            return not prefix or (cursor.set_range(prefix) and cursor.key().startswith(prefix))

    def list_directory(self, relative: PurePath | str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the files and of the folders directly in a folder, sorted; none where there is no such folder.

        Args:
            relative: the folder, below the root; empty for the root.
        """
        prefix = _prefix(relative)
        files: list[str] = []
        folders: list[str] = []
        with self._reading(str(relative)) as opened, opened.env.begin(db=opened.checks) as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(prefix) if prefix else cursor.first()
            while found and (key := cursor.key()).startswith(prefix):
                name, slash, _ = key[len(prefix) :].partition(b"/")
                if slash:
                    folders.append(os.fsdecode(name))
                    found = cursor.set_range(prefix + name + b"0")  # "0" follows "/": behind all that lies below
                else:
                    files += [os.fsdecode(name)] if name else []
                    found = cursor.next()
        return tuple(files), tuple(folders)

    def close(self) -> None:
        """Let go of the database in this process; it is opened again when it is next read."""
        with _OPENING:
            opened = _OPEN.pop(self._where, None)
        if opened is not None:
            opened.env.close()

    @contextmanager
    def _reading(self, what: str) -> Iterator[_Opened]:
        """The database, opened for this process; its errors name the packed data set and what was read."""
        lmdb = import_lmdb()
        opened = _OPEN.get(self._where)
        if opened is None or opened.pid != os.getpid():
            opened = self._open()
        try:
            yield opened
        except lmdb.Error as error:
            raise DataError(f"{self.root}: {what} cannot be read ({error}); pack the data set again") from error

    def _open(self) -> _Opened:
        with _OPENING:
            opened = _OPEN.get(self._where)
            if opened is not None and opened.pid != os.getpid():
                opened.env.close()  # inherited by a fork: this closes the copy of this process only
                opened = None
            if opened is None:
                opened = _OPEN[self._where] = _open_database(self.root)
            return opened


def pack_folder(
    source: Path,
    target: Path,
    *,
    phases: Sequence[str] = ("train", "test"),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackSummary:
    """Pack a data set that lies in folders.

    Packed are all files in ``<phase>_<kind>/`` and ``<kind>/<phase>/`` that are not hidden, and the ``.json`` and
    ``.txt`` files beside these folders. Links are followed.

    Args:
        source: folder of the data set.
        target: the packed data set; appears complete or not at all.
        phases: which parts of it.
        overwrite: replace a packed data set found there.
        progress: called after each step; every file is one when written and one when read back.

    Returns:
        What was packed.

    Raises:
        DataError: if there is nothing to pack, a file cannot be read, the target exists or cannot be written.
        MissingExtraError: if lmdb is not installed.
    """
    started = time.monotonic()
    if source.is_file():
        raise DataError(
            f"{source} is a file, and data sets listed in JSON cannot be packed; train on the file as it is, or gather "
            "its directories in a folder such as train_A/<sequence> and pack that"
        )
    if not source.is_dir():
        raise DataError(f"{source}: there is no such data set folder; check the path")
    if is_packed(source):
        raise DataError(f"{source} is packed already; give the folder of the data set")
    parts = _find_parts(source, phases)
    files: dict[str, Path | None] = {
        entry.name: entry
        for entry in sorted(source.iterdir())
        if entry.suffix in _ROOT_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    }
    sequences = set()
    for phase, folder in parts:
        below = dict(_walk(source / folder, folder, ()))
        files.update(below)
        sequences |= {(phase, PurePosixPath(key).parent.relative_to(folder)) for key, path in below.items() if path}
    if not sequences:
        wanted = " or ".join(f"{phase}_A, A/{phase}" for phase in phases)
        raise DataError(f"{source}: there is nothing to pack; looked for files in folders such as {wanted}")
    record = {"source": source.resolve().name, "folders": [folder for _, folder in parts]}
    num_files, num_bytes = pack_files(files, target, record=record, overwrite=overwrite, progress=progress)
    size = (target / _DATA_FILE).stat().st_size
    return PackSummary(target, num_files, num_bytes, len(sequences), size, time.monotonic() - started)


def pack_files(
    files: Mapping[str, Path | None],
    target: Path,
    *,
    record: Mapping[str, Any],
    overwrite: bool = False,
    convert: Convert | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Pack any files, then read all of them back and compare.

    Args:
        files: by relative path with forward slashes; an empty folder is ``None`` under a path that ends in ``/``.
        target: the packed data set; appears complete or not at all.
        record: kept with the data set, in JSON.
        overwrite: replace a packed data set found there.
        convert: what is stored in place of a file's own bytes.
        progress: as for ``pack_folder``.

    Returns:
        The number of files, and the bytes that were stored.

    Raises:
        DataError: if a file cannot be read, its path is too long for a key, or the target exists or cannot be written.
        MissingExtraError: if lmdb is not installed.
    """
    lmdb = import_lmdb()
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    needed = _total_size(path for path in files.values() if path)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DataError(f"{target}: {needed / 1e6:.0f} MB are to be packed and {free / 1e6:.0f} MB are free; make room")
    # mkdtemp's own folder is private to the user; the payload inside gets ordinary permissions.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        payload = scratch / "packed"
        try:
            num_files, num_bytes = _write(lmdb, payload, files, record, convert, progress)
        except lmdb.Error as error:
            raise DataError(f"{target} cannot be written ({error}); check the free space and permissions") from error
        _verify(payload, target, num_files, progress)
        _sync_folder(payload)
        _swap(payload, target, scratch / "old")
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return num_files, num_bytes


def import_lmdb() -> ModuleType:
    """The ``lmdb`` module.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise MissingExtraError("packed data sets need the 'lmdb' extra: pip install \"fastv2v[lmdb]\"") from error
    module: ModuleType = lmdb
    return module


@dataclass(frozen=True)
class _Opened:
    """A database that this process has open."""

    env: Any
    files: Any
    checks: Any
    record: Mapping[str, Any]
    pid: int
    identity: tuple[int, int]


# LMDB lets a process open a database once, so all readers of a process share it. Nothing is kept here but open files.
_OPEN: Final[dict[str, _Opened]] = {}
_OPENING: Final = threading.Lock()


def _open_database(root: Path) -> _Opened:
    """Open for reading, after what LMDB does not look at itself."""
    lmdb = import_lmdb()
    if not is_packed(root):
        raise DataError(f"{root}: there is no packed data set; make one: fastv2v pack")
    file = os.stat(root / _DATA_FILE)
    if not file.st_size:
        raise DataError(f"{root}: {_DATA_FILE} is empty; copy it again or pack the data set again")
    try:
        # Databases are complete and never change: no locks. Reading ahead stays on: a picture spans many pages, which
        # would otherwise be fetched from a disk one by one, several times slower.
        env = lmdb.open(str(root), readonly=True, create=False, lock=False, meminit=False, max_dbs=2, max_readers=1)
    except lmdb.InvalidError as error:
        raise DataError(f"{root}: {_DATA_FILE} is no LMDB database, or damaged; pack the data set again") from error
    except lmdb.Error as error:
        raise DataError(
            f"{root}: the packed data set cannot be opened ({error}); check its permissions, or pack it again"
        ) from error
    try:
        # Reading a page behind the end of the file would end the process.
        if (env.info()["last_pgno"] + 1) * env.stat()["psize"] > file.st_size:
            raise DataError(f"{root}: {_DATA_FILE} is cut short; copy it or pack the data set again")
        with env.begin() as transaction:
            record = _parse_record(root, transaction.get(_RECORD_KEY))
        files, checks = (env.open_db(name, create=False) for name in (b"files", b"checks"))
        return _Opened(env, files, checks, record, os.getpid(), (file.st_dev, file.st_ino))
    except lmdb.Error as error:
        env.close()
        raise DataError(f"{root}: the packed data set is damaged ({error}); pack it again") from error
    except DataError:
        env.close()
        raise


def _parse_record(root: Path, content: bytes | None) -> Mapping[str, Any]:
    if content is None:
        raise DataError(f"{root} is an LMDB database of another program; pack the data set: fastv2v pack")
    try:
        record = json.loads(content)
    except ValueError as error:
        raise DataError(f"{root}: the record of this packed data set is damaged; pack it again") from error
    if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
        raise DataError(f"{root}: expected a packed data set of schema {_SCHEMA}; pack it again with this version")
    return record


def _forget_replaced(root: Path) -> None:
    """Close a database whose file has been replaced by another since, so that the new one is read."""
    _files_around.cache_clear()
    files = PackedFiles(root)
    opened = _OPEN.get(files._where)
    file = os.stat(os.path.join(root, _DATA_FILE))
    if opened is not None and opened.pid == os.getpid() and opened.identity != (file.st_dev, file.st_ino):
        files.close()


def _locate(path: PackedPath) -> tuple[PackedFiles, str]:
    """The packed data set that a path lies in, and the path below it."""
    where = os.path.abspath(path)
    files = _files_around(where if is_packed(path) else os.path.dirname(where))
    return files, where[len(str(files.root)) + 1 :]


@lru_cache(maxsize=4096)
def _files_around(directory: str) -> PackedFiles:
    """The packed data set at a folder or above it; kept, as looking for it takes longer than reading a file."""
    for root in (Path(directory), *Path(directory).parents):
        if is_packed(root):
            return PackedFiles(root)
    raise DataError(f"{directory}: the packed data set is gone, or was moved")


def _key(relative: PurePath | str) -> bytes:
    key = os.fsencode(PurePath(relative).as_posix())
    return b"" if key == b"." else key


def _prefix(relative: PurePath | str) -> bytes:
    """What the keys of everything below a folder begin with."""
    key = _key(relative)
    return key and key + b"/"


def _find_parts(source: Path, phases: Sequence[str]) -> list[tuple[str, str]]:
    """(phase, folder) of every kind of file, in both layouts."""
    folders = [entry for entry in sorted(source.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    vid2vid = [(phase, folder.name) for phase in phases for folder in folders if folder.name.startswith(f"{phase}_")]
    fast = [(phase, f"{folder.name}/{phase}") for phase in phases for folder in folders if (folder / phase).is_dir()]
    return vid2vid + [part for part in fast if part not in vid2vid]


def _walk(directory: Path, key: str, above: tuple[Path, ...]) -> Iterator[tuple[str, Path | None]]:
    """Files below a folder by key; links are followed, hidden entries are not, and no circle is walked twice."""
    real = directory.resolve()
    if real in above:
        return
    entries = [entry for entry in sorted(directory.iterdir()) if not entry.name.startswith(".")]
    if not entries:
        yield f"{key}/", None
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry, f"{key}/{entry.name}", (*above, real))
        elif entry.is_file():
            yield f"{key}/{entry.name}", entry


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that may not be replaced."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not is_packed(target):
        raise DataError(f"{target} exists and is no packed data set; choose another name")
    if not overwrite:
        raise DataError(f"{target} exists; choose another name, or overwrite it with --overwrite")


def _write(
    lmdb: ModuleType,
    payload: Path,
    files: Mapping[str, Path | None],
    record: Mapping[str, Any],
    convert: Convert | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Write a new database; returns the number of files and their bytes."""
    # Nobody else sees it yet, and it is synchronised once at the end: no locks, no waiting for the disk in between.
    env = lmdb.open(str(payload), map_size=4 * _BATCH_BYTES, max_dbs=2, lock=False, sync=False, meminit=False)
    try:
        tables = env.open_db(b"files"), env.open_db(b"checks")
        keys = sorted((os.fsencode(key), path) for key, path in files.items())
        total = 2 * sum(path is not None for _, path in keys)
        num_files = num_bytes = pending = 0
        batch: list[tuple[bytes, bytes | None]] = []
        for key, path in keys:
            if len(key) > env.max_key_size():
                limit = env.max_key_size()
                raise DataError(f"{os.fsdecode(key)}: a packed path has at most {limit} bytes; shorten its names")
            data = None if path is None else _read(path)
            if convert is not None and data is not None:
                data = convert(os.fsdecode(key), data)
            batch.append((key, data))
            if data is not None:
                num_files, num_bytes, pending = num_files + 1, num_bytes + len(data), pending + len(data)
                if progress is not None:
                    progress(num_files, total)
            if pending >= _BATCH_BYTES:
                _put(lmdb, env, tables, batch)
                batch, pending = [], 0
        _put(lmdb, env, tables, batch)
        complete = {"schema": _SCHEMA, **record, "num_files": num_files, "num_bytes": num_bytes}
        with env.begin(write=True) as transaction:
            transaction.put(_RECORD_KEY, json.dumps(complete).encode())
        env.sync(True)
    finally:
        env.close()
    return num_files, num_bytes


def _put(lmdb: ModuleType, env: Any, tables: tuple[Any, Any], batch: Sequence[tuple[bytes, bytes | None]]) -> None:
    """Write a batch in one transaction, in a larger map if this one is full."""
    files, checks = tables
    while True:
        try:
            with env.begin(write=True) as transaction:
                for key, data in batch:
                    size_and_crc = _CHECK.pack(len(data or b""), zlib.crc32(data or b""))
                    transaction.put(key, size_and_crc, db=checks, append=True)
                    if data is not None:
                        transaction.put(key, data, db=files, append=True)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])


def _total_size(paths: Iterable[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise DataError(f"{error.filename}: the file cannot be read ({error.strerror})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror})") from error


def _verify(payload: Path, target: Path, num_files: int, progress: Progress | None) -> None:
    """Read everything back as a reader would."""
    packed = PackedFiles(payload)
    try:
        paths = packed.paths()
        if len(paths) != num_files:
            raise DataError(f"{target}: {num_files} files were written and {len(paths)} are found again; try again")
        for done, path in enumerate(paths, num_files + 1):
            packed.read_bytes(path)
            if progress is not None:
                progress(done, 2 * num_files)
    finally:
        packed.close()


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put ``new`` in the place of ``target``, and put ``target`` back if that fails."""
    replaces = target.exists()
    if replaces:
        PackedFiles(target).close()
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if replaces:
            os.replace(old, target)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; only POSIX systems can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
