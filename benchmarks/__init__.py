"""haagent beside Patroni: the same machine, etcd, PostgreSQL, YAML and clients, in one run. `make bench`."""
