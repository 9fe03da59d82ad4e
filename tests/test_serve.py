"""A bundle served over real sockets: the frames, one client after the other, and whatever clients do wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIZE, SPEC, FakeEngine, label_maps, manifest, write_tiny

from export.runtime import open_bundle
from export.stream import Stream
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("serve", ROOT / "scripts/serve.py")
serve = importlib.util.module_from_spec(_SPEC)
sys.modules["serve"] = serve
_SPEC.loader.exec_module(serve)


class Server:
    """Serves a fake engine in a thread."""

    def __init__(self, clients, details=None, timeout_s=5.0, **engine):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.stream = Stream(FakeEngine(**engine), details or manifest())
        self.thread = threading.Thread(
            target=serve.serve, args=(self.listener, self.stream), kwargs={"timeout_s": timeout_s, "clients": clients}
        )

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.listener.close()
        self.stream.close()


def expected(labels, details=None):
    with Stream(FakeEngine(), details or manifest()) as stream:
        return list(stream.frames(labels))


def check(frames, wanted):
    assert [(index, is_keyframe) for index, is_keyframe, _ in frames] == [(d.index, d.is_keyframe) for d in wanted]
    assert all(np.array_equal(frame, d.frame) for (_, _, frame), d in zip(frames, wanted, strict=True))


def test_every_frame_comes_and_one_client_follows_the_other():
    with Server(clients=3) as server:
        for seed in range(3):
            labels = label_maps(11, seed)
            with serve.Client(server.address) as client:
                assert client.hello["parts"] == [{"name": "labels", "shape": list(SIZE), "dtype": "|u1"}]
                check(list(client.frames((x,) for x in labels)), expected(labels))
                assert client.done == {"frames": 11, "keyframes": 4}


def test_instances_and_maps_travel_too():
    bordered = manifest(condition=replace(SPEC, use_instances=True))
    labels = [(x, x.astype(np.int64)) for x in label_maps(5)]
    with Server(clients=1, details=bordered) as server, serve.Client(server.address) as client:
        check(list(client.frames(labels)), expected(labels, bordered))
    drawn = manifest(condition=ConditionSpec(kind="maps", map_channels=3))
    maps = list(np.random.default_rng(0).normal(size=(5, 3, *SIZE)).astype(np.float32))
    with Server(clients=1, details=drawn) as server, serve.Client(server.address) as client:
        check(list(client.frames((x,) for x in maps)), expected(maps, drawn))


def test_ids_that_need_more_than_a_byte_get_it():
    wide = manifest(condition=ConditionSpec(class_names=tuple(f"class {k}" for k in range(300))))
    assert [part.dtype for part in serve.parts_of(wide)] == ["<i4"]
    ignored = manifest(condition=replace(SPEC, ignore_id=65535))
    assert [part.dtype for part in serve.parts_of(ignored)] == ["<i4"]


def test_who_comes_meanwhile_is_told_to_come_back():
    labels = label_maps(5)
    with Server(clients=2) as server:
        with serve.Client(server.address) as first:
            with pytest.raises(DataError, match="another client is being served; come back"):
                serve.Client(server.address)
            check(list(first.frames((x,) for x in labels)), expected(labels))
        with serve.Client(server.address) as second:
            check(list(second.frames((x,) for x in labels)), expected(labels))


class TestMalformed:
    """Whatever comes, one sentence goes back, and the next client is served."""

    def refused(self, data, match, timeout_s=5.0):
        with Server(clients=2, timeout_s=timeout_s) as server:
            with serve.Client(server.address) as client:
                client.connection.sendall(data)
                with pytest.raises(DataError, match=match):
                    while True:
                        client._next({b"F": (0, 1 << 20)})
            labels = label_maps(2)
            with serve.Client(server.address) as client:
                check(list(client.frames((x,) for x in labels)), expected(labels))

    def test_an_unknown_kind(self):
        self.refused(b"GET / HTTP/1.1\r\n\r\n", "a message of kind b'G' came; known are C, D")

    def test_a_length_beyond_all_bounds_is_not_even_allocated(self):
        self.refused(struct.pack("!cI", b"C", 2**32 - 1), "a message C of 4294967295 bytes came; it has 384")

    def test_a_condition_of_another_size(self):
        self.refused(struct.pack("!cI", b"C", 383) + bytes(383), "a message C of 383 bytes came; it has 384")

    def test_an_end_that_says_more(self):
        self.refused(struct.pack("!cI", b"D", 3) + b"bye", "a message D of 3 bytes came; it has 0")

    def test_an_id_out_of_range(self):
        self.refused(struct.pack("!cI", b"C", 384) + bytes([9]) * 384, "label id 9 is out of range")

    def test_silence(self):
        self.refused(b"C", "nothing came or was taken for too long", timeout_s=0.2)

    def test_a_client_that_vanishes(self):
        with Server(clients=2) as server:
            for data in (b"", struct.pack("!cI", b"C", 384) + bytes(7)):
                with serve.Client(server.address) as client:
                    client.connection.sendall(data)

    def test_an_engine_that_fails_is_told_after_the_frames_before(self):
        with Server(clients=1, fail_at=1) as server, serve.Client(server.address) as client:
            frames = client.frames((x,) for x in label_maps(6))
            with pytest.raises(DataError, match="keyframe 4 could not be synthesised by fake: out of coffee"):
                for index, _, _ in frames:
                    assert index == 0


class TestDeadlines:
    """A byte now and then, which no time limit of a socket exceeds, holds nobody up for ever."""

    @staticmethod
    def drip(connection, done):
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                connection.sendall(b"C")

    def dripping(self, check, first=b""):
        ours, theirs = socket.socketpair()
        done = threading.Event()
        with ours, theirs:
            theirs.sendall(first)
            sender = threading.Thread(target=self.drip, args=(theirs, done))
            sender.start()
            try:
                check(ours)
            finally:
                done.set()
                sender.join()

    def test_a_message_that_drips_in_is_given_up(self):
        def check(ours):
            ours.settimeout(0.3)
            with pytest.raises(TimeoutError, match=r"of 384 bytes came in 0.3 s"):
                serve.receive(ours, {b"C": (384, 384)})

        self.dripping(check, struct.pack("!cI", b"C", 384))

    def test_who_goes_on_sending_after_a_refusal_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(serve, "_GOODBYE_S", 0.3)
        self.dripping(lambda ours: serve._part_with(ours, "no"))


def test_addresses_of_both_kinds_are_listened_on():
    with serve.listen("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        listener = serve.listen("::", 0)
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6 ({error})")
    with listener:
        port = listener.getsockname()[1]
        socket.create_connection(("::1", port), 5).close()
        if socket.has_dualstack_ipv6():
            socket.create_connection(("127.0.0.1", port), 5).close()


def test_a_guided_bundle_is_served_with_a_warning(caplog):
    with Server(clients=1, details=manifest(condition=replace(SPEC, guidance_levels=1))) as server:
        socket.create_connection(server.address, 5).close()
    assert "tiny is guided by what was painted, and clients say not where" in caplog.text


def test_the_script_serves_a_bundle(tmp_path):
    bundle = write_tiny(tmp_path / "tiny.v2v")
    command = [sys.executable, "scripts/serve.py", "--bundle", str(bundle), "--port", "0", "--clients", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    try:
        host, port = re.search(r"on ([\d.]+):(\d+)", process.stdout.readline()).groups()
        assert host == "127.0.0.1"
        labels = label_maps(6)
        with serve.Client((host, int(port))) as client:
            made = list(client.frames((x,) for x in labels))
        with open_bundle(bundle) as stream:
            check(made, list(stream.frames(labels)))
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_script_passes_on_what_opens_the_bundle(tmp_path, monkeypatch):
    asked = {}

    def opened(path, **options):
        asked.update(options)
        raise DataError("enough")

    monkeypatch.setattr(serve, "open_bundle", opened)
    options = ["--engine", "tensorrt", "--device", "cuda", "--threads", "2", "--causal", "--host-code"]
    assert serve.main(["--bundle", str(tmp_path / "x.v2v"), *options]) == 2
    assert asked == {"engine": "tensorrt", "device": "cuda", "threads": 2, "causal": True, "host_code": True}


def test_a_port_that_is_taken_is_refused_with_what_to_do(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the engine of the bundle is not installed")
    bundle = write_tiny(tmp_path / "tiny.v2v")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--bundle", str(bundle), "--port", str(port), "--engine", "onnxruntime"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"serve.py: cannot listen on port {port} of 127.0.0.1: another program listens there; end")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"port 0 of 192\.0\.2\.1: .*; give an address of this machine as --host"):
        serve.listen("192.0.2.1", 0)


def test_the_script_refuses_in_one_sentence(tmp_path, capsys):
    assert serve.main(["--bundle", str(tmp_path / "no.v2v")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("serve.py: ")
