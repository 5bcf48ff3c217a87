"""The processes that stand between the platform and the operators of the process runtime: they let nothing outlive it.

`serve` is a fork server, started as its own interpreter (`python -I -S`, so only the standard library, and little of
it) by supervisors.py. Each byte on its stdin, a socket, brings four descriptors (SCM_RIGHTS): an order, a lifeline,
a report and an output. For each it forks a supervisor, which runs one operator. The server ends when the socket does;
its supervisors do not depend on it.

ORDER is a file with a JSON object: `command`, `environment` and `cwd` of the operator, the folders that are `writable`
for it, and the `landlock_abi` to use.

LIFELINE is a pipe that the platform holds the other end of. `t` on it asks the operator to stop (SIGTERM to its process
group); anything else, and above all its end, which comes by itself when the platform dies however it dies, kills the
operator with all its descendants: orphans come to the supervisor because it is their subreaper. When the operator ends,
what it left running is killed too. The operator itself dies with its supervisor.

REPORT is a socket that first gets the supervisor's process id, with a pidfd, and at the end one line: exit status, the
largest resident size of any one process (KiB) and the CPU seconds of all. OUTPUT takes stdout and stderr.
"""

# Importing pathlib would take as long as the rest of the start.
# ruff: noqa: PTH110, PTH112, PTH123, PTH208

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import traceback
from typing import Any, NoReturn

MARK = "CLARA_FLOW_ATTEMPT"  # the variable by which all processes of an attempt are found, this one too
NO_MARK = "0" * 32

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

Order = dict[str, Any]


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


def become(order: Order, supervisor: int) -> NoReturn:
    """In the child: turn into the operator."""
    command = order["command"]
    status = 126
    try:
        os.setsid()
        libc = ctypes.CDLL(None, use_errno=True)
        call(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(status)
        call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump holds the patient's images
        if order["landlock_abi"] >= LANDLOCK_USABLE_ABI:
            forbid_writes_outside(libc, order["writable"], order["landlock_abi"])
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
            signal.signal(ignored, signal.SIG_DFL)
        os.execvpe(command[0], command, order["environment"])  # noqa: S606
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


def supervise(order: Order, lifeline: int, report: int) -> None:
    """Run the operator to its end, or to the end of the lifeline."""
    libc = ctypes.CDLL(None, use_errno=True)
    call(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
    wake, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)

    supervisor = os.getpid()
    operator = os.fork()
    if operator == 0:
        become(order, supervisor)
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
    os.write(report, f"{code} {used.ru_maxrss} {used.ru_utime + used.ru_stime}\n".encode())


def wear(mark: str) -> None:
    """Show this mark in /proc/PID/environ, which a fork leaves as it was: written over, as it is equally long."""
    with open("/proc/self/stat") as file:
        environment_start = int(file.read().rpartition(")")[2].split()[47])  # field 50, proc_pid_stat(5)
    if ctypes.string_at(environment_start) == f"{MARK}={NO_MARK}".encode():
        ctypes.memmove(environment_start, f"{MARK}={mark:.32}".encode(), len(MARK) + 1 + len(NO_MARK))


def begin(order_file: int, lifeline: int, report: int, output: int) -> NoReturn:
    """In a child of the server: be a supervisor to the end."""
    status = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        with open(order_file, "rb") as file:
            file.seek(0)
            order = json.load(file)
        wear(order["environment"][MARK])
        pidfd = os.pidfd_open(os.getpid())
        with socket.socket(fileno=os.dup(report)) as platform:
            socket.send_fds(platform, [b"%d" % os.getpid()], [pidfd])
        os.close(pidfd)
        os.chdir(order["cwd"])
        supervise(order, lifeline, report)
        status = 0
    except BrokenPipeError:  # the platform is gone
        pass
    except BaseException:  # noqa: BLE001  this process must not go on as a second server
        traceback.print_exc()  # into the operator's log, as long as that is open
    finally:
        os._exit(status)


def serve() -> None:
    """Fork a supervisor for each order, until the platform is gone."""
    orders = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that supervisors leave no zombies
    gc.freeze()
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, 1, 4, socket.MSG_CMSG_CLOEXEC)
        if not order:
            return
        try:
            if os.fork() == 0:
                orders.close()
                begin(*descriptors)
        except OSError:  # the end of the report says it
            pass
        for descriptor in descriptors:
            os.close(descriptor)
