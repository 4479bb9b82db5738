"""Planted bugs: patches of the source, applied by content to a private copy of the tree.

Theory. `mutants/<name>.patch` begins with the bug in one line and the checks expected to catch it, then holds
an ordinary unified diff. Line numbers are not looked at: the old text of each hunk must occur exactly once in
its file, so a patch survives changes elsewhere and never lands in the wrong place. One that does not fit any
more is an error that names the mutant, the file and the text. The checkout itself is never written to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "mutants"
#: What a simulation needs of the checkout.
_COPIED = ("haagent", "dcs", "postgres_ctl", "tests/__init__.py", "tests/simulation")
#: Nor are byte code files that somebody is just writing.
_UNWANTED = shutil.ignore_patterns("mutants", "*.pyc.*")
_BUG, _CAUGHT = "Bug: ", "Caught by: "


class BadPatch(Exception):
    """A patch cannot be read, or does not fit the source any more."""


@dataclass(frozen=True)
class Edit:
    """One hunk: `old` is replaced by `new` in `path`, whole lines each."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    name: str
    #: The bug, in one line.
    bug: str
    #: Checks any of which may catch it.
    expected: tuple[str, ...]
    edits: tuple[Edit, ...]


def mutants(folder: Path = FOLDER) -> tuple[Mutant, ...]:
    """All of them, by name. Raises BadPatch."""
    return tuple(read(path.stem, path.read_text()) for path in sorted(folder.glob("*.patch")))


def read(name: str, text: str) -> Mutant:
    """The patch `text`. Raises BadPatch."""
    lines = text.splitlines()
    if len(lines) < 2 or not lines[0].startswith(_BUG) or not lines[1].startswith(_CAUGHT):
        raise BadPatch(f"{name}: does not begin with {_BUG!r} and {_CAUGHT!r}")
    expected = tuple(word.strip() for word in lines[1].removeprefix(_CAUGHT).split(","))
    edits = tuple(_edits(name, lines[2:]))
    if not edits:
        raise BadPatch(f"{name}: no hunk")
    return Mutant(name, lines[0].removeprefix(_BUG), expected, edits)


def _edits(name: str, lines: list[str]) -> Iterator[Edit]:
    path, old, new = "", list[str](), list[str]()
    for line in [*lines, "@@"]:
        if line.startswith(("@@", "--- ")):
            if old or new:
                yield Edit(path, _joined(old), _joined(new))
            old, new = [], []
        elif line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif path and line[:1] in (" ", "-", "+"):
            if line[0] != "+":
                old.append(line[1:])
            if line[0] != "-":
                new.append(line[1:])
        elif line:
            raise BadPatch(f"{name}: not of a unified diff: {line!r}")


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def mutated(mutant: Mutant, root: Path = ROOT) -> dict[str, str]:
    """Path -> text of the files that `mutant` changes, changed. Raises BadPatch."""
    files: dict[str, str] = {}
    for edit in mutant.edits:
        before = files.get(edit.path) or (root / edit.path).read_text()
        # A hunk begins at the beginning of a line.
        found = f"\n{before}".count(f"\n{edit.old}")
        if found != 1:
            raise BadPatch(
                f"{mutant.name}: this text occurs {found} times in {edit.path}, not once: the source has "
                f"changed, so change the patch:\n{edit.old}"
            )
        files[edit.path] = f"\n{before}".replace(f"\n{edit.old}", f"\n{edit.new}", 1)[1:]
    for path, text in files.items():
        try:
            compile(text, path, "exec")
        except SyntaxError as fault:
            raise BadPatch(f"{mutant.name}: {path} does not compile any more: {fault}") from None
    return files


def plant(mutant: Mutant | None, into: Path) -> None:
    """Copy what a simulation needs into the empty directory `into`, with the bug (None: without one)."""
    changed = mutated(mutant) if mutant is not None else {}
    for name in _COPIED:
        source, target = ROOT / name, into / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            # Byte code comes along, with times that fit: compiling everything anew would cost a second.
            shutil.copytree(
                source, target, symlinks=True, ignore=shutil.ignore_patterns("mutants", "*.pyc.*")
            )
    for path, text in changed.items():
        (into / path).write_text(text)
        for stale in (into / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
            stale.unlink()


def run_in(tree: Path, module: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """`python -m module` of the copy in `tree`, a process of its own. Raises subprocess.TimeoutExpired."""
    # Its own directory comes first on the path of `python -m`; nothing else may be found before it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
