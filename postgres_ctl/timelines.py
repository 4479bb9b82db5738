"""History files as place holders: numbers of timelines that must not be used again (hazard H15).

A server that is promoted begins the first timeline, counted up from its own, that has no history file in
pg_wal. Where another member was told to make that number and was not heard of since, a file without any
switch takes the place: the next number is used, and a walreceiver that fetches every history file up to the
primary's timeline still finds one. A standby at work passes over a timeline that is no child of its own, but
one that *starts* with it as the newest ends at once: so those are removed before every start. A real history
file among them comes again with the stream.
"""

from __future__ import annotations

import os

from postgres_ctl.config_files import file_mode
from postgres_ctl.controldata import history_path, read_history
from postgres_ctl.datadir import fsync_dir, write_synced
from postgres_ctl.errors import DataDirError
from postgres_ctl.facts import ControlData, goes_on_in

_TEXT = "# held free by haagent: another member was told to make this timeline\n"


def hold_numbers(data_dir: str, above: int, wanted: int) -> None:
    """From timeline `above`, the next promotion here makes timeline `wanted`: durable when this returns.

    Raises DataDirError when a history file is in the way, or none can be written."""
    for number in range(above + 1, wanted):
        path = history_path(data_dir, number)
        try:
            if not os.path.lexists(path):
                write_synced(path, _TEXT, file_mode(data_dir, path))
        except OSError as e:
            raise DataDirError(f"cannot write {path}: {e.strerror}") from None
    if os.path.lexists(history_path(data_dir, wanted)):
        raise DataDirError(f"timeline {wanted} exists already: {history_path(data_dir, wanted)}")


def drop_held(data_dir: str, above: int) -> None:
    """Remove the place holders of numbers above timeline `above`: in a cluster that follows another one those
    are the other's to make, and a running standby takes a file that is there for the real one.

    Raises DataDirError."""
    folder = os.path.dirname(history_path(data_dir, above))
    try:
        for name in os.listdir(folder):
            number, ending = name[:8], name[8:]
            if ending != ".history" or not _is_hexadecimal(number) or int(number, 16) <= above:
                continue
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8", errors="replace") as file:
                held = file.read(len(_TEXT) + 1) == _TEXT
            if held:
                os.unlink(path)
    except OSError as e:
        raise DataDirError(f"cannot clear place holders in {folder}: {e.strerror}") from None


def _is_hexadecimal(text: str) -> bool:
    return bool(text) and all(c in "0123456789ABCDEF" for c in text)


def free_numbers(data_dir: str, control: ControlData) -> None:
    """Remove the newest history files, while a server in this state could not start with them.

    Raises DataDirError."""
    newest = control.newest_timeline
    while os.path.lexists(history_path(data_dir, newest + 1)):
        newest += 1
    while newest > control.newest_timeline:
        path = history_path(data_dir, newest)
        if goes_on_in(control, read_history(data_dir, newest) or ()):
            return
        try:
            os.unlink(path)
            fsync_dir(os.path.dirname(path))
        except OSError as e:
            raise DataDirError(f"cannot remove {path}: {e.strerror}") from None
        newest -= 1
