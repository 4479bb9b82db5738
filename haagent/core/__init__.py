"""The decisions of haagent: pure functions over frozen facts. No I/O, clock, thread or log in here."""
