"""Writes a TorchScript archive's network as an ONNX graph by following its forward methods.

The methods are read as syntax trees and evaluated symbolically: each torch operation becomes a node, each tensor
carries the shape it must have. Only what 3D convolutional networks traced by torch.jit use is known; anything else is
refused with its place, never guessed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clara_flow.operators.brain_extraction.torchscript import Archive, ArchiveError, ScriptModule

OPSET = 17
IR_VERSION = 8  # read by onnxruntime 1.10 and newer


@dataclass
class Tensor:
    """A tensor of the graph. Operations in place (`relu_`) change `name`: all who hold the tensor see the new value.

    shape   (batch, channels, depth, height, width)
    """

    name: str
    shape: tuple[int, ...]


def export(archive: Archive, *, side: int, name: str) -> onnx.ModelProto:
    """The archive's network for one cubic volume.

    side    voxels along each axis of the input.
    Returns a checked model: input `image` float32 (1, 1, side, side, side), output `probability` float32
    (1, classes, side, side, side). Raises ArchiveError where the archive does something unknown or shapes do not fit.
    """
    graph = _Graph(archive)
    image = Tensor("image", (1, 1, side, side, side))
    result = graph.call(archive.root, "forward", [image])
    if not isinstance(result, Tensor) or result.shape[2:] != image.shape[2:]:
        raise ArchiveError(f"the network does not give a volume of {side} voxels a side: {result}")
    graph.nodes.append(helper.make_node("Identity", [result.name], ["probability"]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, image.shape)],
            [helper.make_tensor_value_info("probability", TensorProto.FLOAT, result.shape)],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="clara-flow",
    )
    try:
        onnx.checker.check_model(model, full_check=True)  # full: infers every shape and compares it with the outputs
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ArchiveError(f"the graph of {name} is not valid ONNX: {problem}") from None
    return model


class _Graph:
    """Nodes and weights, growing while the forward methods are followed."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._operations: dict[str, Callable[..., Tensor]] = {
            "_convolution": self._convolution,
            "instance_norm": self._instance_norm,
            "max_pool3d": self._max_pool,
            "add": self._add,
            "add_": self._in_place(self._add),
            "relu": self._relu,
            "relu_": self._in_place(self._relu),
            "softmax": self._softmax,
        }

    def call(self, module: ScriptModule, method: str, arguments: list[Any]) -> Any:
        """Follow a method; returns what it returns."""
        function = self._archive.method(module, method)
        parameters = [parameter.arg for parameter in function.args.args]
        if len(parameters) != len(arguments) + 1:
            raise ArchiveError(f"{module.qualified_name}.{method} takes {parameters}, got {len(arguments)} arguments")
        names: dict[str, Any] = dict(zip(parameters, [module, *arguments], strict=True))
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    names[target] = self._evaluate(value, names)
                case ast.Return(value=ast.expr() as value):
                    return self._evaluate(value, names)
                case _:
                    raise ArchiveError(f"{module.qualified_name}.{method}: unknown statement {ast.unparse(statement)}")
        raise ArchiveError(f"{module.qualified_name}.{method} returns nothing")

    def _evaluate(self, expression: ast.expr, names: dict[str, Any]) -> Any:
        def many(expressions: Sequence[ast.expr]) -> list[Any]:
            return [self._evaluate(item, names) for item in expressions]

        match expression:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=items):
                return many(items)
            case ast.Attribute(value=owner, attr=attribute):
                return self._attribute(self._evaluate(owner, names), attribute)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(attribute))]):
                return self._attribute(self._evaluate(owner, names), attribute)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=operation), args=arguments, keywords=[]):
                if operation in self._operations:
                    values = many(arguments)
                    try:
                        return self._operations[operation](*values)
                    except (TypeError, AttributeError, ValueError, IndexError) as problem:
                        raise ArchiveError(f"{ast.unparse(expression)}: unknown arguments ({problem})") from None
            case ast.Call(func=ast.Attribute(value=owner, attr=method), args=arguments, keywords=[]):
                module = self._evaluate(owner, names)
                if isinstance(module, ScriptModule):
                    return self.call(module, method, many(arguments))
        raise ArchiveError(f"unknown operation: {ast.unparse(expression)}")

    @staticmethod
    def _attribute(owner: Any, name: str) -> Any:
        if not isinstance(owner, ScriptModule) or name not in owner.__dict__:
            raise ArchiveError(f"{getattr(owner, 'qualified_name', owner)} has no attribute {name!r}")
        return owner.__dict__[name]

    def _node(self, kind: str, inputs: list[str], shape: Sequence[int], **attributes: Any) -> Tensor:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return Tensor(output, tuple(shape))

    def _weight(self, array: np.ndarray | np.float32, name: str) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(array, np.float32, order="C"), name)
        return name

    def _in_place(self, operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def changed(tensor: Tensor, *others: Any) -> Tensor:
            result = operation(tensor, *others)
            if result.shape != tensor.shape:
                raise ArchiveError(f"an operation in place turned {tensor.shape} into {result.shape}")
            tensor.name = result.name
            return tensor

        return changed

    def _convolution(
        self,
        image: Tensor,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
        *_: object,
    ) -> Tensor:
        """torch: weight is (out, in / groups, ...), transposed (in, out / groups, ...), the same as in ONNX."""
        incoming = weight.shape[0] if transposed else weight.shape[1] * groups
        outgoing = weight.shape[1] * groups if transposed else weight.shape[0]
        if image.shape[1] != incoming or (bias is not None and bias.shape != (outgoing,)):
            raise ArchiveError(f"a convolution with weight {weight.shape} does not fit an image of {image.shape}")
        position = len(self.nodes)
        inputs = [image.name, self._weight(weight, f"weight_{position}")]
        if bias is not None:
            inputs.append(self._weight(bias, f"bias_{position}"))
        attributes: dict[str, Any] = {
            "kernel_shape": weight.shape[2:],
            "strides": stride,
            "pads": [*padding, *padding],
            "dilations": dilation,
            "group": groups,
        }
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        axes = list(zip(image.shape[2:], stride, padding, spans, strict=True))
        if transposed:
            attributes["output_padding"] = output_padding
            sizes = [(n - 1) * s - 2 * p + k + extra for (n, s, p, k), extra in zip(axes, output_padding, strict=True)]
        else:
            sizes = [(n + 2 * p - k) // s + 1 for n, s, p, k in axes]
        kind = "ConvTranspose" if transposed else "Conv"
        return self._node(kind, inputs, [image.shape[0], outgoing, *sizes], **attributes)

    def _instance_norm(
        self,
        image: Tensor,
        weight: object,
        bias: object,
        running_mean: object,
        running_variance: object,
        use_input_statistics: bool,
        momentum: float,
        epsilon: float,
        *_: object,
    ) -> Tensor:
        given = [tensor for tensor in (weight, bias, running_mean, running_variance) if tensor is not None]
        if given or not use_input_statistics:
            raise ArchiveError("an instance norm with weights or running statistics is not known")
        # Not InstanceNormalization: onnxruntime's sums millions of values one after the other and loses four digits.
        mean = self._mean(image)
        centred = self._node("Sub", [image.name, mean.name], image.shape)
        variance = self._mean(self._node("Mul", [centred.name, centred.name], image.shape))
        safe = self._node("Add", [variance.name, self._weight(np.float32(epsilon), "epsilon")], variance.shape)
        deviation = self._node("Sqrt", [safe.name], variance.shape)
        return self._node("Div", [centred.name, deviation.name], image.shape)

    def _mean(self, image: Tensor) -> Tensor:
        """Mean of each channel: rows first, then the means of rows, which keeps float32 sums short."""
        batch, channels, depth, height, _ = image.shape
        rows = self._node("ReduceMean", [image.name], (batch, channels, depth, height, 1), axes=[4], keepdims=1)
        return self._node("ReduceMean", [rows.name], (batch, channels, 1, 1, 1), axes=[2, 3], keepdims=1)

    def _max_pool(
        self, image: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], *ceil: bool
    ) -> Tensor:
        if any(ceil) or any(step != 1 for step in dilation):
            raise ArchiveError("max pooling with dilation or rounding up is not known")
        axes = zip(image.shape[2:], kernel, stride, padding, strict=True)
        sizes = [(n + 2 * p - k) // s + 1 for n, k, s, p in axes]
        shape = [*image.shape[:2], *sizes]
        return self._node(
            "MaxPool", [image.name], shape, kernel_shape=kernel, strides=stride, pads=[*padding, *padding]
        )

    def _add(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape:
            raise ArchiveError(f"cannot add {first.shape} and {second.shape}")
        return self._node("Add", [first.name, second.name], first.shape)

    def _relu(self, image: Tensor) -> Tensor:
        return self._node("Relu", [image.name], image.shape)

    def _softmax(self, image: Tensor, axis: int) -> Tensor:
        return self._node("Softmax", [image.name], image.shape, axis=axis)
