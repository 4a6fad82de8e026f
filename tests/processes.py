"""Two processes as torchrun starts them, forked from a server that has imported everything once."""

import os
import socket
from collections.abc import Callable

import torch
from torch import multiprocessing

IMPORTED = [
    "kdexport.pipeline.training",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
]


def in_two(work: Callable[..., None], *arguments: object) -> None:
    """Call ``work`` with the rank and the arguments in each; raise what is raised in one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(IMPORTED)
    multiprocessing.start_processes(
        _as_one_of_two, (port, work, *arguments), nprocs=2, start_method="forkserver"
    )


def _as_one_of_two(rank: int, port: int, work: Callable[..., None], *arguments: object) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    work(rank, *arguments)
