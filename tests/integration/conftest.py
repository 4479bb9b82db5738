"""What several test modules need."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory in which the agents' user may read and write, too; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="haagent-shared-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
