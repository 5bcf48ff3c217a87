"""The language's speed: a definition of 1,000 operators checked and compiled; 100 problems in one file all reported.

The floor is reading the same text with PyYAML's C parser into plain values, in the same run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from benchmarks.common import Scale, timed, write
from clara_flow.flows.compiler import compile_pipeline


def definition(operators: int) -> str:
    """A layered graph: each operator reads two of the layer before."""
    rows = []
    for number in range(operators):
        upstreams = [f"op-{up}" for up in (number - 10, number - 7) if up >= 0]
        inputs = [{"path": f"/in{at}", "from": upstream} for at, upstream in enumerate(upstreams)] or [{"path": "/in"}]
        rows.append(
            {
                "name": f"op-{number}",
                "container": {"image": "clara/dicom-reader", "tag": "0.8.1", "command": ["python", "main.py"]},
                "variables": {"LEVEL": str(number), "JOB": "${{JOB_ID}}"},
                "requests": {"cpu": 1, "memory": 512},
                "input": inputs,
                "output": [{"path": "/out"}],
            }
        )
    return yaml.safe_dump({"api-version": "0.4.0", "name": "large", "operators": rows}, sort_keys=False)


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    text = definition(1000)
    result = compile_pipeline(text, source="large.yaml")
    assert result.plan is not None
    compiled = timed(lambda: compile_pipeline(text, source="large.yaml"), scale.rounds)
    floor = timed(lambda: yaml.load(text, Loader=yaml.CSafeLoader), scale.rounds)
    broken = text.replace("cpu: 1", "cpu: -1", 100)
    found = [p for p in compile_pipeline(broken, source="broken.yaml").problems if p.code == "P11"]
    assert len(found) == 100, len(found)
    return write(
        results,
        "compile_speed",
        {
            "operators": 1000,
            "lines": text.count("\n"),
            "check_and_compile": compiled,
            "yaml_load": floor,
            "over_yaml_load": round(compiled["median_s"] / floor["median_s"], 2),
            "problems_reported_of_100": len(found),
            "aim": {"check_and_compile median_s": 1.0},
            "checksum": hashlib.sha256(result.plan.model_dump_json().encode()).hexdigest(),
        },
    )
