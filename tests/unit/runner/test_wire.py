"""Lines over a real socket pair."""

from __future__ import annotations

import socket
from pathlib import Path

from xdit_bench.runner.board import Board
from xdit_bench.runner.wire import Link


def test_messages_survive_any_cut_of_the_stream() -> None:
    a, b = socket.socketpair()
    with a, b:
        receiver = Link(b)
        stream = b'{"n": 1}\n{"n": 2}\n{"text": "a\\nb"}\n'
        got = []
        for byte in range(len(stream)):
            a.sendall(stream[byte : byte + 1])
            got += receiver.receive() or []
        assert got == [{"n": 1}, {"n": 2}, {"text": "a\nb"}]


def test_closed_end_reads_as_none() -> None:
    a, b = socket.socketpair()
    with b:
        Link(a).send({"event": "hello"})
        a.close()
        receiver = Link(b)
        assert receiver.receive() == [{"event": "hello"}]
        assert receiver.receive() is None


def test_board_shows_each_ranks_last_note_to_another_reader(tmp_path: Path) -> None:
    reader = Board.create(tmp_path / "board", ranks=3)
    Board(tmp_path / "board").note(1, "denoise", 12)
    assert reader.read(1) == ("denoise", 12)
    assert reader.read(2) == ("start", -1)
