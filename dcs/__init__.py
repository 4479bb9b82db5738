"""Distributed configuration stores: records, the port, and one adapter per backend."""
