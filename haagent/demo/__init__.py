"""`haagent demo`: three nodes on this machine, faults, and the bill: write gaps and lost rows.

Theory. Nothing is simulated: three agents run as they would in production, with three PostgreSQL servers and
the embedded store, in one directory. A process of its own writes rows through all of it and notes which were
acknowledged; at the end the ids are compared with the table. The demo itself only looks, asks over REST and
kills; what it shows are the agents' own events.

By file: options (command line, what ends the run), machine (which user, which PostgreSQL, which ports), node
(one member's files and processes), cluster (three of them, and the end of everything), processes (whose
process is it), writer (the separate process), evidence (what its notes prove), watch (the background look),
screen (table or lines), story (what is done, in order).
"""

from haagent.demo.options import main

__all__ = ["main"]
