"""Compiled programs: kept for the next run, compiled by all hosts, or too large."""

import os
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax

from ti_flax.runtime import compile_time, hosts, process


def compiled_together(
    jitted: jax.stages.Wrapped,
    compiling: futures.Future | None = None,
    name: str = "",
) -> Callable[..., Any]:
    """`jitted`, for arguments of one shape; the first call waits until all have it.

    Processes compile at their own speed, and the networks between them do not wait
    long (those of CPUs 30 s). `compiling` gives the program if that has begun; a call
    that must wait for it tells its `name`.
    """
    program = None

    def call(*arguments):
        nonlocal program
        if program is None:
            if compiling is None:
                jitted.lower(*arguments).compile()  # kept for the call
            elif not compiling.done():
                compile_time.tell(name)
            program = jitted if compiling is None else compiling.result()
            process.give_back_freed()
            hosts.barrier()
        return program(*arguments)

    return call


def says_too_large(error: Exception) -> bool:
    """Whether a compiler says that memory is too small for a program."""
    return "RESOURCE_EXHAUSTED" in str(error)


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory that a device needs for a program, by the compiler's own figures.

    0 where it has none.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    inside = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return memory.argument_size_in_bytes + outputs + inside


def largest(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The largest number from 1 to `most` that fits; 0 where none does.

    Few are tried where it is near `first`, none of them twice. The last that is found
    to fit is the one that is returned.
    """
    low, high = 0, most + 1  # fits, does not fit
    number, stride = min(max(first, 1), most), 1
    while high - low > 1:
        if fits(number):
            low = number
        else:
            high = number
        if low == 0:
            number = max(high - stride, 1)
        elif high > most:
            number = min(low + stride, most)
        else:
            number = (low + high) // 2
        stride *= 2
    return low


def keep_compiled(folder: str | None) -> None:
    """Keeps compiled programs in a folder or at a gs:// address for later processes.

    A folder that JAX was given before, as by JAX_COMPILATION_CACHE_DIR, stays. Nothing
    is kept where the folder cannot be made: a container's user may have no home.
    """
    if folder is None or jax.config.jax_compilation_cache_dir:
        return
    if "://" not in folder:
        folder = os.path.expanduser(folder)
        if folder.startswith("~") or not _is_writable(folder):
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    # By default only what took a second; a start is made of many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _is_writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
