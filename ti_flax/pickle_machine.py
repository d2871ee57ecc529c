"""A machine that runs the pickles of tensors, and imports nothing.

A pickle is a program for a stack machine, and Python's own machine lets it call
anything. This one knows the instructions that it is told, and calls only what it is
told. Its time and memory are bounded by the length of the program and by what the
functions that it may call make of it.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from ti_flax.errors import Refused

_MAX_TEXT = 60

# What the machine, numpy and zipfile raise on bytes that make no sense.
SIGNS_OF_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Stateful:
    """What a program makes first and gives its content later (BUILD)."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


Instruction = Callable[["Machine", Any], None]


class Machine:
    """Runs a pickle; pickletools names and explains the instructions.

    A program may name what is in `known` ("module name" -> what it stands for) and use
    `instructions`, and nothing else.
    """

    def __init__(
        self,
        known: Mapping[str, object],
        instructions: Mapping[str, Instruction],
        writer: str,
    ) -> None:
        self._known = known
        self._instructions = instructions
        self._writer = writer
        self._stack: list = []
        self._outer_stacks: list[list] = []
        # A dict, not an array as in the C unpickler, whose length a file may choose.
        self._memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        stream = io.BytesIO(program)
        while (code := stream.read(1)) != pickle.STOP:
            opcode = _OPCODES[code]
            if opcode.name not in self._instructions:
                raise Refused(
                    f"holds the pickle instruction {opcode.name}, which {self._writer} "
                    "does not write: get it as .safetensors"
                )
            argument = opcode.arg.reader(stream) if opcode.arg else None
            self._instructions[opcode.name](self, argument)
        return self._stack.pop()

    def push(self, value: object) -> None:
        self._stack.append(value)

    def mark(self, _: None) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def pop(self, count: int) -> list:
        return [self._stack.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def extend(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("elements for something that is no list")
        target.extend(items)

    def update(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples takes exponential time, or all of the C stack.
            if not isinstance(key, str | int | float | None):
                raise ValueError("a key that is no plain value")
            target[key] = value

    def find(self, name: str) -> None:
        if name not in self._known:
            shown = name.replace(" ", ".")[:_MAX_TEXT]
            raise Refused(
                f"asks for {shown!r}, which no embedding needs; nothing was executed: "
                "get it as .safetensors"
            )
        self.push(self._known[name])

    def call(self, _: None) -> None:
        function, arguments = self.pop(2)
        self.push(function(*arguments))

    def build(self, _: None) -> None:
        """Sets attributes; the only ones that matter are a ParameterDict's items."""
        target, attributes = self.pop(2)
        self.push(target)
        if isinstance(target, Stateful):
            target.set_state(attributes)
            return
        parameters = attributes.get("_parameters", {})
        if not isinstance(target, dict) or not isinstance(parameters, dict):
            raise ValueError("attributes for something that has none")
        target.update(parameters)


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# What torch.save writes, but for the persistent ids of storages.
BASE_INSTRUCTIONS: dict[str, Instruction] = {
    "PROTO": lambda machine, version: None,
    "MARK": Machine.mark,
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "BINGET": Machine.get,
    "LONG_BINGET": Machine.get,
    "BININT": Machine.push,
    "BININT1": Machine.push,
    "BININT2": Machine.push,
    "LONG1": Machine.push,
    "BINFLOAT": Machine.push,
    "BINUNICODE": Machine.push,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_to_mark()),
    "GLOBAL": Machine.find,
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.call,
    "BUILD": Machine.build,
}
