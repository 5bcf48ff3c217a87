"""The catalog: what each bundled operator is, read from its `operator.yaml`, and which image names mean it.

The platform knows operators by these files alone; it imports none of them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import clara_flow
from clara_flow.errors import LauncherUnavailable, SettingsError

OPERATORS_DIR = Path(clara_flow.__file__).parent / "operators"
IMAGES_FILE = Path(__file__).with_name("images.yaml")
IMAGE_NAMESPACE = "clara-flow"  # local images of bundled operators: clara-flow/NAME:VERSION

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class Described(BaseModel):
    """Base of the parts of an operator.yaml: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Port(Described):
    """An input or output folder; `path` is where a container sees it, `media` what is in it (dicom, metaimage, png)."""

    name: str
    path: str
    description: str
    media: str


class Variable(Described):
    """An environment variable that the operator reads; `default` None = it must be given."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    description: str
    default: str | None = None


class Requests(Described):
    """What the operator needs for usual studies: cores, MiB, whole GPUs."""

    cpu: Annotated[int, Field(ge=0)] = 1
    memory: Annotated[int, Field(ge=1)] = 1024
    gpu: Annotated[int, Field(ge=0)] = 0


class Model(Described):
    """A model that the operator needs; `prepare` are arguments for the Python interpreter that fetch or convert it."""

    name: str
    version: str
    prepare: tuple[str, ...]


class BundledOperator(Described):
    """One operator.yaml.

    module          run as `python -m module`.
    requirements    its Python packages, for people.
    prepare         its driver has a prepare handler that is worth starting it before its inputs are there.
    """

    name: Name
    version: str
    title: str
    description: str
    module: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    variables: tuple[Variable, ...] = ()
    requests: Requests = Requests()
    models: tuple[Model, ...] = ()
    requirements: tuple[str, ...] = ()
    prepare: bool = False

    @property
    def image(self) -> str:
        """Reference of its local image, as `clara-flow operators build` tags it."""
        return f"{IMAGE_NAMESPACE}/{self.name}:{self.version}"


class Resolved(Described):
    """What a launcher is given for a definition's image and command."""

    image: str
    command: tuple[str, ...]
    operator: BundledOperator | None = None


class Catalog:
    """The bundled operators, by name and by image."""

    def __init__(self, operators: dict[str, BundledOperator], images: dict[str, str]) -> None:
        self.operators = operators
        self.images = images

    @classmethod
    def load(cls, operators_dir: Path = OPERATORS_DIR, images_file: Path = IMAGES_FILE) -> Catalog:
        """Read every `operators_dir/*/operator.yaml` and the table of images.

        Raises SettingsError naming the file and the key of an entry that cannot be used.
        """
        operators: dict[str, BundledOperator] = {}
        for path in sorted(operators_dir.glob("*/operator.yaml")):
            operator = _read_operator(path)
            if operator.name in operators:
                raise SettingsError(f"{path}: there is another operator named {operator.name!r}; rename one of them")
            operators[operator.name] = operator
        table: dict[str, list[str]] = yaml.safe_load(images_file.read_text()) or {}
        images = {image: name for name, stand_ins in table.items() for image in stand_ins}
        images |= {f"{IMAGE_NAMESPACE}/{name}": name for name in operators}
        return cls(operators, images)

    def get(self, name: str) -> BundledOperator:
        """The operator of that name. Raises SettingsError naming those that there are."""
        try:
            return self.operators[name]
        except KeyError:
            raise SettingsError(
                f"there is no bundled operator {name!r}; there is {', '.join(self.operators) or 'none'}"
            ) from None

    def images_of(self, name: str) -> list[str]:
        """The image names, without tags, that mean the operator of that name."""
        return [image for image, operator in self.images.items() if operator == name]

    def find(self, image: str) -> BundledOperator | None:
        """The bundled operator that stands in for an image reference, whatever its tag or digest, or None."""
        return self.operators.get(self.images.get(image_name(image), ""))

    def resolve(self, image: str, command: tuple[str, ...], runtime: Literal["process", "docker"]) -> Resolved:
        """What to launch for a definition's image (with tag) and command on that runtime.

        A bundled operator gets the arguments of `command` without the interpreter and script that it names, because
        those are the vendor image's: (`python3`, `-u`, `/app/register.py`, `--agent`, `X`) gives (`--agent`, `X`).

        process     the whole command line. Raises LauncherUnavailable for an image that is not a bundled operator.
        docker      arguments for the image's entry point; another image and its command are left as they are.
        """
        operator = self.find(image)
        if operator is None:
            if runtime == "process":
                raise LauncherUnavailable(
                    f"the image {image!r} is not a bundled operator, so it cannot run as a process. "
                    "Use --runtime docker; `clara-flow operators list` shows the bundled ones.",
                    image=image,
                    runtime=runtime,
                )
            return Resolved(image=image, command=command)
        arguments = own_arguments(command)
        if runtime == "process":
            arguments = (sys.executable, "-m", operator.module, *arguments)
        return Resolved(image=operator.image, command=arguments, operator=operator)


@functools.cache
def bundled() -> Catalog:
    """The catalog of this installation, read once."""
    return Catalog.load()


def installed(folders: Sequence[Path]) -> Catalog:
    """The bundled operators and those of `folders`, each with its images.yaml and a folder for each operator.

    Raises SettingsError for a folder that cannot be used, and for an operator or image that there is twice.
    """
    catalog = bundled()
    for folder in folders:
        if not (folder / "images.yaml").is_file():
            raise SettingsError(f"{folder} is no folder of operators: it has no images.yaml (setting catalogs)")
        more = Catalog.load(folder, folder / "images.yaml")
        if twice := sorted((catalog.operators.keys() & more.operators) | (catalog.images.keys() & more.images)):
            raise SettingsError(f"{folder}: {', '.join(twice)} is in another catalog already (setting catalogs)")
        catalog = Catalog(catalog.operators | more.operators, catalog.images | more.images)
    return catalog


def image_name(reference: str) -> str:
    """An image reference without its tag and digest; a port of the registry host stays."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def own_arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments in `command` that are for the operator: without interpreter, its options, and script or module.

    Raises LauncherUnavailable for a shell line (`sh -c ...`), which means the inside of one certain image.
    """
    if not command or command[0].startswith("-"):
        return command
    program = PurePosixPath(command[0]).name
    if program in ("sh", "bash"):
        raise LauncherUnavailable(
            f"the command {' '.join(command)!r} is a shell line for the inside of the vendor's image. "
            "Write the operator's arguments alone, or nothing.",
            command=command,
        )
    rest = list(command[1:])
    if program.startswith("python"):
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            if option in ("-W", "-X"):  # the next word belongs to the option
                rest = rest[1:]
            elif option in ("-c", "-m"):  # the next word is the program
                break
        rest = rest[1:]
    return tuple(rest)


def _read_operator(path: Path) -> BundledOperator:
    try:
        return BundledOperator.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in error.errors())
        raise SettingsError(f"{path} cannot be used: {problems}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
