"""What may happen to the files of a journal, and whether anybody could tell."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .script import Damage

FILES = ("", "-wal", "-shm", "-lock")
Snapshot: TypeAlias = dict[str, bytes]


@dataclass
class Files:
    """The files of one journal, and copies of what they were."""

    folder: Path
    path: Path = field(init=False)
    """The journal as the next run names it."""
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])
    done: list[str] = field(default_factory=list[str])
    """What has happened, in words."""
    forgotten: bool = False
    """Whether what is left is a whole journal of an earlier time, or none at all: then
    nobody can know what came after it."""

    def __post_init__(self) -> None:
        self.path = self.folder / "run.journal"
        self._names = 0

    def _new_name(self, kind: str) -> Path:
        self._names += 1
        return self.folder / f"{kind}-{self._names}.journal"

    def at(self, suffix: str) -> Path:
        """Return the path of one of the files."""
        return Path(f"{self.path.resolve()}{suffix}")

    def keep(self) -> None:
        """Copy the files as they are."""
        found = {
            suffix: self.at(suffix).read_bytes()
            for suffix in FILES
            if self.at(suffix).is_file()
        }
        self.snapshots.append(found)

    def damage(self, damage: Damage, *, live: bool) -> None:
        """Do what a part of the script says.

        Args:
            damage: It.
            live: Whether a process is using the journal.
        """
        target = self.at(damage.file)
        before = {suffix for suffix in FILES[:2] if self._size(suffix)}
        act = getattr(self, f"_{damage.kind}", None)
        assert act is not None, damage.kind
        if act(target, damage):
            when = "in use" if live else "at rest"
            self.done.append(f"{damage.kind}({damage.file or 'main'}) {when}")
        left = {suffix for suffix in FILES[:2] if self._size(suffix)}
        if before and not left:
            self.forgotten = True

    def note_what_is_left(self) -> None:
        """Look at what a run has left behind that lost its file while it went on.

        SQLite removes the -wal when it closes a file, also one that is not there.
        """
        lost = any(each.endswith("(main) in use") for each in self.done)
        if lost and not any(self._size(suffix) for suffix in FILES[:2]):
            self.forgotten = True

    def _size(self, suffix: str) -> int:
        path = self.at(suffix)
        return path.stat().st_size if path.is_file() else 0

    def _lose(self, target: Path, _: Damage) -> bool:
        if there := target.is_file():
            target.unlink()
        return there

    def _empty(self, target: Path, _: Damage) -> bool:
        if there := target.is_file() and target.stat().st_size > 0:
            target.write_bytes(b"")
        return there

    def _cut(self, target: Path, damage: Damage) -> bool:
        if not target.is_file() or not (size := target.stat().st_size):
            return False
        cut = damage.value % size
        if damage.value % 2:
            cut -= cut % 512
        os.truncate(target, cut)
        return True

    def _flip(self, target: Path, damage: Damage) -> bool:
        if not target.is_file() or not (data := bytearray(target.read_bytes())):
            return False
        places: Sequence[int] = range(len(data))
        # Most of a file is empty, and a flip there says little. In an id it says most.
        if damage.value % 3 == 1:
            places = [each for each, byte in enumerate(data) if byte]
        elif damage.value % 3:
            found = re.finditer(rb"re_1attack\d+", data)
            places = [at for match in found for at in range(*match.span())]
        at = (places or range(len(data)))[damage.value // 8 % len(places or data)]
        data[at] ^= 1 << damage.value % 8
        with target.open("r+b") as file:  # the same file: its name is not the damage
            file.write(data)
        return True

    def _zero(self, target: Path, damage: Damage) -> bool:
        if not target.is_file() or not (size := target.stat().st_size):
            return False
        at = damage.value % size // 512 * 512
        with target.open("r+b") as file:
            file.seek(at)
            file.write(b"\0" * min(512, size - at))
        return True

    def _restore(self, target: Path, damage: Damage) -> bool:
        """Put an old copy back."""
        if not self.snapshots:
            return False
        old = self.snapshots[damage.value % len(self.snapshots)]
        before = self._whole()
        suffixes = FILES if damage.file == "all" else (damage.file,)
        for suffix in suffixes:
            path = self.at(suffix)
            path.unlink(missing_ok=True)
            if suffix in old:
                path.write_bytes(old[suffix])
        del target
        if (now := self._whole()) == before:
            return False
        # What is there now may be a whole journal as it once was.
        for known in self.snapshots:
            if now == [known.get(suffix, b"") for suffix in FILES[:2]]:
                self.forgotten = True
        return True

    def _whole(self) -> list[bytes]:
        return [
            self.at(suffix).read_bytes() if self._size(suffix) else b""
            for suffix in FILES[:2]
        ]

    def _move(self, _: Path, damage: Damage) -> bool:
        """Move, or copy, only some of the files to another name."""
        if not self.at("").is_file():
            return False
        other = self._new_name("other")
        with_wal = damage.value % 3 == 0
        for suffix in FILES[:2] if with_wal else FILES[:1]:
            if self.at(suffix).is_file():
                shutil.copyfile(self.at(suffix), f"{other}{suffix}")
        if damage.value % 2:
            self.at("").unlink()
        self.path = other
        return not with_wal

    def alias(self, kind: str) -> Path:
        """Return another name of the journal."""
        name = self._new_name(kind)
        self.done.append(f"{kind}")
        if kind == "symlink":
            name.symlink_to(self.path)
        elif kind == "hardlink":
            if not self.path.exists():
                self.path.touch()
            os.link(self.path.resolve(), name)
        elif kind == "dots":
            return self.folder / ".." / self.folder.name / self.path.name
        else:
            return self.path
        return name
