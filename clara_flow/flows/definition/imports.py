"""Rule P17: `import` puts an operator or a service from its own file into the tree.

Nothing outside the definition's folder is read: paths are relative, without `..`, and links may not lead out.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from pathlib import Path, PurePosixPath

from clara_flow.flows.definition.grammar import read
from clara_flow.flows.definition.loader import MAX_BYTES, MAX_NODES, load
from clara_flow.flows.definition.node import Mapping, Node, Sequence, Text, copy, size
from clara_flow.flows.definition.problem import Problem, problem_at, shown
from clara_flow.flows.definition.scope import Argument, Budget, Document, substitute
from clara_flow.flows.definition.syntax import Pipeline
from clara_flow.flows.definition.tree import Site, Tree

CODE = "P17"
MAX_IMPORT_DEPTH = 8


class _NotImported(Exception):
    """The document cannot be put in; `at` is the place that asked for it. Without a message it has been told."""

    def __init__(self, at: Node, message: str = "") -> None:
        super().__init__(message)
        self.at, self.message = at, message


def expand(
    root: Mapping, arguments: AbstractMapping[str, str], folder: Path | None, site: Site
) -> tuple[Tree, list[Problem]]:
    """The typed tree of a loaded definition, parameters substituted and imports put in. Changes `root`."""
    expander = _Expander(folder, root.source)
    given = {name: Argument(value) for name, value in arguments.items()}
    expander.documents.append(substitute(root, given, expander.budget))
    operators = root.get("operators")
    if isinstance(operators, Sequence):
        expander.put_in(operators, (str(PurePosixPath(root.source)),))
    tree = Tree(read(Pipeline, root), expander.documents, expander.imports, site)
    return tree, expander.problems


class _Expander:
    def __init__(self, folder: Path | None, source: str) -> None:
        self.folder = folder.resolve() if folder is not None else None
        self.source_folder = PurePosixPath(source).parent
        self.budget = Budget(nodes=MAX_NODES)
        self.documents: list[Document] = []
        self.imports: list[Mapping] = []
        self.problems: list[Problem] = []
        self.loaded: dict[Path, Mapping | None] = {}

    def put_in(self, items: Sequence, chain: tuple[str, ...]) -> None:
        """Replace the imports of a list of operators or services, and those inside its items.

        chain   sources from the main file to the one that holds `items`.
        """
        for index, item in enumerate(items.items):
            if isinstance(item, Mapping):
                items.items[index] = self._whole(item, chain)

    def _whole(self, item: Mapping, chain: tuple[str, ...]) -> Mapping:
        if item.get("import") is not None:
            self.imports.append(item)
            return self._imported(item, chain)
        services = item.get("services")
        if isinstance(services, Sequence):
            self.put_in(services, chain)
        return item

    def _imported(self, item: Mapping, chain: tuple[str, ...]) -> Mapping:
        try:
            twin = self._document(item, chain)
        except _NotImported as error:
            if error.message:
                self.problems.append(problem_at(error.at, error.message, CODE))
            twin = Mapping(item.source, item.line, item.column, parent=item.parent, step=item.step, import_failed=True)
        name = item.text("name")
        if name is not None:
            twin.entries["name"] = (item.entries["name"][0], name)
        return twin

    def _document(self, item: Mapping, chain: tuple[str, ...]) -> Mapping:
        node = item.get("import")
        path = node.text("path") if isinstance(node, Mapping) else None
        if path is None or path.is_open:  # rules P03 and P13 tell
            raise _NotImported(item)
        assert isinstance(node, Mapping)  # noqa: S101 - it has a path
        relative = PurePosixPath(item.source).relative_to(self.source_folder).parent / self._checked(path)
        source = str(self.source_folder / relative)
        if source in chain:
            circle = " -> ".join([*chain[chain.index(source) :], source])
            raise _NotImported(path, f"imports go in a circle: {circle}")
        if len(chain) > MAX_IMPORT_DEPTH:
            raise _NotImported(path, f"imports are nested deeper than {MAX_IMPORT_DEPTH} levels")
        raw = self._loaded(relative, source, path)
        self.budget.nodes -= size(raw)
        if self.budget.nodes < 0:
            raise _NotImported(path, f"imports bring in more than {MAX_NODES} values")
        twin = copy(raw)
        assert isinstance(twin, Mapping)  # noqa: S101 - a copy of a map
        twin.own_file = True
        args = node.get("args")
        entries = args.entries if isinstance(args, Mapping) else {}
        given = {n: Argument(v.value, k) for n, (k, v) in entries.items() if isinstance(v, Text)}
        self.documents.append(substitute(twin, given, self.budget))
        return self._whole(twin, (*chain, source))

    @staticmethod
    def _checked(path: Text) -> PurePosixPath:
        """The path of an import, when it is a relative one that stays below its file."""
        if "://" in path.value or path.value.startswith(("/", "~")) or "\\" in path.value:
            message = f"{shown(path.value)} is not a path relative to this file, with / between folders"
            raise _NotImported(path, message)
        relative = PurePosixPath(path.value)
        if ".." in relative.parts:
            raise _NotImported(path, f"{shown(path.value)} leaves the folder of this file; `..` is not possible")
        return relative

    def _loaded(self, relative: PurePosixPath, source: str, path: Text) -> Mapping:
        if self.folder is None:
            raise _NotImported(path, "this definition was handed in without its folder, so it cannot import files")
        try:
            file = (self.folder / relative).resolve()
            if not file.is_relative_to(self.folder):
                raise _NotImported(path, f"{shown(path.value)} is a link that leads out of the definition's folder")
            if file not in self.loaded:
                if not file.is_file():
                    kind = "is a folder" if file.is_dir() else "does not exist"
                    raise _NotImported(path, f"file {shown(source)} {kind}")
                with file.open("rb") as stream:
                    self.loaded[file], problems = load(stream.read(MAX_BYTES + 1), source)
                self.problems += problems
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "its name is not possible"
            raise _NotImported(path, f"file {shown(source)} cannot be read: {reason}") from None
        root = self.loaded[file]
        if root is None:
            raise _NotImported(path)
        return root
