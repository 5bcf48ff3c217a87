"""Reads a TorchScript archive without torch: its modules, weights and source, and runs none of its code.

An archive is a zip: `<root>/data.pkl` (the module tree, a pickle that refers to its tensors), `<root>/data/<n>` (raw
little-endian storages) and `<root>/code/**.py` (the forward methods, in a subset of Python). The pickle is read by an
unpickler that can build nothing but modules and float32 tensors.
"""

from __future__ import annotations

import ast
import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

SIZE_LIMIT_BYTES = 512 * 2**20
"""Unpacked size above which an archive is refused."""


class ArchiveError(Exception):
    """The archive is damaged, or holds something that this reader does not know."""


class ScriptModule:
    """A module of the archive: its sub-modules and tensors are attributes; `qualified_name` finds its source."""

    qualified_name: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Archive:
    """An opened TorchScript archive.

    root        the top module.
    Raises ArchiveError where the file is no such archive or holds anything but modules and float32 tensors.
    """

    def __init__(self, file: Path | IO[bytes]) -> None:
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > SIZE_LIMIT_BYTES:
                    raise ArchiveError(f"the archive unpacks to more than {SIZE_LIMIT_BYTES} bytes")
                files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile as problem:
            raise ArchiveError(f"not a TorchScript archive: {problem}") from None
        if "data.pkl" not in files:
            raise ArchiveError("not a TorchScript archive: it has no data.pkl")
        self._files = files
        self._classes: dict[str, dict[str, ast.ClassDef]] = {}
        with _Pickle(files) as unpickler:
            self.root = unpickler.load()
        if not isinstance(self.root, ScriptModule):
            raise ArchiveError(f"the archive holds a {type(self.root).__name__}, not a module")

    def method(self, module: ScriptModule, name: str) -> ast.FunctionDef:
        """The source of a method, as a syntax tree. Raises ArchiveError when there is none."""
        path, _, class_name = module.qualified_name.rpartition(".")
        source = f"code/{path.replace('.', '/')}.py"
        if source not in self._classes:
            if source not in self._files:
                raise ArchiveError(f"no source {source} for {module.qualified_name}")
            tree = ast.parse(self._files[source].decode("utf-8"))
            self._classes[source] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in getattr(self._classes[source].get(class_name), "body", []):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        raise ArchiveError(f"{module.qualified_name} has no method {name!r}")


class _Pickle(pickle.Unpickler):
    """Builds modules and tensors, nothing else."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._stream = io.BytesIO(files["data.pkl"])
        self._files = files
        self._modules: dict[str, type[ScriptModule]] = {}
        super().__init__(self._stream)

    def __enter__(self) -> _Pickle:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def load(self) -> Any:
        try:
            return super().load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as fault:
            raise ArchiveError(f"data.pkl cannot be read: {fault}") from None

    def find_class(self, module: str, name: str) -> Any:
        """The few names that a module tree needs."""
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch", "FloatStorage"): "FloatStorage",
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "__torch__" or module.startswith("__torch__."):
            qualified = f"{module}.{name}"
            if qualified not in self._modules:
                self._modules[qualified] = type(name, (ScriptModule,), {"qualified_name": qualified})
            return self._modules[qualified]
        raise ArchiveError(f"data.pkl asks for {module}.{name}, which a network has no need of")

    def persistent_load(self, reference: Any) -> np.ndarray:
        """float32 (n,): one storage; `reference` is ("storage", type, key, device, element count)."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or storage_type != "FloatStorage":
            raise ArchiveError(f"storage {key!r} is {storage_type!r}; only float32 is known")
        raw = self._files.get(f"data/{key}")
        if raw is None or len(raw) != 4 * count:
            raise ArchiveError(f"storage {key!r} should have {4 * count} bytes, found {len(raw or b'')}")
        return np.frombuffer(raw, dtype="<f4")


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> np.ndarray:
    """A read-only view of `size` into a storage; the tensor must be contiguous (C order)."""
    count = int(np.prod(size, dtype=np.int64))
    view = storage[offset : offset + count].reshape(size)
    if tuple(step // 4 for step in view.strides) != tuple(stride):
        raise ArchiveError(f"a tensor of size {size} with strides {stride} is not contiguous")
    return view
