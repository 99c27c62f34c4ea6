"""Where every rank is, readable even when the rank is stopped or dead: one small file the ranks map into memory.

A write costs well under a microsecond, so that a rank may note its stage inside a timed iteration. Owns the
file's layout.

    board = Board.create(path, ranks=2)   # the controller
    Board(path).note(rank, "denoise", 3)  # a rank
    board.read(1)                         # ("denoise", 3)
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SLOT = struct.Struct("<16sq")  # stage, iteration
NO_ITERATION = -1


def place(stage: str, iteration: int) -> str:
    """A note in words: `denoise 3`, or the stage alone outside an iteration."""
    return f"{stage} {iteration}" if iteration >= 0 else stage


class Board:
    """A slot a rank: its stage and iteration."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, ranks: int) -> Board:
        """A new file with an empty slot for each rank."""
        path.write_bytes(SLOT.pack(b"start", NO_ITERATION) * ranks)
        return cls(path)

    def note(self, rank: int, stage: str, iteration: int = NO_ITERATION) -> None:
        """Says where the rank is from now on."""
        SLOT.pack_into(self._memory, rank * SLOT.size, stage.encode(), iteration)

    def read(self, rank: int) -> tuple[str, int]:
        """The rank's last note."""
        stage, iteration = SLOT.unpack_from(self._memory, rank * SLOT.size)
        return stage.rstrip(b"\0").decode(), iteration
