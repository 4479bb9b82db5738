"""Everything haagent knows about one PostgreSQL instance: facts, files, processes and tools."""
