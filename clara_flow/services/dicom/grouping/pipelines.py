"""From a pipeline's reference, as AE titles and requests give it, to a definition that can become jobs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from uuid import UUID

from clara_flow.deployments.pipelines import bundled_definition, bundled_names, find_definition
from clara_flow.deployments.trigger import Compiled, House, compile_definition
from clara_flow.errors import InputError, NotFound
from clara_flow.plan import Plan
from clara_flow.records import pipelines as records
from clara_flow.records.models import Pipeline

REMEMBERED = 64

Known = tuple[str, int, int, tuple[tuple[str, str], ...]]


class Pipelines:
    """Resolves references; for any thread. A definition that has not changed is compiled once."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._lock = Lock()
        self._compiled: OrderedDict[Known, Compiled] = OrderedDict()

    def resolve(self, reference: str, arguments: Mapping[str, str]) -> Compiled:
        """The pipeline that `reference` names: id of a registered one, name of a bundled one, or path of a definition.

        Raises InputError when there is none, or arguments are given for one that was compiled with its own;
        DefinitionInvalid.
        """
        try:
            pipeline_id = UUID(reference)
        except ValueError:
            return self._definition(find_definition(reference), arguments)
        if arguments:
            raise InputError(f"pipeline {reference} was registered with its arguments: give its name or path instead")
        return _compiled(records.get_pipeline(self.house.engine, pipeline_id))

    def named(self, reference: str) -> Compiled:
        """The pipeline that somebody means who may not name files here: id of a registered one, or a name of a bundled
        one, else of a registered one; of several of that name, the newest.

        Raises NotFound, DefinitionInvalid.
        """
        if reference in bundled_names():
            return self._definition(bundled_definition(reference), {})
        row: Pipeline | None
        try:
            row = records.get_pipeline(self.house.engine, UUID(reference))
        except (ValueError, InputError):
            row = None
        row = row or records.newest_named(self.house.engine, reference)
        if row is None:
            raise NotFound("there is no pipeline of the id or name that the Algorithm has; `clara-flow pipelines list`")
        return _compiled(row)

    def _definition(self, path: Path, arguments: Mapping[str, str]) -> Compiled:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}", definition=str(path)) from None
        known = str(path.absolute()), status.st_ino, status.st_mtime_ns, tuple(sorted(arguments.items()))
        with self._lock:
            compiled = self._compiled.get(known)
        if compiled is None:
            compiled = compile_definition(self.house.settings, path, arguments)
            with self._lock:
                self._compiled[known] = compiled
                while len(self._compiled) > REMEMBERED:
                    self._compiled.popitem(last=False)
        return compiled


def _compiled(row: Pipeline) -> Compiled:
    plan = Plan.model_validate(row.plan)
    return Compiled(text=row.definition, source=row.source, plan=plan, arguments={}, is_variant=row.is_variant)
