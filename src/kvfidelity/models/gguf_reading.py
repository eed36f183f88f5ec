"""Parses a GGUF file once for everything that reads it during a conversion.

transformers parses the file for the configuration, for the tokenizer and for the weights, and makes
the table of tensor names once for each module of the model: for a model of 135M parameters that
was three quarters of a conversion's time. Both come from the package `gguf` and depend on the file
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np


class PlainReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf has no types
    """A reader whose arrays are plain views of the mapped file.

    Each of the hundred thousands of slices that parsing takes is ten times as expensive from a
    `numpy.memmap`.
    """

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data = mapped.view(np.ndarray)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `gguf.GGUFReader` gives one reader per file, and names of tensors are made once.

    Whoever imports these names from `gguf` only when it uses them gets those here; transformers
    does. Files must not change meanwhile.
    """
    reader = lru_cache(maxsize=1)(lambda path: PlainReader(path))
    replaced = {
        "GGUFReader": lambda path: reader(Path(path)),
        "get_tensor_name_map": lru_cache(maxsize=1)(gguf.get_tensor_name_map),
    }
    originals = {name: getattr(gguf, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(gguf, name, value)
        yield
    finally:
        for name, value in originals.items():
            setattr(gguf, name, value)
