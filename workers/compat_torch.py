"""The private torch 2.13 interfaces that Manta cannot do without. ``tests/workers/test_compat_torch.py`` fails when they move.

torch offers no public way to make a process group, or a device mesh over one, without its default group: the public
constructors ask the default group for the caller's rank. Elastic training forms and drops groups in one process again and
again, so it must not depend on a group that only one job at a time can have.
"""

import sys
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import Store

GROUP_NAME = "manta"
"""The same in every generation, because torch caches collectives' plans by mesh shape and group *name*. What keeps a ghost of
an older generation out is the store's prefix."""


def create_group(backend: str, store: Store, rank: int, world_size: int, timeout: timedelta) -> dist.ProcessGroup:
    """A process group of its own; ``dist.is_initialized()`` stays False. End it with ``dist.destroy_process_group(group)``."""
    group, _ = distributed_c10d._new_process_group_helper(
        world_size,
        rank,
        [],
        backend,
        store,
        group_name=distributed_c10d.GroupName(GROUP_NAME),
        timeout=timeout,
    )
    distributed_c10d._world.pg_group_ranks[group] = {r: r for r in range(world_size)}
    return group


def create_mesh(device_type: str, group: dist.ProcessGroup, name: str) -> DeviceMesh:
    """A one-dimensional mesh over all ranks of ``group``: ``DeviceMesh.from_group`` without its look at the default group."""
    mesh = DeviceMesh(device_type, torch.arange(group.size()), mesh_dim_names=(name,), _init_backend=False, _rank=group.rank())
    mesh._dim_group_names = [group.group_name]
    mesh._pg_registry[group.group_name] = group
    return mesh


def graphs_compiled() -> int:
    """Graphs that torch.compile has made in this process, recompiled ones among them."""
    # Imported by the first call of torch.compile, which is soon enough: it takes a second.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def flash_attention_on_cpu(
    q_BHTd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTd: torch.Tensor, mask_BTT: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDPA runs on a CPU, with a mask or causal: its result [B, H, T, d], and the logarithm of each query's sum [B, H, T]
    in fp32, which SDPA itself keeps for its backward pass."""
    added = None
    if mask_BTT is not None:
        added = torch.zeros_like(mask_BTT, dtype=q_BHTd.dtype).masked_fill(~mask_BTT, float("-inf"))[:, None]
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return run(q_BHTd, k_BGTd, v_BGTd, 0.0, mask_BTT is None, attn_mask=added, scale=scale)
