"""Training in several processes of one thread each, which average their gradients.

Two single-threaded processes beat two threads where cores are shared with other work:
they wait for one another once a step, threads at every operation.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import distributed, multiprocessing


def launch(workers: int, task: Callable[..., None], *arguments: Any) -> None:
    """Calls `task(*arguments)` in each of the processes and waits for them all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    multiprocessing.spawn(_join, (workers, address, task, arguments), nprocs=workers)


def _join(
    rank: int, workers: int, address: str, task: Callable[..., None], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=address, world_size=workers, rank=rank
    )
    task(*arguments)
    distributed.destroy_process_group()


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """0 for the process that also writes logs and files, or that trains alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def autocast() -> torch.autocast:
    """Bfloat16 where the CPU multiplies in it; elsewhere it is 8 times slower."""
    able = torch.cpu.get_capabilities()
    fast = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


def wait() -> None:
    if size() > 1:
        distributed.barrier()


def agreed(value: float) -> float:
    """The value that rank 0 has, such as the time that only its clock counts."""
    shared = torch.tensor([value], dtype=torch.float64)
    if size() > 1:
        distributed.broadcast(shared, src=0)
    return shared.item()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Every process ends with the mean of all; a parameter without one stays so."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(
        gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)]
    )
