"""The rules of the language, one file each; P01 is the loader's, P17 the importer's.

A rule is a pure function from the tree to problems. It says nothing about texts with placeholders left in them (P13
does) and nothing about imports that could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clara_flow.flows.definition.problem import Problem
from clara_flow.flows.definition.rules import (
    p02_versions,
    p03_keys,
    p04_names,
    p05_upstreams,
    p06_outputs,
    p07_cycles,
    p08_paths,
    p09_types,
    p10_memory,
    p11_numbers,
    p12_environment,
    p13_placeholders,
    p14_images_and_models,
    p15_payload,
    p16_unused_outputs,
)
from clara_flow.flows.definition.tree import Tree

RULES: tuple[Callable[[Tree], Iterator[Problem]], ...] = (
    p02_versions.check,
    p03_keys.check,
    p04_names.check,
    p05_upstreams.check,
    p06_outputs.check,
    p07_cycles.check,
    p08_paths.check,
    p09_types.check,
    p10_memory.check,
    p11_numbers.check,
    p12_environment.check,
    p13_placeholders.check,
    p14_images_and_models.check,
    p15_payload.check,
    p16_unused_outputs.check,
)
