"""The private torch interfaces that Manta stands on, one by one: an upgrade that moves one fails here, by name."""

import inspect
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from workers.compat_torch import GROUP_NAME, create_group, create_mesh, graphs_compiled


def test_the_private_names_are_still_there() -> None:
    made = inspect.signature(distributed_c10d._new_process_group_helper).parameters
    assert list(made)[:5] == ["group_size", "group_rank", "global_ranks_in_group", "backend", "store"]
    assert {"group_name", "timeout"} <= set(made)
    assert isinstance(distributed_c10d._world.pg_group_ranks, dict)
    assert {"mesh_dim_names", "_init_backend", "_rank"} <= set(inspect.signature(DeviceMesh.__init__).parameters)


def test_a_group_works_without_a_default_one_and_can_be_made_again() -> None:
    for _ in range(2):
        group = create_group("gloo", dist.HashStore(), 0, 1, timedelta(seconds=10))
        assert (group.group_name, dist.get_process_group_ranks(group)) == (GROUP_NAME, [0])
        total = torch.ones(2)
        dist.all_reduce(total, group=group)
        assert total.tolist() == [1.0, 1.0]
        assert not dist.is_initialized()
        dist.destroy_process_group(group)
        assert group not in distributed_c10d._world.pg_group_ranks


def test_a_mesh_knows_its_group_and_place() -> None:
    group = create_group("gloo", dist.HashStore(), 0, 1, timedelta(seconds=10))
    mesh = create_mesh("cpu", group, "workers")
    assert mesh.get_group("workers") is group
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    assert (mesh.mesh_dim_names, mesh.shape, list(coordinate)) == (("workers",), (1,), [0])
    dist.destroy_process_group(group)


def test_compiled_graphs_are_counted() -> None:
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = graphs_compiled()
    seen = []
    for size in (3, 3, 4):
        double(torch.ones(size))
        seen.append(graphs_compiled() - before)
    assert seen == [1, 1, 2]
