"""A teacher that fits in no single process: each holds a part of every layer.

Fully sharded data parallelism (Zhao et al. 2023, PyTorch FSDP, section 3), of weights that never
change: a layer is gathered for the time that it computes. Since all have a part in each reading,
all must ask equally often. Knows no files and no texts.
"""

from collections.abc import Callable
from typing import Any

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kdexport.train.anatomy import decoder_layers
from kdexport.train.world import World


def in_shards(load: Callable[[], Any], device: str, world: World) -> Any:
    """Load a model, in each process after the other, and keep this process's part of its layers.

    So one whole copy at a time is in the memory of the CPU. Embeddings and head stay whole in every
    process. Called in all of ``world``; the outputs are those of the whole model.
    """
    mesh = init_device_mesh(device, (world.size,))
    for rank in range(world.size):
        if rank == world.rank:
            model = load().requires_grad_(False)
            layers = decoder_layers(model)
            shared = {p for layer in layers for p in layer.parameters()}
            whole = {p for p in model.parameters() if p not in shared}
            for layer in layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            body = model.base_model
            fully_shard(body, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
            model.to(device)
        world.wait()
    return model
