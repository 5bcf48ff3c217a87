"""The process that stands between the platform and one operator of the process runtime: it lets nothing outlive either.

Started as its own interpreter (`python -I -S`, so only the standard library, and little of it) by ProcessLauncher:

    supervise LIFELINE REPORT LANDLOCK_ABI WRITABLE... -- COMMAND...

LIFELINE is a pipe that the platform holds the other end of. `t` on it asks the operator to stop (SIGTERM to its process
group); anything else, and above all its end, which comes by itself when the platform dies however it dies, kills the
operator with all its descendants: orphans come to this process because it is their subreaper. When the operator ends,
what it left running is killed too. REPORT is a pipe that then gets one line: exit status, the largest resident size of
any one process (KiB) and the CPU seconds of all. The operator itself dies with this process.
"""

# Importing pathlib would take as long as the rest of the start.
# ruff: noqa: PTH110, PTH112, PTH123, PTH208

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import struct

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# Landlock (linux/landlock.h); the system call numbers are the same on every architecture that Python wheels exist for.
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
WRITE_FILE, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
MAKE_ANY = sum(1 << bit for bit in range(6, 13))  # char, dir, regular, socket, fifo, block, symbolic link
REFER, TRUNCATE = 1 << 13, 1 << 14
SCOPE_SIGNAL = 1 << 1
LANDLOCK_USABLE_ABI = 2  # before it, Landlock forbids every rename between two folders, which would break operators
LANDLOCK_TRUNCATE_ABI = 3
LANDLOCK_SCOPE_ABI = 6
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (semaphores and shared memory of the C library are made there)


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers; 0 when it offers none."""
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), CREATE_RULESET_VERSION)
    return max(0, version)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, as far as they stand still."""
    found: list[int] = []
    parents = [pid]
    while parents:
        parent = parents.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue  # it ended meanwhile
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children = [int(word) for word in file.read().split()]
            except OSError:
                continue
            found += children
            parents += children
    return found


def call(result: int, what: str) -> int:
    """The result of a C function, OSError when it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def forbid_writes_outside(libc: ctypes.CDLL, writable: list[str], abi: int) -> None:
    """From now on this process and its children change files only below `writable`, and devices.

    From Landlock 6 on they also signal only each other. Raises OSError.
    """
    on_files = WRITE_FILE | (TRUNCATE if abi >= LANDLOCK_TRUNCATE_ABI else 0)
    everything = on_files | REMOVE_DIR | REMOVE_FILE | MAKE_ANY | REFER
    attributes = struct.pack("=Q", everything)
    if abi >= LANDLOCK_SCOPE_ABI:
        attributes = struct.pack("=QQQ", everything, 0, SCOPE_SIGNAL)
    ruleset = call(
        libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "Landlock ruleset"
    )
    for path, rights in [("/dev", on_files), *((path, everything) for path in (SHARED_MEMORY, *writable))]:
        if not os.path.exists(path):
            continue
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights if os.path.isdir(path) else on_files, folder)
        call(libc.syscall(SYS_LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0), f"Landlock rule for {path}")
        os.close(folder)
    call(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def become(command: list[str], writable: list[str], abi: int, supervisor: int) -> None:
    """In the child: turn into the operator. Does not return."""
    status = 126
    try:
        os.setsid()
        libc = ctypes.CDLL(None, use_errno=True)
        call(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(status)
        call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump holds the patient's images
        if abi >= LANDLOCK_USABLE_ABI:
            forbid_writes_outside(libc, writable, abi)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
            signal.signal(ignored, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606
    except FileNotFoundError as error:
        status = 127
        os.write(2, f"clara-flow: cannot run {command[0]!r}: {error.strerror}\n".encode())
    except OSError as error:
        os.write(2, f"clara-flow: cannot run {command[0]!r}: {error}\n".encode())
    finally:
        os._exit(status)


def kill_descendants() -> None:
    """Kill everything below this process and wait until it is gone."""
    while True:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main(arguments: list[str]) -> None:
    """Run the operator to its end, or to the end of the lifeline."""
    lifeline, report, abi = (int(word) for word in arguments[:3])
    end = arguments.index("--")
    writable, command = arguments[3:end], arguments[end + 1 :]
    for descriptor in (lifeline, report):
        os.set_inheritable(descriptor, False)
    libc = ctypes.CDLL(None, use_errno=True)
    call(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
    wake, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)

    supervisor = os.getpid()
    operator = os.fork()
    if operator == 0:
        become(command, writable, abi, supervisor)
    for stream in (0, 1, 2):  # the log ends when the operator's last process has ended, not when this one has
        os.close(stream)

    exit_status = None
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    poller.register(wake, select.POLLIN)
    while exit_status is None:
        for descriptor, _ in poller.poll():
            if descriptor == wake:
                os.read(wake, 4096)
            elif os.read(lifeline, 1) == b"t":
                try:
                    os.killpg(operator, signal.SIGTERM)
                except ProcessLookupError:  # it has not called setsid yet, or has just ended
                    os.kill(operator, signal.SIGTERM)
            else:
                os.kill(operator, signal.SIGKILL)
                poller.unregister(lifeline)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == operator:
                exit_status = os.waitstatus_to_exitcode(status)
    kill_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = exit_status if exit_status >= 0 else 128 - exit_status
    try:
        os.write(report, f"{code} {used.ru_maxrss} {used.ru_utime + used.ru_stime}\n".encode())
    except BrokenPipeError:  # the platform is gone
        os._exit(1)
