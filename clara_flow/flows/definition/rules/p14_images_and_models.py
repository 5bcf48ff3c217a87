"""P14: images have possible names and are allowed here; models exist; models and services do not mix.

Whether a model exists and an image is allowed is known only where a `Site` is given, at the creation of a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from clara_flow.flows.definition.problem import Problem, Severity, Vocabulary, listed, problem_at, shown
from clara_flow.flows.definition.syntax import Container, Operator, Unit
from clara_flow.flows.definition.tree import Tree, label

CODE = "P14"
MAX_LENGTH = 255
# The reference grammar of container images (OCI distribution), without the tag.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/"
IMAGE = re.compile(rf"(?:{_HOST})?{_PART}(?:/{_PART})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def split_reference(container: Container) -> tuple[str, str]:
    """Image and tag of a container as the plan holds them; a pinned `image@digest` has the tag ""."""
    image = container.image.value if container.image is not None else ""
    tag = container.tag.value if container.tag is not None else ""
    if "@" in image:
        return image, ""
    name, colon, own_tag = image.rpartition(":")
    if colon and "/" not in own_tag:
        return name, own_tag
    return image, tag or "latest"


def check(tree: Tree) -> Iterator[Problem]:
    """Every container, every model, and operators with models beside services."""
    models = Vocabulary(tree.site.models or ())
    for operator in tree.operators:
        units: tuple[Unit, ...] = (operator, *operator.services)
        for part in units:
            if part.container is not None:
                yield from _check_container(part.container, tree)
        yield from _check_models(operator, tree, models)
    with_services = [o for o in tree.operators if o.services]
    with_models = next((o for o in tree.operators if o.models), None)
    if with_services and with_models is not None and not any(o.models for o in with_services):
        message = (
            f"services here and models in {label(with_models)}: Clara warns of mixing both in one pipeline; "
            "clara-flow keeps their servers apart"
        )
        yield problem_at(with_services[0].services[0].node, message, CODE, Severity.WARNING)


def _check_container(container: Container, tree: Tree) -> Iterator[Problem]:
    image, tag = container.image, container.tag
    if tag is not None and not tag.is_open and not TAG.fullmatch(tag.value):
        message = f"{shown(tag.value)} is not an image tag; 1 to 128 letters, digits, _ . - are"
        yield problem_at(tag, message, CODE)
    if image is None or image.is_open:
        return
    name, own_tag = split_reference(container)
    name, at, digest = name.partition("@")
    if len(image.value) > MAX_LENGTH or not IMAGE.fullmatch(name) or (at and not DIGEST.fullmatch(digest)):
        message = (
            f"{shown(image.value)} is not an image name; lower-case words with / between are, such as clara/reader"
        )
        yield problem_at(image, message, CODE)
        return
    if tag is not None and name != image.value:
        yield problem_at(
            image, f"{shown(image.value)} has a {'digest' if at else 'tag'} already; drop one of the two", CODE
        )
    elif not at and name != image.value:
        if not TAG.fullmatch(own_tag):
            yield problem_at(image, f"{shown(own_tag)} is not an image tag", CODE)
        else:
            message = f"write the tag of {shown(name)} under its own key, `tag: {own_tag}`"
            yield problem_at(image, message, CODE, Severity.WARNING)
    allowed = tree.site.images
    if allowed is not None and not any(fnmatchcase(name, pattern) for pattern in allowed):
        yield problem_at(image, f"image {shown(name)} is not allowed here; allowed are {listed(allowed)}", CODE)


def _check_models(operator: Operator, tree: Tree, vocabulary: Vocabulary) -> Iterator[Problem]:
    if operator.models and operator.services:
        message = f"{label(operator)} has both `models` and `services`; use one of them"
        yield problem_at(operator.services[0].node, message, CODE)
    known = tree.site.models
    for model in operator.models:
        version = model.version
        if version is not None and not version.is_open and not re.fullmatch(r"latest|[1-9][0-9]{0,17}", version.value):
            message = f"model version {shown(version.value)} is not possible; a whole number from 1 on or latest is"
            yield problem_at(version, message, CODE)
        if known is not None and model.name is not None and model.name.value not in known:
            has = f"the repository has {listed(sorted(known))}" if known else "the repository has no models"
            message = f"model {shown(model.name.value)} does not exist; {has}{vocabulary.hint(model.name.value)}"
            yield problem_at(model.name, message, CODE)
