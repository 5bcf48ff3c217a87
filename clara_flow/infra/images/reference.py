"""The reference page of the bundled operators, made from their `operator.yaml` files.

python -m clara_flow.infra.images.reference > docs/reference/operators.md
"""

from __future__ import annotations

import sys

from clara_flow.infra.images.catalog import BundledOperator, Catalog, Port, bundled

INTRODUCTION = """# Bundled operators

Made by `make docs` from the `operator.yaml` files; do not edit. Folders are those inside a container; an input or
output without a name is the operator's only one.
"""


def reference(catalog: Catalog) -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    parts += [_section(operator, catalog) for operator in catalog.operators.values()]
    return "\n".join(parts)


def _section(operator: BundledOperator, catalog: Catalog) -> str:
    requests = operator.requests
    lines = [
        f"## {operator.title} (`{operator.name}` {operator.version})",
        "",
        operator.description.strip(),
        "",
        f"Images: {', '.join(f'`{image}`' for image in catalog.images_of(operator.name))}",
        "",
        f"Usual requests: {requests.cpu} CPU, {requests.memory} MiB, {requests.gpu} GPU",
        "",
    ]
    ports = [("input", port) for port in operator.inputs] + [("output", port) for port in operator.outputs]
    if ports:
        lines += [
            "| | Name | Folder | Holds | |",
            "|---|---|---|---|---|",
            *(_row(kind, port) for kind, port in ports),
            "",
        ]
    if operator.variables:
        lines += ["| Variable | Default | |", "|---|---|---|"]
        for variable in operator.variables:
            default = (
                "must be given" if variable.default is None else f"`{variable.default}`" if variable.default else ""
            )
            lines.append(f"| `{variable.name}` | {default} | {_one_line(variable.description)} |")
        lines.append("")
    for model in operator.models:
        lines += [f"Model: `{model.name}` {model.version}, made when it is first needed", ""]
    return "\n".join(lines)


def _row(kind: str, port: Port) -> str:
    name = f"`{port.name}`" if port.name else ""
    return f"| {kind} | {name} | `{port.path}` | {port.media} | {_one_line(port.description)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference(bundled()))
