"""Who takes part, and the process group and device mesh that they form."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore

from data.errors import MantaError
from workers.compat_torch import create_group, create_mesh

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
T = TypeVar("T")


class GpuMissing(MantaError):
    """The job asks for GPUs, and there is none where a rank runs."""

    code: ClassVar[str] = "gpu_missing"
    status: ClassVar[int] = 409


@dataclass(frozen=True, kw_only=True)
class Membership:
    """One worker's place in one generation of the group. Rank 0 listens on ``master_port``; one process alone needs none."""

    generation: int = 0
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_address: str = "127.0.0.1"
    master_port: int = 0


@dataclass(frozen=True)
class Mesh:
    """The live group of a membership; ``group`` and ``workers`` are None for a process alone."""

    membership: Membership
    device: torch.device
    group: dist.ProcessGroup | None
    workers: DeviceMesh | None

    @classmethod
    def form(cls, membership: Membership, *, use_gpu: bool) -> "Mesh":
        """Meet the other ranks; torch's default group is not touched. Raises GpuMissing."""
        device = torch.device("cpu")
        if use_gpu:
            if not torch.cuda.is_available():
                raise GpuMissing(
                    f"torch finds no GPU for rank {membership.rank} on node {socket.gethostname()}; check the driver there and"
                    " CUDA_VISIBLE_DEVICES, or set gpus_per_node 0 to train on CPUs",
                    pointer="/gpu_config/gpus_per_node",
                )
            device = torch.device("cuda", membership.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        if membership.world_size == 1:
            return cls(membership, device, None, None)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            membership.master_address,
            membership.master_port,
            membership.world_size,
            is_master=membership.rank == 0,
            timeout=COLLECTIVE_TIMEOUT,
            wait_for_workers=False,
        )
        # Host tensors (checkpoint plans) and device tensors each have their backend.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        prefix = PrefixStore(f"generation-{membership.generation}", store)
        group = create_group(backend, prefix, membership.rank, membership.world_size, COLLECTIVE_TIMEOUT)
        return cls(membership, device, group, create_mesh(device.type, group, "workers"))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up ``tensor`` over all ranks, in place."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def dissolve(self) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)


def deal(items: Sequence[T], rank: int, world_size: int) -> list[T | None]:
    """Rank ``rank``'s contiguous slice of an ordered list, equally long on every rank: None where the list has run out."""
    share = -(-len(items) // world_size)
    mine: list[T | None] = list(items[rank * share : (rank + 1) * share])
    return mine + [None] * (share - len(mine))
