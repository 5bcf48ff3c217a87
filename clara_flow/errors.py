"""The one error tree. Facts are attributes, the sentence is built from them and says what to do.

Every error survives pickling, because errors cross process borders. Rooms add their own errors here
when the platform must react to them; the tree is:

    ClaraFlowError
    ├── SettingsError           a setting or an argument is wrong            (exit status 2)
    ├── InputError              what the user handed in cannot be used        (exit status 3)
    │   ├── DefinitionInvalid   a pipeline definition has problems
    │   ├── PayloadError        files of a payload are missing, broken or too large
    │   ├── NotFound            there is nothing of that name or id
    │   └── Conflict            it exists already, or its state forbids the request
    ├── PlatformError           the platform's own machinery is not available (exit status 4)
    │   ├── ServiceError        a service does not start, answer or stop
    │   ├── StorageError        disk full, not writable, not durable
    │   ├── LauncherUnavailable a runtime (Docker, GPU, image) cannot be used
    │   └── StaleOwner          a runner lost its job to another; it must neither write nor export
    ├── ResourcesNeverFit       a request is larger than the whole machine    (exit status 5)
    ├── OperatorError           one attempt of an operator ended badly        (exit status 1)
    │   ├── OperatorFailed      non-zero exit
    │   ├── OperatorOutOfMemory killed for memory
    │   ├── OperatorTimedOut    ran past its limit
    │   ├── OperatorCancelled   stopped on request
    │   ├── OperatorLost        its process or container vanished; may be retried
    │   └── OutputMissing       exited 0 without a declared output
    ├── JobFaulted              a job ended STOPPED/FAULTED                   (exit status 1)
    └── InvalidTransition       a state machine was asked for an illegal step (a bug: exit status 70)
"""

from __future__ import annotations

import copyreg
from typing import Any


class ClaraFlowError(Exception):
    """Root of all errors that clara-flow raises on purpose. `str(error)` is fit for a user."""

    exit_status = 1

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        if name != "facts" and name in (facts := self.__dict__.get("facts", {})):
            return facts[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __reduce__(self) -> Any:  # built sentences and keyword facts do not unpickle by themselves
        return copyreg.__newobj__, (type(self),), {**self.__dict__, "args": self.args}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        state = dict(state or {})
        self.args = state.pop("args", ())
        self.__dict__.update(state)


class SettingsError(ClaraFlowError):
    """A setting, an option or an argument has a value that cannot be used."""

    exit_status = 2


class InputError(ClaraFlowError):
    """What the user handed in cannot be used."""

    exit_status = 3


class DefinitionInvalid(InputError):
    """A pipeline definition has problems.

    problems    the printable lines `file:line:column: message [code]`, sorted by position.
    """

    def __init__(self, source: str, problems: tuple[str, ...]) -> None:
        count = len(problems)
        noun = "problem" if count == 1 else "problems"
        super().__init__("\n".join([f"{source} has {count} {noun}:", *problems]), source=source, problems=problems)


class PayloadError(InputError):
    """Files of a payload are missing, broken or not what was declared."""


class NotFound(InputError):
    """There is nothing of the name or id that was asked for."""


class Conflict(InputError):
    """What was asked for exists already, or is in a state that forbids it."""


class PlatformError(ClaraFlowError):
    """The platform's own machinery is not available."""

    exit_status = 4


class ServiceError(PlatformError):
    """A service (PostgreSQL, Prefect) does not start, answer or stop."""

    def __init__(self, service: str, reason: str, *, remedy: str, log_path: str | None = None) -> None:
        tail = f" Its log: {log_path}" if log_path else ""
        super().__init__(
            f"{service}: {reason}. {remedy}{tail}", service=service, reason=reason, remedy=remedy, log_path=log_path
        )


class StorageError(PlatformError):
    """The data folder or an output folder is full, not writable or not durable."""


class LauncherUnavailable(PlatformError):
    """A runtime, image or device that an operator needs cannot be used on this machine."""


class StaleOwner(PlatformError):
    """A runner wrote to a job that is not its own any more. It must stop, and export nothing."""


class ResourcesNeverFit(ClaraFlowError):
    """A request is larger than all this machine has; waiting would not help.

    missing     {resource: amount missing}, in the units of the request ("gpu", "cpu", "memory_mib").
    """

    exit_status = 5

    def __init__(self, operator: str, *, missing: dict[str, int]) -> None:
        lacks = ", ".join(f"{amount} {resource}" for resource, amount in sorted(missing.items()))
        super().__init__(
            f"operator {operator!r} can never run here: the machine lacks {lacks}. "
            "Lower its `requests`, or run the job on a larger machine.",
            operator=operator,
            missing=missing,
        )


class OperatorError(ClaraFlowError):
    """One attempt of an operator ended badly. `last_lines` are the last lines of its log."""

    outcome = "failed"

    def __init__(
        self, operator: str, reason: str, *, log_path: str, last_lines: tuple[str, ...] = (), **facts: Any
    ) -> None:
        super().__init__(
            f"operator {operator!r} {reason}; its log: {log_path}",
            operator=operator,
            reason=reason,
            log_path=log_path,
            last_lines=last_lines,
            **facts,
        )


class OperatorFailed(OperatorError):
    """The operator ended with a non-zero exit status."""

    def __init__(self, operator: str, *, exit_code: int, log_path: str, last_lines: tuple[str, ...] = ()) -> None:
        hint = " (killed; often out of memory)" if exit_code == 137 else ""
        super().__init__(
            operator, f"exited with {exit_code}{hint}", log_path=log_path, last_lines=last_lines, exit_code=exit_code
        )


class OperatorOutOfMemory(OperatorError):
    """The operator needed more memory than it had asked for and was killed."""

    outcome = "out-of-memory"

    def __init__(self, operator: str, *, limit_mib: int, log_path: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(
            operator,
            f"ran out of memory (limit {limit_mib} MiB; raise `requests.memory`)",
            log_path=log_path,
            last_lines=last_lines,
            limit_mib=limit_mib,
        )


class OperatorTimedOut(OperatorError):
    """The operator ran past its time limit and was stopped."""

    outcome = "timed-out"

    def __init__(self, operator: str, *, timeout_s: float, log_path: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(
            operator,
            f"ran past its limit of {timeout_s:g} s",
            log_path=log_path,
            last_lines=last_lines,
            timeout_s=timeout_s,
        )


class OperatorCancelled(OperatorError):
    """The operator was stopped because its job was cancelled."""

    outcome = "cancelled"

    def __init__(self, operator: str, *, log_path: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(operator, "was cancelled", log_path=log_path, last_lines=last_lines)


class OperatorLost(OperatorError):
    """The operator's process or container vanished without an exit status; another attempt may succeed."""

    outcome = "lost"

    def __init__(self, operator: str, *, reason: str, log_path: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(operator, f"was lost: {reason}", log_path=log_path, last_lines=last_lines)


class OutputMissing(OperatorError):
    """The operator exited 0 but left a declared output empty."""

    outcome = "output-missing"

    def __init__(
        self, operator: str, *, output: str, path: str, log_path: str, last_lines: tuple[str, ...] = ()
    ) -> None:
        super().__init__(
            operator,
            f"exited with 0 but wrote nothing to its output {output or path!r}",
            log_path=log_path,
            last_lines=last_lines,
            output=output,
            path=path,
        )


class JobFaulted(ClaraFlowError):
    """A job ended STOPPED/FAULTED. The message names the operator, its exit code and its last log lines."""


class InvalidTransition(ClaraFlowError):
    """A state machine was asked for a step that does not exist. A bug of ours, never the user's."""

    exit_status = 70
