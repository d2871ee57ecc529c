"""The standard library's unpickler, restricted: it imports nothing.

A pickle is a program that calls whatever it names. `Unpickler` is `pickle._Unpickler`
(the one in Python, unchanged since 3.0 but for new opcodes) with the opcodes and
globals cut to a list. Its time and memory are bounded: every opcode costs a unit of
work, and so does every item or kilobyte that a call copies. `bounds.check_bounds`
bounds what comes of it.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ti_flax.pickles.pickled_arrays import Array, Dtype, Function, numpy_globals
from ti_flax.pickles.refused import Refused
from ti_flax.pickles.sizes import is_size

# An embedding's pickle has some 50 opcodes a word.
_MAX_WORK = 2**16
# A tensor of a model takes some 30; SDXL's file has 2,500, twice with its average.
_MAX_WORK_OF_MODEL = 2**21
_MAX_TEXT = 60
_MAX_KEY = 2**32


class Kind(NamedTuple):
    """What a file is said to be, and the steps that the pickle of one takes at most."""

    name: str
    steps: int


EMBEDDING = Kind("embedding", _MAX_WORK)
MODEL = Kind("model", _MAX_WORK_OF_MODEL)


class _Dispatch(dict[int, Callable[["Unpickler"], None]]):
    """Opcodes and what they do; each look-up is a step of the program."""

    def __init__(self, codes: Mapping[int, Any], unpickler: "Unpickler") -> None:
        super().__init__(codes)
        self._unpickler = unpickler

    def __getitem__(self, code: int) -> Callable[["Unpickler"], None]:
        self._unpickler.spend(1)
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[["Unpickler"], None]:
        if chr(code) not in pickletools.code2op:
            raise ValueError("no opcode of pickle")
        raise Refused(
            f"holds the pickle instruction {pickletools.code2op[chr(code)].name}, "
            f"which {self._unpickler.writer} does not write: get it as .safetensors"
        )


class Unpickler(pickle._Unpickler):
    """Loads a program that may name what is in `known` ("module name"), nothing else.

    `writer` is the function whose files these are, for messages.

    Raises:
        Refused: on what such a file never holds, and on too much work.
        SIGNS_OF_DAMAGE: one of `refused`'s, on bytes that make no sense.
    """

    def __init__(
        self,
        program: bytes,
        known: Mapping[str, object],
        writer: str,
        kind: Kind = EMBEDDING,
    ) -> None:
        super().__init__(io.BytesIO(program))
        self._kind = kind
        self.writer = writer
        self._length = len(program)
        self._known = {**known, **numpy_globals(self.spend)}
        self._work = 0
        self.dispatch = _Dispatch(_OPCODES, self)

    def spend(self, work: int) -> None:
        """Counts what a step costs, before it is taken."""
        self._work += work
        if self._work > self._kind.steps:
            raise Refused(
                f"is no {self._kind.name}: its pickle of {self._length} bytes takes "
                f"more than {self._kind.steps} steps"
            )

    def find_class(self, module: str, name: str) -> object:
        asked = f"{module} {name}"
        if asked not in self._known:
            shown = asked.replace(" ", ".")[:_MAX_TEXT]
            raise Refused(
                f"asks for {shown!r}, which no {self._kind.name} needs; nothing was "
                "executed: get it as .safetensors"
            )
        return self._known[asked]

    def pop(self, count: int) -> list:
        return [self.stack.pop() for _ in range(count)][::-1]

    def load_call(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not Function or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        if not function.fewest <= len(arguments) <= function.most:
            raise ValueError("a call with too few or too many arguments")
        self.append(function.call(*arguments))

    def load_build(self) -> None:
        """Sets attributes; the only ones that matter are a ParameterDict's items."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Dtype | Array):
            target.set_state(state, self.spend)
            return
        if type(target) is not dict or type(state) is not dict:
            raise ValueError("attributes for something that has none")
        parameters = state.get("_parameters", {})
        if type(parameters) is not dict:
            raise ValueError("parameters that are no dictionary")
        self.spend(len(parameters))
        target.update(parameters)

    def extend(self, items: list) -> None:
        """APPEND and APPENDS."""
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("elements for something that is no list")
        target.extend(items)

    def update(self, items: list) -> None:
        """SETITEM and SETITEMS: keys and values in turn."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples takes exponential time, long numbers may all hash
            # to the same.
            if not (type(key) is str or (is_size(key) and key < _MAX_KEY)):
                raise ValueError("a key that is neither text nor a small number")
            target[key] = value


# Bound by their sizes in the file alone: as the standard library has them.
_STANDARD = (
    "PROTO FRAME STOP MARK BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BININT "
    "BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES BINBYTES8 NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL BINPERSID"
)
_OPCODES: dict[int, Callable[[Any], None]] = {
    **{
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _STANDARD.split())
    },
    pickle.APPEND[0]: lambda unpickler: unpickler.extend(unpickler.pop(1)),
    pickle.APPENDS[0]: lambda unpickler: unpickler.extend(unpickler.pop_mark()),
    pickle.SETITEM[0]: lambda unpickler: unpickler.update(unpickler.pop(2)),
    pickle.SETITEMS[0]: lambda unpickler: unpickler.update(unpickler.pop_mark()),
    pickle.REDUCE[0]: Unpickler.load_call,
    pickle.NEWOBJ[0]: Unpickler.load_call,
    pickle.BUILD[0]: Unpickler.load_build,
}
