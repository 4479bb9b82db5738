"""Logging that cannot hold anybody up: records go into a bounded queue, one thread writes them.

Theory. A thread that keeps a lease must never wait for a reader of stderr or for a disk. `emit` therefore
renders nothing and writes nothing: it puts the record into a queue, or counts it as lost when the queue
holds `log.max_queue_size` already. The writer tells how many were lost as soon as it can write again.
Raw `os.write` is used, no shared stream, so that a writer that is stuck cannot stop the process's exit.

Types: `plain` are lines for people (contract 7.3); `logfmt` and `json` carry the fields of events, too,
and leave out heartbeats that repeat the one before. Known secrets are blanked out of every line.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import queue
import re
import select
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from haagent.config.types import LogConfig

T = TypeVar("T")

#: In `log.dir`; the name is contract.
FILE_NAME = "patroni.log"
STDERR = 2
#: From this length on a secret is blanked inside words, too; shorter ones ("rep") only as whole words.
_LONG_SECRET = 8
MASK = "***"

logger = logging.getLogger(__name__)


# --- the queue and its thread -------------------------------------------------------------------


@dataclass(frozen=True)
class _Do:
    """In the queue between items: something to run in the writer's thread."""

    action: Callable[[], object]


class Spool(Generic[T]):
    """A bounded queue and the daemon thread that hands its items to `write`, one by one.

    `put` never blocks and may be called from a signal handler. `write(item, lost)` gets the number of items
    lost since the last one; what it raises is dropped, with the item.
    """

    def __init__(self, write: Callable[[T, int], None], maximum: int, name: str) -> None:
        self._write, self.maximum = write, maximum
        self._queue: queue.SimpleQueue[T | _Do | None] = queue.SimpleQueue()
        self.lost_total = 0
        self._lost_reported = 0
        self._counting = threading.RLock()  # reentrant: a signal handler may log, too
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items not written yet."""
        return self._queue.qsize()

    def put(self, item: T) -> bool:
        """False when the queue is full: the item is lost, and counted."""
        if self._queue.qsize() < self.maximum:
            self._queue.put(item)
            return True
        with self._counting:
            self.lost_total += 1
        return False

    def between(self, action: Callable[[], object]) -> None:
        """Run `action` in the writer's thread, after everything put before."""
        self._queue.put(_Do(action))

    def flush(self, deadline_s: float) -> bool:
        """Wait until everything put before is written; False when that took longer than `deadline_s`."""
        done = threading.Event()
        self.between(done.set)
        return done.wait(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Write what is queued and end the thread; False when it did not get there in time."""
        self._queue.put(None)
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._handle(item)
            except Exception:  # noqa: S112 - a log that cannot be written has nowhere to say so
                continue

    def _handle(self, item: T | _Do) -> None:
        if isinstance(item, _Do):
            item.action()
            return
        lost = self.lost_total - self._lost_reported
        self._write(item, lost)
        self._lost_reported += lost


# --- rendering ----------------------------------------------------------------------------------


class Secrets:
    """Blanks known secrets out of text. An empty one changes nothing."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1])}
        parts = [
            re.escape(form) if len(form) >= _LONG_SECRET else rf"(?<!\w){re.escape(form)}(?!\w)"
            for form in sorted(forms, key=len, reverse=True)
        ]
        self._pattern = re.compile("|".join(parts)) if parts else None

    def masked(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text


class PlainFormatter(logging.Formatter):
    """`log.format` as logging knows it; default time `2030-01-01 10:00:00,123`."""

    def __init__(self, config: LogConfig) -> None:
        text = config.format if isinstance(config.format, str) else LogConfig().format
        super().__init__(str(text), config.dateformat, defaults=dict(config.static_fields))
        self._tracebacks = _shows_tracebacks(config)

    def format(self, record: logging.LogRecord) -> str:
        if not self._tracebacks:
            record.exc_info = record.exc_text = record.stack_info = None
        return super().format(record)


class FieldsFormatter(logging.Formatter):
    """One line of named fields per record: `logfmt` or `json`."""

    def __init__(self, config: LogConfig) -> None:
        super().__init__(datefmt=config.dateformat)
        self._static = dict(config.static_fields)
        self._tracebacks = _shows_tracebacks(config)
        self._as_json = config.type == "json"
        self._names = _json_fields(config) if self._as_json else _LOGFMT_FIELDS

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record) if self._as_json else _iso_time(record.created)
        fields = {alias: getattr(record, name, None) for name, alias in self._names}
        fields |= _event(record)
        if record.exc_info and self._tracebacks:
            fields["exc_info"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        fields |= self._static
        fields = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(fields, default=str, ensure_ascii=False) if self._as_json else logfmt(fields)


_LOGFMT_FIELDS = (("asctime", "time"), ("levelname", "level"), ("message", "msg"))


def _json_fields(config: LogConfig) -> tuple[tuple[str, str], ...]:
    if not isinstance(config.format, str):
        return config.format
    return tuple((name, name) for name in re.findall(r"%\((\w+)\)", config.format))


def _event(record: logging.LogRecord) -> dict[str, Any]:
    event = getattr(record, "event", None)
    return dict(event) if isinstance(event, Mapping) else {}


def _iso_time(unix_time: float) -> str:
    return datetime.fromtimestamp(unix_time, UTC).isoformat(timespec="milliseconds")


def _shows_tracebacks(config: LogConfig) -> bool:
    """Contract 5.2: tracebacks belong to `traceback_level`, visible when `level` lets that through."""
    return _number(config.level) <= _number(config.traceback_level)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


_BARE = re.compile(r"^[^\s\"=\x00-\x1f]+$")


def logfmt(fields: Mapping[str, Any]) -> str:
    """`{"rule": "R1", "msg": "a b"}` -> `rule=R1 msg="a b"`."""
    return " ".join(f"{name}={_logfmt_value(value)}" for name, value in fields.items())


def _logfmt_value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.match(text) else json.dumps(text, ensure_ascii=False)


# --- where lines go -----------------------------------------------------------------------------


class Target:
    """A file descriptor that is not ours to close: stderr."""

    def __init__(self, fd: int = STDERR) -> None:
        self._fd = fd

    def write(self, line: bytes) -> None:
        """Write all of `line`, waiting as long as the reader takes. Raises OSError."""
        write_all(self._fd, line)

    def close(self) -> None:
        """Nothing to close."""


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class RotatingFile(Target):
    """`path`, renamed to `path.1` … `path.<keep>` when it outgrows `size_bytes`."""

    def __init__(self, path: str, size_bytes: int, keep: int, mode: int | None = None) -> None:
        """Opens the file, creating its directory. Raises OSError."""
        self._path, self._size_bytes, self._keep, self._mode = path, size_bytes, keep, mode
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o666 if self._mode is None else self._mode)
        if self._mode is not None:
            os.fchmod(self._fd, self._mode)
        self._written = os.fstat(self._fd).st_size

    def write(self, line: bytes) -> None:
        if self._written and self._written + len(line) > self._size_bytes:
            self._rotate()
        super().write(line)
        self._written += len(line)

    def _rotate(self) -> None:
        names = [self._path, *(f"{self._path}.{n}" for n in range(1, self._keep + 1))]
        if self._keep == 0:
            os.ftruncate(self._fd, 0)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if os.path.exists(newer):
                os.replace(newer, older)
        old = self._fd
        self._open()
        os.close(old)

    def close(self) -> None:
        os.close(self._fd)


# --- the handler --------------------------------------------------------------------------------


class QueueingHandler(logging.Handler):
    """The one handler of the process: queues records, and writes them in its own thread."""

    def __init__(self, config: LogConfig, secrets: Iterable[str] = (), stderr_fd: int = STDERR) -> None:
        super().__init__()
        self._stderr = Target(stderr_fd)
        self._target: Target = self._stderr
        self._apply(config, Secrets(secrets), self._open_target(config))
        self.spool: Spool[logging.LogRecord] = Spool(self._write, config.max_queue_size, "log-writer")

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; never blocks, never raises."""
        try:
            if self._drops_repeats and getattr(record, "repeated", False):
                return
            queued = copy.copy(record)
            queued.msg, queued.args = record.getMessage(), None
            self.spool.put(queued)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A record that cannot even be rendered is dropped: logging must not disturb its caller."""

    def reconfigure(self, config: LogConfig, secrets: Iterable[str] = ()) -> None:
        """Write everything from now on by `config`; records queued before keep the old way."""
        target = self._open_target(config)
        masks = Secrets(secrets)
        self.spool.maximum = config.max_queue_size
        self.spool.between(lambda: self._apply(config, masks, target))

    def _apply(self, config: LogConfig, secrets: Secrets, target: Target) -> None:
        old, self._target = self._target, target
        if old is not target:
            old.close()
        self._drops_repeats = config.type != "plain" or config.deduplicate_heartbeat_logs
        self._secrets = secrets
        self.formatter = PlainFormatter(config) if config.type == "plain" else FieldsFormatter(config)

    def _open_target(self, config: LogConfig) -> Target:
        """stderr, or the file in `log.dir`. A file that cannot be opened must not stop the agent."""
        if config.dir is None:
            return self._stderr
        path = os.path.join(config.dir, FILE_NAME)
        try:
            return RotatingFile(path, config.file_size_bytes, config.file_num, config.mode)
        except OSError as e:
            logger.error("log.dir %r cannot be used, writing to stderr: %s", config.dir, e.strerror)
            return self._stderr

    def _write(self, record: logging.LogRecord, lost: int) -> None:
        lines = [self.format(record)]
        if lost:
            lines.insert(0, self.format(_lost_record(lost)))
        text = "".join(f"{self._secrets.masked(line)}\n" for line in lines)
        self._target.write(text.encode("utf-8", "replace"))


def _lost_record(lost: int) -> logging.LogRecord:
    text = f"{lost} log records were lost: the queue was full"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
    record.event = {"lost": lost}
    return record


_handler: QueueingHandler | None = None
_configured_loggers: set[str] = set()


def configure(config: LogConfig, secrets: Iterable[str] = (), stderr_fd: int = STDERR) -> QueueingHandler:
    """Send all logging of this process through one queue, as `config` says. Call again to reload.

    `secrets` are values that must never show. Nothing is raised: an unusable directory means stderr.
    """
    global _handler
    if _handler is None:
        _handler = QueueingHandler(config, secrets, stderr_fd)
        logging.getLogger().addHandler(_handler)
    else:
        _handler.reconfigure(config, secrets)
    _set_levels(config)
    return _handler


def _set_levels(config: LogConfig) -> None:
    logging.getLogger().setLevel(config.level)
    for name in _configured_loggers - set(config.loggers):
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in config.loggers.items():
        logging.getLogger(name).setLevel(level)
    _configured_loggers.clear()
    _configured_loggers.update(config.loggers)


def lost_records() -> int:
    """Records lost since the start, for `/metrics` and `/patroni`."""
    return _handler.spool.lost_total if _handler else 0


def queued_records() -> int:
    """Records that wait to be written, for `/patroni`."""
    return _handler.spool.waiting if _handler else 0


def shutdown(deadline_s: float) -> bool:
    """Write what is queued and stop logging; False when it could not all be written (exit code 5)."""
    global _handler
    if _handler is None:
        return True
    handler, _handler = _handler, None
    logging.getLogger().removeHandler(handler)
    return handler.spool.close(deadline_s)
