"""A second process on one SQLite store, driven by the tests of it. Run with: path, what to do.

write       put `status` again and again, one line of output after each
hold        take the write lock and keep it until killed; says "holding"
take        take `leader` for 2 s; says the session
"""

from __future__ import annotations

import sqlite3
import sys
import threading

from dcs.api import Ok
from dcs.local import LocalDcs


def main(path: str, task: str) -> None:
    if task == "hold":
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("holding", flush=True)
        threading.Event().wait()
    client = LocalDcs(path)
    if task == "take":
        session = client.open_session(2, 10)
        client.take_leader(session, "peer", 10)
        print(session, flush=True)
        threading.Event().wait()
    number = 0
    while isinstance(client.put("status", str(number), 10), Ok):
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
