"""Pickle files that hold nothing but data, read without ``pickle``. Torch-free.

A pickle is a program, and Python's own reader runs whatever it names. This reader knows only the instructions that
build numbers, strings, bytes, lists, tuples and dictionaries, and refuses all others before it does anything. NumPy's
arrays are rebuilt here from their bytes; of the functions their pickles name, none is called.

What a file may cost is bounded: its size, its instructions, its numbers; every length field is held against the bytes
that are really there; nothing is recursive; keys are strings or whole numbers, as a key made of shared tuples would
take for ever to hash.

Source:
    ``pickletools`` in Python's library describes the instructions.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import DataError

MAX_BYTES: Final = 64 * 2**20
"""Longest file."""
MAX_NUMBERS: Final = 3 * 2**22
"""Most small whole numbers in a file: 4 million entries of an unprojection."""
MAX_STEPS: Final = 200_000
"""Most other instructions; lists come in batches of a thousand items."""

_MAX_ARRAYS: Final = 16
_HIGHEST_PROTOCOL: Final = 5
_INTEGER: Final = re.compile(rb"K.|M..|J....", re.DOTALL)
# Bounded, for the matcher remembers every repetition until it ends; a longer run takes several rounds.
_INTEGERS: Final = re.compile(rb"(?:K.|M..|J....){1,65536}", re.DOTALL)
_MAX_LONG_BYTES: Final = 8
_OPCODES: Final = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_DTYPE: Final = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_CORES: Final = ("numpy.core", "numpy._core")


def load_plain(data: bytes, where: str) -> Any:
    """Read a pickle of protocol 2 to 5 that holds plain data.

    Args:
        data: the content of the file.
        where: the file, for messages.

    Returns:
        Numbers, strings, bytes, lists, tuples and dictionaries; an array of numbers, alone or as a value of a
        dictionary at the top, as a NumPy array, read-only.

    Raises:
        DataError: if there is anything else in it, it is cut short, or asks for more than the bounds of this module.
    """
    if len(data) > MAX_BYTES:
        raise DataError(
            f"{where}: a .pkl file of plain data has at most {MAX_BYTES >> 20} MB, got {len(data) >> 20} MB"
        )
    return _Machine(data, where).run()


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names. It is only ever compared with names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


@dataclass
class _DType:
    """A type of numbers on its way."""

    code: str


@dataclass
class _Array:
    """An array on its way; complete once it has its bytes."""

    value: NDArray[Any] | None = None


class _RefusedError(Exception):
    """What is wrong with the instruction at hand."""


@dataclass
class _Machine:
    """The stack and the memo of one pickle."""

    data: bytes
    where: str
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    arrays: list[_Array] = field(default_factory=list)
    numbers: int = 0

    def run(self) -> Any:
        """Build what the pickle describes."""
        file = io.BytesIO(self.data)
        if self.data[:1] != b"\x80":
            raise DataError(f"{self.where}: not a pickle of protocol 2 or later; write it again with protocol 3")
        for _ in range(MAX_STEPS):
            position = file.tell()
            if run := _INTEGERS.match(self.data, position):
                self._push_integers(run.group(), position)
                file.seek(run.end())
                continue
            code = file.read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                what = f"the unknown instruction {code!r}" if code else "its end before the instruction STOP"
                raise DataError(f"{self.where}: byte {position} is {what}; the file is damaged or cut short")
            try:
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise _RefusedError(f"the instruction {opcode.name}")
                argument = None if opcode.arg is None else opcode.arg.reader(file)
                if opcode.name == "STOP":
                    return self._result()
                step(self, argument)
            except _RefusedError as refusal:
                raise DataError(
                    f"{self.where}: byte {position} has {refusal}, and a plain .pkl file builds numbers, strings, "
                    "lists, tuples, dictionaries and arrays only; nothing was run: do not open this file with pickle "
                    "unless you trust whoever made it"
                ) from None
            except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{self.where}: byte {position}: {opcode.name} is damaged or cut short ({error}); write it again"
                ) from error
        raise DataError(f"{self.where}: has more than {MAX_STEPS} instructions; a plain .pkl of lists needs far fewer")

    def _result(self) -> Any:
        (value,) = self.stack
        # No deeper: a file of shared parts has more ways down than anyone could walk.
        found = list(value.values()) if isinstance(value, dict) else [value]
        if any(isinstance(item, _Name | _DType) for item in found):
            raise _RefusedError("a class in the place of a value")
        used = {id(item) for item in found if isinstance(item, _Array)}
        if len(used) != len(self.arrays) or any(array.value is None for array in self.arrays):
            raise ValueError("an array is empty, or lies deeper than in a dictionary at the top")
        plain = [item.value if isinstance(item, _Array) else item for item in found]
        return dict(zip(value, plain, strict=True)) if isinstance(value, dict) else plain[0]

    def _push_integers(self, run: bytes, position: int) -> None:
        """Many small numbers at once: instruction by instruction would take seconds for a frame."""
        lengths = np.fromiter(map(len, _INTEGER.findall(run)), np.int64)
        self.numbers += len(lengths)
        if self.numbers > MAX_NUMBERS:
            raise DataError(f"{self.where}: byte {position}: more than {MAX_NUMBERS} numbers; split the file")
        starts = np.cumsum(lengths) - lengths
        content = np.frombuffer(run + b"\0\0\0\0", np.uint8).astype(np.int64)
        values = content[starts + 1]
        for byte in (1, 2, 3):
            values += np.where(lengths > byte + 1, content[starts + 1 + byte] << (8 * byte), 0)
        values = np.where((lengths == 5) & (values >= 2**31), values - 2**32, values)  # only J has a sign
        self.stack += values.tolist()

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        self.memo[index] = self.stack[-1]

    def reduce(self) -> None:
        """A call: only NumPy's own ways to say "array" and "type of numbers" are known, and none is carried out."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no function")
        module = next((f"numpy.core{function.module[len(c) :]}" for c in _CORES if function.module.startswith(c)), "")
        called = f"{module or function.module}.{function.name}"
        if called == "numpy.dtype" and len(arguments) == 3:
            self.stack.append(_DType(_checked_code(arguments[0])))
        elif called == "numpy.core.multiarray._reconstruct" and arguments == (_Name("numpy", "ndarray"), (0,), b"b"):
            self._push_array(_Array())
        elif called == "numpy.core.numeric._frombuffer" and len(arguments) == 4:
            content, dtype, shape, order = arguments
            self._push_array(_Array(_array(content, dtype, shape, order == "F")))
        else:
            raise _RefusedError(f"a call of {function}")

    def _push_array(self, array: _Array) -> None:
        if len(self.arrays) == _MAX_ARRAYS:
            raise _RefusedError(f"more than {_MAX_ARRAYS} arrays")
        self.arrays.append(array)
        self.stack.append(array)

    def build(self) -> None:
        """The state of an array or of a type of numbers."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType) and isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None,) * 3:
            order = state[1] if isinstance(state[1], str) else ""
            target.code = _checked_code(order + target.code[-2:])
        elif isinstance(target, _Array) and target.value is None and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, is_fortran, content = state
            target.value = _array(content, dtype, shape, bool(is_fortran))
        else:
            raise _RefusedError("the instruction BUILD for something that is no plain array")


def _name(machine: _Machine, module: str, name: str) -> None:
    allowed: dict[str, tuple[str, ...]] = {"numpy": ("ndarray", "dtype")}
    for core in _CORES:
        allowed |= {f"{core}.multiarray": ("_reconstruct",), f"{core}.numeric": ("_frombuffer",)}
    if name not in allowed.get(module, ()):
        raise _RefusedError(f"the class or function {_Name(module, name)}")
    machine.stack.append(_Name(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("names a class by something that is no string")
    _name(machine, module, name)


def _checked_code(code: Any) -> str:
    if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
        named = code[:20] if isinstance(code, str) else type(code).__name__
        raise _RefusedError(f"an array of type '{named}'")
    return code


def _array(content: Any, dtype: Any, shape: Any, is_fortran: bool) -> NDArray[Any]:
    """An array in its bytes, without a copy; they must be exactly as many as its shape says."""
    if not isinstance(content, bytes) or not isinstance(dtype, _DType):
        raise _RefusedError("an array that does not hold plain numbers")
    if not (
        isinstance(shape, tuple) and all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape) and len(shape) <= 4
    ):
        raise ValueError("an array has no proper shape")
    kind = np.dtype(dtype.code)
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("sets items of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise _RefusedError(f"a key of type {type(key).__name__}")  # a tuple of shared tuples hashes for ever
        target[key] = value


def _extend(machine: _Machine, items: list[Any]) -> None:
    if not isinstance(machine.stack[-1], list):
        raise ValueError("appends to what is no list")
    machine.stack[-1].extend(items)


def _long(machine: _Machine, value: int) -> None:
    if value.bit_length() > 8 * _MAX_LONG_BYTES - 1:
        raise _RefusedError(f"a whole number of {value.bit_length()} bits")
    machine.stack.append(value)


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _protocol(_: _Machine, version: int) -> None:
    if not 2 <= version <= _HIGHEST_PROTOCOL:
        raise ValueError(f"protocol {version} is not known")


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < count:
            raise IndexError("the stack is empty")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return step


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


_STEPS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "BININT": _push,
    "BININT1": _push,
    "BININT2": _push,
    "LONG1": _long,
    "LONG4": _long,
    "BINFLOAT": _push,
    "SHORT_BINUNICODE": _push,
    "BINUNICODE": _push,
    "BINUNICODE8": _push,
    "SHORT_BINBYTES": _push,
    "BINBYTES": _push,
    "BINBYTES8": _push,
    "BYTEARRAY8": lambda machine, value: machine.stack.append(bytes(value)),  # once, not for each array in it
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "APPEND": lambda machine, _: _extend(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "LIST": lambda machine, _: _push(machine, machine.pop_mark()),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "SETITEM": lambda machine, _: _set_items(machine, [machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, names: _name(machine, *names.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
"""What each known instruction does; every other one is refused."""
