"""Packs behind an S3 store that fails, stalls, cuts and falsifies: retried, or named."""

import http.client
import io
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from infra.layout import Text
from infra.storage import Storage
from packing import packs as module
from packing.cost import Coefficients
from packing.members import Document
from packing.packs import Facts, PackError, open_packs
from packing.reader import PackStream
from packing.shards import PACK_INDEX, shard_name, write_shard

NUM_PACKS = 8


@dataclass
class Faults:
    """What the server in between does to the next requests for some files, one entry each."""

    queue: list[str] = field(default_factory=list)
    of: str = ".tar"  # requests whose path holds this
    over: threading.Event = field(default_factory=threading.Event)  # ends the silence
    lock: threading.Lock = field(default_factory=threading.Lock)
    met: list[str] = field(default_factory=list)

    def next(self, path: str) -> str:
        with self.lock:
            if self.of not in path or not self.queue:
                return ""
            self.met.append(self.queue.pop(0))
            return self.met[-1]


def serve(upstream: str, faults: Faults) -> ThreadingHTTPServer:
    """A server that passes every request on to ``upstream``, but for the faults."""
    host = upstream.removeprefix("http://")

    class Between(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            fault = faults.next(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if fault in ("500", "503"):
                code = {"500": "InternalError", "503": "SlowDown"}[fault]
                told = f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode()
                self.send_response(int(fault))
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)
                return
            if fault == "reset":
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if fault == "silent":
                self.close_connection = True
                faults.over.wait()
                return
            connection = http.client.HTTPConnection(host, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = bytearray(answer.read())
            if fault == "flip":
                data[len(data) // 2] ^= 1
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "content-length",
                    "connection",
                    "transfer-encoding",
                    "date",
                ):
                    self.send_header(name, value)
            told = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(told))
            self.end_headers()
            if fault == "cut":
                data = data[: len(data) // 2]
                self.close_connection = True
            if fault == "reset in mid-body":  # by RST, where "cut" ends the connection in order
                self.close_connection = True
                self.wfile.write(data[: len(data) // 2])
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.shutdown(socket.SHUT_RD)
                self.connection.close()
                return
            if fault in ("stall", "drip"):
                self.close_connection = True
                self.wfile.write(data[: len(data) // 2])
                while fault == "drip" and not faults.over.wait(0.05):
                    try:
                        self.wfile.write(b"\0")
                    except OSError:  # the client has given up
                        return
                faults.over.wait()
                return
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    for verb in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Between, f"do_{verb}", Between.pass_on)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def faults(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Faults]]:
    """A folder of packs on S3, reached through a server that may fail."""
    import s3fs

    storage, indexes = Storage(f"{s3}/packs"), []
    for number in range(2):
        file = io.BytesIO()
        packs = [
            (i, [Document(f"d{i}", 0, "text", "demo", (Text(np.full(300, i, np.int32)),))])
            for i in range(4 * number, 4 * number + 4)
        ]
        indexes.append(write_shard(file, shard_name(number), packs, Coefficients(1.0, 0.0, 0.0)))
        storage.write(shard_name(number), file.getvalue())
    storage.write_part("index.parquet", pa.concat_tables(indexes), PACK_INDEX, "pack")
    facts = Facts("tokenizer", "text", 64, 400, 256, "fixed_length", 2_000, 0)
    storage.write("packs.json", facts.to_json())
    injected = Faults()
    server = serve(s3_server, injected)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    yield storage.root, injected
    injected.over.set()
    server.shutdown()
    server.server_close()


def read(root: str, **options: object) -> list[int]:
    stream = PackStream(open_packs(root), **options)  # type: ignore[arg-type]
    return [pack.index if pack.error is None else -1 for pack in stream]


@pytest.mark.parametrize("fault", ["500", "503", "reset", "reset in mid-body", "cut", "flip"])
def test_a_fault_that_passes_is_not_noticed(faults: tuple[str, Faults], fault: str) -> None:
    root, injected = faults
    injected.queue = [fault, "", fault]
    assert read(root) == list(range(NUM_PACKS))
    assert injected.met.count(fault) == 2


def test_a_store_that_goes_on_falsifying_is_named(faults: tuple[str, Faults]) -> None:
    root, injected = faults
    injected.queue = ["flip"] * 100
    with pytest.raises(PackError, match=r"shard-000000\.tar, pack 0: the checksum differs"):
        read(root, prefetch=0)
    assert len(injected.met) == module.ATTEMPTS


def test_what_is_skipped_is_told(faults: tuple[str, Faults]) -> None:
    root, injected = faults
    injected.queue = ["flip"] * module.ATTEMPTS
    assert read(root, prefetch=0, on_error="skip") == [-1, *range(1, NUM_PACKS)]


def test_a_missing_shard_is_not_asked_for_again(faults: tuple[str, Faults]) -> None:
    root, injected = faults
    Storage(root).remove(shard_name(1))
    injected.queue = [""] * 100
    with pytest.raises(PackError, match=r"shard-000001\.tar, pack 4: the shard is missing"):
        read(root, prefetch=0)
    assert len(injected.met) <= 4 + 2  # four packs of the other shard, then one more


@pytest.mark.parametrize("fault", ["silent", "stall", "drip"])
def test_a_store_that_is_slow_once_is_asked_again(
    faults: tuple[str, Faults], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, injected = faults
    monkeypatch.setattr(module, "ATTEMPT_S", 2.0)
    injected.queue = ["", fault]
    assert read(root) == list(range(NUM_PACKS))
    assert injected.met == ["", fault]


@pytest.mark.parametrize("fault", ["silent", "stall", "drip"])
@pytest.mark.parametrize("file", [".tar", "packs.json", "index.parquet"])
def test_a_store_that_goes_on_without_a_whole_answer_is_given_up(
    faults: tuple[str, Faults], file: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ATTEMPTS times ATTEMPT_S and the waits, whatever the client's own patience is."""
    root, injected = faults
    packs = open_packs(root)  # and the client is there
    monkeypatch.setattr(module, "ATTEMPT_S", 0.3)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    injected.of, injected.queue = file, [fault] * 100
    start = time.monotonic()
    place = r"shard-000000\.tar, pack 0" if file == ".tar" else root
    with pytest.raises(PackError, match=f"{place}: the store fails .*no whole answer in 0.3 s"):
        module.read_pack(packs, 0) if file == ".tar" else open_packs(root)
    assert time.monotonic() - start < 10
    assert injected.met


def test_faults_of_facts_and_index_are_passed_over(faults: tuple[str, Faults]) -> None:
    root, injected = faults
    for injected.of in ("packs.json", "index.parquet"):
        for fault in ("500", "reset", "cut"):
            injected.queue = [fault, fault]
            assert open_packs(root).num_packs == NUM_PACKS
            assert not injected.queue


def test_a_truncated_shard_is_named(faults: tuple[str, Faults]) -> None:
    """Cut within a pack the store gives less, cut before one it refuses the range."""
    root, _ = faults
    storage, packs = Storage(root), open_packs(root)
    whole, start = storage.read(shard_name(1)), packs.index["offset"][6].as_py()
    storage.write(shard_name(1), whole[: start + 700])
    assert module.read_pack(packs, 5).documents
    with pytest.raises(PackError, match=r"shard-000001\.tar, pack 6: only 700 of \d+ bytes"):
        module.read_pack(packs, 6)
    with pytest.raises(PackError, match=r"shard-000001\.tar, pack 7: the store fails .*range"):
        module.read_pack(packs, 7)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores
def test_the_loaders_workers_read_from_a_store_that_fails(faults: tuple[str, Faults]) -> None:
    root, injected = faults
    injected.queue = ["500", "", "reset", "cut", "", "flip"]
    loader = DataLoader(PackStream(open_packs(root)), batch_size=None, num_workers=2)
    assert [pack.index for pack in loader] == list(range(NUM_PACKS))
    assert not injected.queue


@pytest.mark.parametrize("fault", ["500", "503", "reset", "reset in mid-body", "cut"])
def test_a_store_that_goes_on_failing_is_given_up(
    faults: tuple[str, Faults], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bounded time, though the client by itself asks up to 250 times per attempt."""
    root, injected = faults
    packs = open_packs(root)
    monkeypatch.setattr(module, "ATTEMPT_S", 0.3)
    injected.queue = [fault] * 10_000
    start = time.monotonic()
    with pytest.raises(PackError, match=r"shard-000000\.tar, pack 0: "):
        module.read_pack(packs, 0)
    assert time.monotonic() - start < 10
    assert len(injected.met) >= module.ATTEMPTS
