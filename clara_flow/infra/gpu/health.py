"""What NVIDIA's error numbers mean for scheduling.

Source: NVIDIA, "Xid Errors" (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid Catalog"), whose
catalog gives for each number the immediate action, and "GPU Memory Error Management" (docs.nvidia.com/deploy/
a100-gpu-mem-error-mgmt) for row remapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clara_flow.infra.gpu.model import Health

# Something is wrong with what ran there, or nothing at all: the catalog's RESTART_APP and IGNORE, and what follows when
# a program is killed (45). Kubernetes' device plugin passes over 13, 31, 43, 45, 68 and 109.
OF_APPLICATIONS = frozenset(
    {8, 11, 13, 25, 31, 32, *range(37, 46), 60, *range(66, 74), *range(75, 78), 80, *range(82, 87), 88, 89}
    | {*range(96, 108), 109, *range(126, 136), 139, 141, 142}
) - {42, 73}  # two numbers that are not in use

# The GPU needs a reset, a look or a replacement. Beyond the catalog's RESET_GPU and RESTART_BM these are the memory
# errors after which NVIDIA lets a program go on at its own risk (63, 92, 94): images of patients do not.
OF_THE_GPU = {
    46: "it stopped processing",
    48: "a double-bit memory error (ECC)",
    62: "its micro-controller halted",
    63: "a memory row was set aside and waits for a reset",
    64: "a memory row could not be set aside",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    92: "a high rate of single-bit memory errors (ECC)",
    94: "a contained memory error (ECC)",
    95: "an uncontained memory error (ECC)",
    110: "a security fault",
    119: "its system processor does not answer (GSP)",
    120: "an error of its system processor (GSP)",
    136: "its link could not be trained",
    140: "an unrecovered memory error (ECC)",
    143: "it could not be initialised",
    156: "a resource was set aside and waits for a reset",
    158: "a fatal timeout",
}

OFF_THE_BUS = 79
RESTART = "restart the machine"
REMEDY = "reset it (nvidia-smi --gpu-reset, nothing may run on it) or replace it"


def of_xid(number: int) -> tuple[Health, str]:
    """What a Xid says of the GPU it came from. An unknown one only degrades it: somebody should look it up."""
    if number in OF_APPLICATIONS:
        return Health.OK, ""
    if number in OF_THE_GPU:
        remedy = RESTART if number == OFF_THE_BUS else REMEDY
        return Health.FAILED, f"Xid {number}: {OF_THE_GPU[number]}; {remedy}"
    return Health.DEGRADED, f"Xid {number}, see NVIDIA's Xid catalog"


def of_memory(
    *, uncorrected: int | None, repair_pending: bool | None, repair_failed: bool | None
) -> tuple[Health, str]:
    """What the memory's counters say: the lasting traces of Xids 48, 63, 64, 94 and 95."""
    if repair_failed:
        return Health.FAILED, "its memory has no spare row left for one that failed; replace it"
    if repair_pending:
        return Health.FAILED, f"{OF_THE_GPU[63]}; {REMEDY}"
    if uncorrected:
        return Health.FAILED, f"{uncorrected} uncorrected memory errors (ECC) since its last reset; {REMEDY}"
    return Health.OK, ""


def of_slowdowns(reasons: Sequence[str]) -> tuple[Health, str]:
    """Clocks that are lowered for heat or power supply mean slow, not wrong."""
    return (Health.DEGRADED, f"slowed down: {', '.join(reasons)}") if reasons else (Health.OK, "")


def worst(verdicts: Iterable[tuple[Health, str]]) -> tuple[Health, str]:
    """The first of the worst verdicts, with the reasons of all that are as bad."""
    order = list(Health)
    found = list(verdicts)
    health = max((verdict for verdict, _ in found), key=order.index, default=Health.OK)
    return health, "; ".join(dict.fromkeys(reason for verdict, reason in found if verdict is health and reason))
