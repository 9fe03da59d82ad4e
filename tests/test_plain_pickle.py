"""Pickles of plain data are read; whatever would run, or cost more than a file may, is refused and nothing is run."""

import copyreg
import io
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fastv2v.data import plain_pickle, unprojection
from fastv2v.data.plain_pickle import load_plain
from fastv2v.data.unprojection import check_levels, parse_pickle, pickle_bytes, read_unprojection, write_unprojection
from fastv2v.errors import DataError

PROTO = b"\x80\x03"


def load(data):
    return load_plain(data, "frame.pkl")


def unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    def __setstate__(self, state):
        raise AssertionError("ran")

    def __getstate__(self):
        return {"a": 1}


class TestPlainData:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize(
        "value",
        [
            0, 255, 256, 65535, 65536, 2**31 - 1, -1, -(2**31), 2**40, -(2**62), 1.5, True, None, "text", "ä" * 300,
            [], (), {}, [1, 2, 3], list(range(70000)), (1, "a", [2.5, None]), {"a": [1], "b": {}, 3: (4,)},
            [[1, 2], [3, [4]]], {"w4xh2": [1, 2, 300000]},
        ],
        ids=lambda v: str(v)[:20],
    )  # fmt: skip
    def test_what_is_plain_comes_back(self, value, protocol):
        read = load(pickle.dumps(value, protocol=protocol))
        assert read == value and type(read) is type(value)

    @pytest.mark.parametrize("protocol", [3, 4, 5])
    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6).reshape(2, 3), np.arange(6, dtype=">u2"), np.asfortranarray(np.eye(3, dtype=np.float32)),
            np.zeros(0, np.int32), np.array([True, False]), np.array(7),
        ],
        ids=lambda a: f"{a.dtype}{a.shape}",
    )  # fmt: skip
    def test_arrays_of_numbers_come_back(self, array, protocol):
        for value in (array, {"x": array}):
            read = load(pickle.dumps(value, protocol=protocol))
            read = read["x"] if isinstance(read, dict) else read
            assert read.dtype == array.dtype and np.array_equal(read, array) and read.shape == array.shape

    def test_shared_parts_stay_shared(self):
        part = [1, 2]
        read = load(pickle.dumps([part, part], protocol=3))
        assert read[0] is read[1]

    def test_a_hundred_thousand_entries_are_read_at_once(self):
        numbers = np.random.default_rng(0).integers(0, 400000, 300000).tolist()
        started = time.monotonic()
        assert load(pickle.dumps(numbers, protocol=3)) == numbers
        assert time.monotonic() - started < 20


class TestHostile:
    """Each must be refused; ``system`` and ``eval`` are set to fail, so that running anything fails the test."""

    @pytest.fixture(autouse=True)
    def alarms(self, monkeypatch):
        def ran(*_, **__):
            raise AssertionError("something was run")

        for module, name in ((os, "system"), (os, "popen"), (pickle, "loads"), (pickle, "load")):
            monkeypatch.setattr(module, name, ran)

    CALLS: ClassVar = {
        "os.system": b"cos\nsystem\n(" + unicode("true") + b"tR.",
        "posix.system": b"cposix\nsystem\n(" + unicode("true") + b"tR.",
        "builtins.eval": b"cbuiltins\neval\n(" + unicode("1") + b"tR.",
        "builtins.exec": unicode("builtins") + unicode("exec") + b"\x93(" + unicode("1") + b"tR.",
        "builtins.getattr": b"cbuiltins\ngetattr\n)R.",
        "subprocess.Popen": b"csubprocess\nPopen\n(](" + unicode("true") + b"etR.",
        "numpy.load": b"cnumpy\nload\n)R.",
        "numpy._core.multiarray.scalar": b"cnumpy._core.multiarray\nscalar\n)R.",
        "numpy.core.multiarray.fromfile": b"cnumpy.core.multiarray\nfromfile\n)R.",
        "functools.partial": b"cfunctools\npartial\n)R.",
        "codecs.encode": b"c_codecs\nencode\n)R.",
        "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n)R.",
    }

    @pytest.mark.parametrize("name", CALLS)
    def test_a_named_function_is_refused_by_name(self, name):
        shown = "_codecs.encode" if name == "codecs.encode" else name
        with pytest.raises(DataError, match=rf"frame\.pkl: byte \d+ .*{shown}.*nothing was run"):
            load(PROTO + self.CALLS[name])

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_a_call_hidden_in_plain_data_is_refused(self, protocol):
        payload = {"w4xh2": [0, 0, 1], "w2xh1": [Call(print, "boom")]}
        with pytest.raises(DataError, match=r"builtin.*print"):
            load(pickle.dumps(payload, protocol=protocol))

    def test_calls_inside_of_calls_are_refused(self):
        with pytest.raises(DataError, match="getattr"):
            load(pickle.dumps(Call(getattr, Call(__import__, "os"), "system"), protocol=3))

    def test_the_state_of_an_object_is_refused(self):
        with pytest.raises(DataError, match=r"copyreg|WithState"):
            load(pickle.dumps(WithState(), protocol=2))
        for built in (b"]", b"}", b")", b"K\x01"):
            with pytest.raises(DataError, match="BUILD"):
                load(PROTO + built + b"}b.")

    REFUSED_OPCODES: ClassVar = {
        "NEWOBJ": b")\x81.",
        "NEWOBJ_EX": b")}\x92.",
        "INST": b"(ios\nsystem\n.",
        "OBJ": b"(K\x01o.",
        "PERSID": b"Pname\n.",
        "BINPERSID": b"K\x01Q.",
        "EXT1": b"\x82\x01.",
        "EXT2": b"\x83\x01\x00.",
        "EXT4": b"\x84\x01\x00\x00\x00.",
        "NEXT_BUFFER": b"\x97.",
        "READONLY_BUFFER": b"\x98.",
        "DUP": b"K\x012.",
        "FROZENSET": b"(\x91.",
        "EMPTY_SET": b"\x8f.",
        "STRING": b"S'a'\n.",
        "LONG": b"L1L\n.",
        "INT": b"I1\n.",
        "FLOAT": b"F1.0\n.",
        "UNICODE": b"Va\n.",
        "GET": b"g0\n.",
        "PUT": b"]p0\n.",
    }

    @pytest.mark.parametrize("opcode", REFUSED_OPCODES)
    def test_an_instruction_that_builds_no_plain_data_is_refused_by_name(self, opcode):
        with pytest.raises(DataError, match=f"the instruction {opcode},"):
            load(PROTO + self.REFUSED_OPCODES[opcode])

    def test_every_instruction_of_python_is_either_known_or_refused(self):
        known = set(plain_pickle._STEPS)
        assert known <= {opcode.name for opcode in pickletools.opcodes}
        assert not known & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}

    def test_an_extension_code_in_the_registry_is_not_looked_up(self):
        copyreg.add_extension("os", "system", 200)
        try:
            with pytest.raises(DataError, match="EXT1"):
                load(PROTO + b"\x82\xc8" + b"(" + unicode("true") + b"tR.")
        finally:
            copyreg.remove_extension("os", "system", 200)

    def test_classes_are_no_values(self):
        for data in (b"cnumpy\nndarray\n.", b"}X\x01\x00\x00\x00acnumpy\ndtype\ns."):
            with pytest.raises(DataError, match="a class in the place of a value"):
                load(PROTO + data)

    def test_arrays_of_objects_are_refused(self):
        with pytest.raises(DataError, match="array of type 'O8'"):
            load(pickle.dumps(np.array([Call(print)], dtype=object), protocol=3))
        with pytest.raises(DataError, match="array of type 'V"):
            load(pickle.dumps(np.zeros(1, [("a", "i4")]), protocol=3))

    def test_an_array_reconstructed_from_something_else_is_refused(self):
        with pytest.raises(DataError, match=r"call of numpy\._core\.multiarray\._reconstruct"):
            load(PROTO + b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.")


class TestCost:
    @pytest.fixture(autouse=True)
    def bounded(self):
        """Half a second of this machine would do; a bomb takes minutes or gigabytes."""
        tracemalloc.start()
        started = time.monotonic()
        yield
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300 * 2**20
        assert time.monotonic() - started < 60

    BOMBS: ClassVar = {
        "memo": b"]r\xff\xff\xff\xff.",
        "memo read": b"j\xff\xff\xff\xff.",
        "string": b"X\xff\xff\xff\xffabc.",
        "long string": b"\x8d" + struct.pack("<Q", 2**40) + b"abc.",
        "huge string": b"\x8d" + struct.pack("<Q", 2**63) + b"abc.",
        "bytes": b"B\xff\xff\xff\xffabc.",
        "long bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        "bytearray": b"\x96" + struct.pack("<Q", 2**62) + b"abc.",
        "long number": b"\x8b\xff\xff\xff\x7fabc.",
        "negative length": b"\x8b\xff\xff\xff\xffabc.",
        "number of many bits": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    }

    @pytest.mark.parametrize("name", BOMBS)
    def test_lengths_are_held_against_the_bytes_that_are_there(self, name):
        data = PROTO + self.BOMBS[name]
        if name == "memo":
            assert load(data) == [], "an index costs no more than an entry"
        else:
            with pytest.raises(DataError, match=r"damaged or cut short|whole number of"):
                load(data)

    def test_many_arrays_in_one_bytearray_are_refused_and_not_copied(self):
        content = b"\x96" + struct.pack("<Q", 2**20) + bytes(2**20) + b"q\x000"
        function = b"cnumpy._core.numeric\n_frombuffer\nq\x010"
        dtype = b"cnumpy\ndtype\n" + unicode("u1") + b"\x89\x88\x87R"
        arguments = b"(h\x00" + dtype + b"J" + struct.pack("<i", 2**20) + b"\x85" + unicode("C") + b"tq\x020"
        once = b"h\x01h\x02R"
        tracemalloc.reset_peak()
        assert load(PROTO + content + function + arguments + once + b".").size == 2**20
        with pytest.raises(DataError, match="more than 16 arrays"):
            load(PROTO + content + function + arguments + (once + b"0") * 200 + b"].")
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20

    def test_an_array_larger_than_its_bytes_is_refused(self):
        data = pickle.dumps(np.zeros(3, np.int64), protocol=3)
        with pytest.raises(DataError, match="has 24 bytes"):
            load(data.replace(b"K\x03\x85", b"J\xff\xff\xff\x03\x85"))

    def test_deep_nesting_ends_at_the_bound_and_needs_no_recursion(self):
        assert load(PROTO + b"]" * 5000 + b"a" * 4999 + b".") is not None
        with pytest.raises(DataError, match="instructions"):
            load(PROTO + b"]" * 10**6 + b"a" * (10**6 - 1) + b".")
        with pytest.raises(DataError, match="instructions"):
            load(PROTO + b"(" * 10**6)

    def test_tuples_of_shared_tuples_are_no_keys(self):
        doubled = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100))
        with pytest.raises(DataError, match="a key of type tuple"):
            load(PROTO + b"}" + doubled + b"K\x01s.")
        assert isinstance(load(PROTO + doubled + b"."), tuple)

    def test_lists_of_shared_lists_are_not_followed(self):
        steps = [b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(60)]
        data = PROTO + b"]q\x000" + b"".join(steps) + b"}" + unicode("w4xh2") + b"h\x3cs."
        with pytest.raises(DataError, match="list of whole numbers"):
            parse_pickle(data, "frame.pkl")

    def test_one_list_under_many_names_is_not_walked_again_and_again(self):
        names = b"".join(b"K" + bytes([i]) + b"h\x01" for i in range(250))
        data = PROTO + b"](" + b"K\x01" * 100_000 + b"eq\x01}(" + names + b"u0h\x010}(" + names + b"u."
        with pytest.raises(DataError):
            load(data)

    def test_too_many_numbers_and_too_long_files_are_refused(self, monkeypatch):
        monkeypatch.setattr(plain_pickle, "MAX_NUMBERS", 1000)
        with pytest.raises(DataError, match="more than 1000 numbers"):
            load(pickle.dumps(list(range(1001)), protocol=3))
        monkeypatch.setattr(plain_pickle, "MAX_BYTES", 100)
        with pytest.raises(DataError, match="at most"):
            load(PROTO + b"]" * 200)

    def test_two_million_numbers_cost_little_more_than_their_list(self):
        tracemalloc.reset_peak()
        assert len(load(PROTO + b"](" + b"K\x01" * 2_000_000 + b"e.")) == 2_000_000
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20

    def test_numbers_are_counted_over_all_runs(self, monkeypatch):
        monkeypatch.setattr(plain_pickle, "MAX_NUMBERS", 100_000)
        with pytest.raises(DataError, match="more than 100000 numbers"):
            load(PROTO + b"](" + b"K\x01" * 100_001 + b"e.")

    def test_every_cut_is_refused(self):
        data = pickle.dumps({"w4xh2": [0, 1, 70000], "a": np.arange(4), "b": ("x", 1.5)}, protocol=3)
        for end in range(len(data)):
            with pytest.raises(DataError):
                load(data[:end])

    def test_every_damaged_byte_is_read_or_refused(self):
        data = pickle.dumps({"w4xh2": [0, 1, 70000], "a": np.arange(4), "b": ("x", 1.5)}, protocol=4)
        rng = np.random.default_rng(0)
        for _ in range(1500):
            damaged = bytearray(data)
            for at in rng.integers(2, len(data), 2):
                damaged[at] = rng.integers(256)
            try:
                load(bytes(damaged))
            except DataError:
                continue

    @pytest.mark.parametrize("data", [b"", b"hello", b"(lp0\n.", b"\x80\x09].", PROTO + b"0.", PROTO + b"]]."])
    def test_what_is_no_such_pickle_is_refused(self, data):
        with pytest.raises(DataError, match=r"frame\.pkl"):
            load(data)


class TestUnprojections:
    def levels(self):
        rng = np.random.default_rng(0)
        return [rng.integers(-1, 400000, (16 >> k, 32 >> k)).astype(np.int32) for k in range(3)]

    def test_what_is_written_is_read(self, tmp_path):
        levels = self.levels()
        write_unprojection(tmp_path / "f.pkl", levels)
        for written, read in zip(levels, read_unprojection(tmp_path / "f.pkl"), strict=True):
            assert np.array_equal(written, read)

    def test_the_layout_is_that_of_the_reference(self):
        data = pickle_bytes(check_levels(self.levels(), "levels"))
        entries = pickle.load(io.BytesIO(data))
        assert data[:2] == PROTO
        assert list(entries) == ["w32xh16", "w16xh8", "w8xh4"]
        flat = entries["w32xh16"]
        assert all(type(number) is int for number in flat) and len(flat) % 3 == 0
        row, column, point = flat[3:6]
        assert self.levels()[0][row, column] == point, "row comes first"

    def test_levels_may_be_arrays_or_none_and_in_any_order(self):
        entries = {"w2xh1": None, "w4xh2": np.array([[1, 3, 7], [0, 0, 2]])}
        finest, coarse = parse_pickle(pickle.dumps(entries, protocol=3), "f")
        assert finest.tolist() == [[2, -1, -1, -1], [-1, -1, -1, 7]] and (coarse == -1).all()

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"w4xh2": [0, 0]}, "multiple of 3"),
            ({"w4xh2": [2, 0, 1]}, "row 2, column 0 lies outside"),
            ({"w4xh2": [0, 4, 1]}, "row 0, column 4 lies outside"),
            ({"w4xh2": [0, -1, 1]}, "lies outside"),
            ({"w4xh2": [0, 1, 1, 0, 1, 2]}, "comes twice"),
            ({"w4xh2": [0, 1, -1]}, "point id"),
            ({"w4xh2": [0, 1, 2**40]}, "point id"),
            ({"w4xh2": [0, 1, 1.0]}, "whole numbers"),
            ({"w4xh2": [0, 1, True]}, "whole numbers"),
            ({"w4xh2": "abc"}, "whole numbers"),
            ({"4x2": []}, "is named '4x2'"),
            ({"w4xh2": [], "w04xh02": []}, "is named 'w04xh02'"),
            ({"w4xh2": np.zeros((3, 4), int)}, "row, column and point"),
            ({}, "dictionary"),
            ([1, 2, 3], "dictionary"),
            ({"w8xh4": [], "w2xh1": []}, "half the size"),
            ({"w4xh2": np.zeros((2, 2), int)}, "row, column and point"),
            ({"w4xh2": np.zeros(3)}, "row, column and point"),
            ({"w99999xh2": []}, "1 to 16384"),
        ],
    )  # fmt: skip
    def test_nonsense_is_refused(self, entries, message):
        with pytest.raises(DataError, match=rf"^f.*{message}"):
            parse_pickle(pickle.dumps(entries, protocol=3), "f")

    def test_a_level_of_another_frame_is_refused_before_it_is_made(self, tmp_path):
        path = tmp_path / "f.pkl"
        path.write_bytes(pickle.dumps({"w4096xh4096": []}, protocol=3))
        tracemalloc.start()
        with pytest.raises(DataError, match=r"f\.pkl is 4096x4096 pixels and its frame is 96x64"):
            read_unprojection(path, (64, 96))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22

    def test_more_entries_than_are_read_again_are_not_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(unprojection, "MAX_NUMBERS", 30)
        full = np.arange(12, dtype=np.int32).reshape(3, 4)
        with pytest.raises(DataError, match=r"12 entries are more .* write \.npz"):
            write_unprojection(tmp_path / "f.pkl", [full])
        write_unprojection(tmp_path / "f.npz", [full])
        assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]

    def test_a_hostile_file_in_a_data_set_is_refused_by_its_path(self, tmp_path):
        path = tmp_path / "000000.pkl"
        path.write_bytes(PROTO + TestHostile.CALLS["os.system"])
        with pytest.raises(DataError, match=r"000000\.pkl.*os\.system"):
            read_unprojection(path)


def test_nothing_in_the_reader_calls_pickle():
    source = Path(plain_pickle.__file__).read_text(encoding="utf-8")
    assert "import pickle\n" not in source and "pickle.load" not in source
