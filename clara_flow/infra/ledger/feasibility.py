"""What will never fit: refused when the job is created."""

from __future__ import annotations

from collections.abc import Iterable

from clara_flow.infra.ledger.model import RESOURCES, Amounts, Node, Quota


def missing_for(
    nodes: Iterable[Node], quota: Quota | None, together: Amounts, needs: Iterable[Amounts] = ()
) -> dict[str, int]:
    """What no node and no quota will ever give, by resource ("quota:<resource>" for the hard limit); {}: it can fit.

    together    held at once on one node (a job's own and its first operator's amounts).
    needs       each held at some time on that same node.

    Nodes and devices count whether they are usable or not: what failed or is drained may come back, and who waits for
    it is told so. Where no node is known nothing can be said of nodes. The node meant is the one that lacks least.
    """
    wanted = [together, *needs]
    lacks = [_lacks(node, wanted) for node in nodes]
    missing = min(lacks, key=lambda lack: (len(lack), sum(lack.values())), default={})
    limits = quota.hard if quota else {}
    return missing | {
        f"quota:{name}": over
        for name in RESOURCES
        if name in limits and (over := max(getattr(amounts, name) for amounts in wanted) - limits[name]) > 0
    }


def _lacks(node: Node, wanted: list[Amounts]) -> dict[str, int]:
    has = {name: getattr(node, name) for name in ("cpu", "memory_mib", "fastio_mib", "jobs")}
    has["gpu"] = len(node.devices)
    has["gpu_memory_mib"] = max((device.memory_mib for device in node.devices), default=0)
    return {
        name: most - has[name]
        for name in RESOURCES
        if (most := max(getattr(amounts, name) for amounts in wanted)) > has[name]
    }
