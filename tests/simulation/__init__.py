"""Many agents, unmodified, in one process and one thread, deterministically from one seed."""
