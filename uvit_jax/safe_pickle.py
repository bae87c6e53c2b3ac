"""Unpickling by an allow-list: nothing in the file is imported, called or changed.

A pickle may name any Python function to be called, and may change what it has named (the opcode
BUILD). `AllowListUnpickler` gives a constructor of the reader's own for each name that the reader
knows, and refuses every other name.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

# From a module and a name in it to the constructor in their place; None for a name to refuse.
Constructors = Callable[[str, str], Any]


# `_Unpickler` is pickle's own reader in pure Python, kept for its use in subclasses. The public
# one, in C, allows no override of an opcode, and allocates whatever size a damaged file asks for
# (its memo is an array, ours a dict). To be replaced when pickle has a public way to restrict
# BUILD.
class AllowListUnpickler(pickle._Unpickler):
    """An unpickler that calls only the constructors it is given, and changes no other object.

    Args:
      file: the pickle, open for reading bytes.
      constructors: the allow-list.
      refuse: the exception to raise for a name outside the list, "module.name".
    """

    stack: list[Any]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # Neither torch.save nor np.save writes it, and it allocates as many bytes as it says.
    del dispatch[pickle.BYTEARRAY8[0]]

    def __init__(
        self,
        file: io.BufferedIOBase,
        constructors: Constructors,
        refuse: Callable[[str], Exception],
    ):
        super().__init__(file)
        self._constructors = constructors
        self._refuse = refuse

    def find_class(self, module: str, name: str) -> Any:
        """The constructor in the place of a name."""
        constructor = self._constructors(module, name)
        if constructor is None:
            raise self._refuse(f"{module}.{name}")
        return constructor

    def load_global(self) -> None:
        """Reads a module and a name in it, a line each; pickle's own takes half a line for one."""
        module, name = self.readline(), self.readline()
        if not name.endswith(b"\n"):
            raise EOFError("it ends in a name")
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    dispatch[pickle.GLOBAL[0]] = load_global

    def load_build(self) -> None:
        """Gives an object its state if its class has `__setstate__`, and drops it if not."""
        state = self.stack.pop()
        built = self.stack[-1]
        take = getattr(type(built), "__setstate__", None)
        if take is not None:
            take(built, state)

    dispatch[pickle.BUILD[0]] = load_build
