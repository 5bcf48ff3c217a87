"""Reading TorchScript archives and writing them as ONNX: on small archives made here, and on harmful ones."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from clara_flow.operators.brain_extraction.onnx_export import export
from clara_flow.operators.brain_extraction.torchscript import Archive, ArchiveError

CONVOLUTION = "torch._convolution(x, weight, bias, [1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1, False)"
NORM = "torch.instance_norm(x, None, None, None, None, True, 0.1, 1.0e-05, True)"


class Storage:
    """A float32 storage of the archive that is being made."""

    def __init__(self, key: str, count: int) -> None:
        self.key, self.count = key, count


class StoredTensor:
    """Pickles as torch pickles a tensor."""

    def __init__(self, storage: Storage, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.arguments = (storage, offset, size, stride, True, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The names that a TorchScript pickle refers to, there while one is made."""
    made = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "__torch__")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)

    def _rebuild_tensor_v2(*arguments: object) -> None:
        raise AssertionError("only its name is needed")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    made["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    names = types.SimpleNamespace()
    for name, owner in (
        ("FloatStorage", "torch"),
        ("HalfStorage", "torch"),
        ("Net", "__torch__"),
        ("Part", "__torch__"),
    ):
        kind = type(name, (), {"__module__": owner, "__qualname__": name})
        setattr(made[owner], name, kind)
        setattr(names, name, kind)
    return names


def tensor(array: np.ndarray, key: str) -> StoredTensor:
    strides = tuple(step // 4 for step in np.zeros(array.shape, np.float32).strides)
    return StoredTensor(Storage(key, array.size), array.shape, strides)


def archive_file(
    root: object,
    code: str,
    storages: dict[str, bytes],
    names: types.SimpleNamespace,
    storage_type: str = "FloatStorage",
) -> io.BytesIO:
    """A TorchScript archive as torch.jit.save lays it out."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Storage):
                return ("storage", getattr(names, storage_type), value.key, "cpu", value.count)
            return None

    stream = io.BytesIO()
    Writer(stream, protocol=2).dump(root)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", stream.getvalue())
        archive.writestr("net/code/__torch__.py", code)
        for key, content in storages.items():
            archive.writestr(f"net/data/{key}", content)
    file.seek(0)
    return file


def network(body: str, names: types.SimpleNamespace, weight: np.ndarray, bias: np.ndarray | None = None) -> Archive:
    """An archive of one module with that forward method, a weight and perhaps a bias."""
    root = names.Net()
    root.weight = tensor(weight, "0")
    storages = {"0": weight.astype("<f4").tobytes()}
    root.bias = None
    if bias is not None:
        root.bias = tensor(bias, "1")
        storages["1"] = bias.astype("<f4").tobytes()
    root.part = names.Part()
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"""class Net(Module):
  __parameters__ = ["weight"]
  weight : Tensor
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
    weight = self.weight
    bias = self.bias
{lines}
class Part(Module):
  def forward(self: __torch__.Part,
    y: Tensor) -> Tensor:
    return torch.relu(y)
"""
    return Archive(archive_file(root, code, storages, names))


def run(archive: Archive, image: np.ndarray) -> np.ndarray:
    model = export(archive, side=image.shape[0], name="test")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image[np.newaxis, np.newaxis].astype(np.float32)})[0]


RNG = np.random.default_rng(3)
IMAGE = RNG.normal(size=(4, 4, 4)).astype(np.float32)
WEIGHT = RNG.normal(size=(2, 1, 3, 3, 3)).astype(np.float32)
BIAS = np.array([0.5, -2.0], np.float32)


def convolved(image: np.ndarray) -> np.ndarray:
    """The convolution by the book: (2, 4, 4, 4)."""
    padded = np.pad(image, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    return np.einsum("xyzabc,oabc->oxyz", windows, WEIGHT[:, 0]) + BIAS[:, None, None, None]


def test_a_convolution_is_the_same_in_onnx(torch_names: types.SimpleNamespace) -> None:
    result = run(network(f"return {CONVOLUTION}", torch_names, WEIGHT, BIAS), IMAGE)
    assert result.shape == (1, 2, 4, 4, 4)
    assert np.allclose(result[0], convolved(IMAGE), atol=1e-5)


def test_a_transposed_convolution_of_stride_2_undoes_pooling_in_shape(torch_names: types.SimpleNamespace) -> None:
    weight = np.ones((1, 1, 2, 2, 2), np.float32)
    body = """pooled = torch.max_pool3d(x, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])
return torch._convolution(pooled, weight, None, [2, 2, 2], [0, 0, 0], [1, 1, 1], True, [0, 0, 0], 1, False)"""
    result = run(network(body, torch_names, weight), IMAGE)
    blocks = IMAGE.reshape(2, 2, 2, 2, 2, 2).max(axis=(1, 3, 5))
    assert np.allclose(result[0, 0], blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_instance_norm_and_softmax_are_the_same_in_onnx(torch_names: types.SimpleNamespace) -> None:
    body = f"x0 = {CONVOLUTION}\nx1 = {NORM.replace('(x,', '(x0,')}\nreturn torch.softmax(x1, 1)"
    result = run(network(body, torch_names, WEIGHT, BIAS), IMAGE)[0]
    image = convolved(IMAGE)
    normed = (image - image.mean((1, 2, 3), keepdims=True)) / np.sqrt(image.var((1, 2, 3), keepdims=True) + 1e-5)
    expected = np.exp(normed) / np.exp(normed).sum(0)
    assert np.allclose(result, expected, atol=1e-5)


def test_operations_in_place_change_what_others_hold(torch_names: types.SimpleNamespace) -> None:
    body = f"a = {CONVOLUTION}\nb = torch.relu_(a)\nreturn torch.add(a, b)"
    result = run(network(body, torch_names, WEIGHT, BIAS), IMAGE)
    assert np.allclose(result[0], 2 * np.maximum(convolved(IMAGE), 0), atol=1e-5)


def test_methods_of_submodules_are_followed(torch_names: types.SimpleNamespace) -> None:
    body = 'part = getattr(self, "part")\nreturn (part).forward(x, )'
    assert np.array_equal(run(network(body, torch_names, WEIGHT), IMAGE)[0, 0], np.maximum(IMAGE, 0))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return torch.relu(weight)", "unknown arguments"),
        ("return torch.gelu(x)", r"unknown operation: torch.gelu\(x\)"),
        ("return __import__('os').system('true')", "unknown operation"),
        ("return x + x", r"unknown operation: x \+ x"),
        ("x.y = x\nreturn x", "unknown statement x.y = x"),
        ("y = x", "returns nothing"),
        ("return self.other", "has no attribute 'other'"),
        ("return (self.part).backward(x)", "has no method 'backward'"),
        ("return (self.part).forward(x, x)", "takes"),
        ("return torch.softmax(x)", "unknown arguments"),
        (f"return torch.add(x, {CONVOLUTION})", r"cannot add \(1, 1, 4, 4, 4\) and \(1, 2, 4, 4, 4\)"),
        (f"y = {CONVOLUTION}\nreturn {CONVOLUTION.replace('(x,', '(y,')}", "does not fit an image of"),
        ("return torch.max_pool3d(x, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])", "does not give a volume of 4"),
        (NORM.replace("None, None, True", "weight, None, True").join(["return ", ""]), "running statistics"),
    ],
)
def test_what_is_not_known_is_refused(torch_names: types.SimpleNamespace, body: str, told: str) -> None:
    with pytest.raises(ArchiveError, match=told):
        export(network(body, torch_names, WEIGHT, BIAS), side=4, name="test")


class Harmful:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_a_harmful_pickle_runs_nothing(
    torch_names: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=r"asks for posix\.system"):
        Archive(archive_file(Harmful(), "", {}, torch_names))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stored", "size", "stride", "told"),
    [
        (b"\0" * 12, (4,), (1,), "should have 16 bytes, found 12"),
        (b"\0" * 16, (2, 2), (1, 2), "not contiguous"),
        (b"\0" * 16, (5,), (1,), "data.pkl cannot be read"),
    ],
)
def test_damaged_tensors_are_refused(
    torch_names: types.SimpleNamespace, stored: bytes, size: tuple[int, ...], stride: tuple[int, ...], told: str
) -> None:
    root = torch_names.Net()
    root.weight = StoredTensor(Storage("0", 4), size, stride)
    with pytest.raises(ArchiveError, match=told):
        Archive(archive_file(root, "", {"0": stored}, torch_names))


def test_other_storages_than_float32_are_refused(torch_names: types.SimpleNamespace) -> None:
    root = torch_names.Net()
    root.weight = tensor(np.zeros(2, np.float32), "0")
    with pytest.raises(ArchiveError, match="HalfStorage"):
        Archive(archive_file(root, "", {"0": bytes(8)}, torch_names, storage_type="HalfStorage"))


def test_what_is_no_archive_is_told(torch_names: types.SimpleNamespace) -> None:
    with pytest.raises(ArchiveError, match="not a TorchScript archive"):
        Archive(io.BytesIO(b"MZ"))
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(ArchiveError, match=r"it has no data\.pkl"):
        Archive(empty)
    with pytest.raises(ArchiveError, match="holds a dict, not a module"):
        Archive(archive_file({}, "", {}, torch_names))
