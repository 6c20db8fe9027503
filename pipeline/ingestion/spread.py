"""Where pieces are read: in this process, in one a core, or as Ray tasks on all nodes of a cluster.

All do the same with a piece, and leave what came of it in the same place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from adu import storage
from adu.errors import UserError
from pipeline.ingestion.image_checks import collected_warnings
from pipeline.ingestion.image_reader import ImageReader, ReadSettings
from pipeline.ingestion.pieces import Journal, Piece

# While the last images of a piece are read, so are the first ones of the next.
PIECES_AT_ONCE = 2
# Tasks that are sent to a cluster for each of its cores: one at work, one on its way.
TASKS_PER_CORE = 2
# How often a piece is read whose node dies.
MAX_RETRIES = 10

ReadPieces = Callable[[Iterable[Piece]], Iterator[tuple[Piece, str]]]


def read_all(
    pieces: Callable[[], Iterable[Piece]],
    known: dict[str, str],
    read: ReadPieces,
    start: Callable[[int], None],
    advance: Callable[[int], None],
) -> list[str]:
    """Reads images, or what is left of them.

    Args:
        pieces: Gives all of them.
        known: Parts that are there, by the keys of their pieces.
        read: Reads pieces, and gives each with its part when it is saved.
        start: Told how many images have been read before.
        advance: Told how many further images have been read.

    Returns:
        Names of all pieces' parts, in no particular order.
    """
    parts = []
    n_before = 0
    for piece in pieces() if known else ():
        if piece.key in known:
            parts.append(known[piece.key])
            n_before += piece.rows.num_rows
    start(n_before)
    todo = (piece for piece in pieces() if piece.key not in known)
    for piece, part in read(todo):
        parts.append(part)
        advance(piece.rows.num_rows)
    return parts


def read_here(settings: ReadSettings, journal: Journal) -> ReadPieces:
    """Reads in this process."""

    def read(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
        reader = ImageReader(settings, journal)
        under_way: dict[Future[str], Piece] = {}
        with collected_warnings(), ThreadPoolExecutor(PIECES_AT_ONCE) as threads:
            try:
                for piece in pieces:
                    under_way[threads.submit(reader.read, piece)] = piece
                    if len(under_way) >= PIECES_AT_ONCE:
                        yield from _ended(under_way)
                while under_way:
                    yield from _ended(under_way)
            finally:
                reader.close()

    return read


def _ended(under_way: dict[Future[str], Piece]) -> Iterator[tuple[Piece, str]]:
    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
        yield under_way.pop(future), future.result()


def read_in_processes(settings: ReadSettings, journal: Journal, n_processes: int) -> ReadPieces:
    """Reads in processes of this machine: threads that decode would wait for the interpreter."""

    def read(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
        todo, under_way = iter(pieces), dict[Connection, Piece]()
        readers = [_start(settings, journal) for _ in range(n_processes)]
        try:
            for (connection, _), piece in zip(readers, todo, strict=False):
                under_way[connection] = piece
                connection.send(piece)
            while under_way:
                ready = wait_for(list(under_way))
                for connection in [each for each in under_way if each in ready]:
                    done = under_way.pop(connection), _answer(connection)
                    if (further := next(todo, None)) is not None:
                        under_way[connection] = further
                        with suppress(ConnectionError):  # told by its answer
                            connection.send(further)
                    yield done
        finally:
            for _, process in readers:
                process.terminate()
                process.join()

    return read


def _start(settings: ReadSettings, journal: Journal) -> tuple[Connection, SpawnProcess]:
    """Starts a process that reads the pieces which it is sent."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs, settings, journal), daemon=True)
    process.start()
    # Or else nobody would notice the end of either.
    theirs.close()
    return ours, process


def _serve(pieces: Connection, settings: ReadSettings, journal: Journal) -> None:
    """Reads pieces, one after another, for as long as there is somebody who wants them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a matter of who has started this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            pieces.send(_read_alone(pieces.recv(), settings, journal, ()))


def _end_with_parent() -> None:
    """A parent that was killed says nothing; a piece may wait long for its store."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(process: Connection) -> str:
    try:
        part, error = process.recv()
    except (EOFError, ConnectionError):
        error = "a process that reads images was killed (out of memory?); what is read is kept"
    if error:
        raise UserError(error)
    return str(part)


def read_on_cluster(settings: ReadSettings, journal: Journal, folders: Sequence[str]) -> ReadPieces:
    """Reads on all nodes of the Ray cluster that this process is connected to.

    Args:
        settings: How.
        journal: Where what came of a piece is saved.
        folders: Local folders that all nodes must see.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(
        _read_alone
    )

    def ended(under_way: dict[Any, Piece]) -> Iterator[tuple[Piece, str]]:
        done, _ = ray.wait(list(under_way), num_returns=1)
        for reference in done:
            piece = under_way.pop(reference)
            part, error = ray.get(reference)
            if error:
                raise UserError(error)
            yield piece, part

    def read(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
        under_way: dict[Any, Piece] = {}
        try:
            for piece in pieces:
                under_way[task.remote(piece, settings, journal, folders)] = piece
                # Asked anew: nodes come and go.
                if len(under_way) >= TASKS_PER_CORE * ray.cluster_resources().get("CPU", 1):
                    yield from ended(under_way)
            while under_way:
                yield from ended(under_way)
        finally:
            for reference in under_way:
                ray.cancel(reference)

    return read


def _read_alone(
    piece: Piece, settings: ReadSettings, journal: Journal, folders: Sequence[str]
) -> tuple[str, str]:
    """Reads a piece in a process of its own; gives its part, or what is wrong."""
    import ray

    for folder in folders:
        if storage.is_local(folder) and not Path(storage.local_path(folder)).exists():
            node = ray.util.get_node_ip_address()
            return "", f"{folder}: is not seen on node {node} (give a URL, or a shared folder)"
    try:
        with closing(ImageReader(settings, journal)) as reader, collected_warnings():
            return reader.read(piece), ""
    except UserError as error:
        return "", str(error)
