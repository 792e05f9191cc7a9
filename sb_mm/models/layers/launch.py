"""Start Triton kernels at little cost to the host, compiled once."""

import inspect
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from triton import knobs  # of Triton 3.4, whose launchers take these arguments

INTERPRETED = knobs.runtime.interpret
KERNELS, _compiled = {}, {}
# A grid, the values of constants, the number of warps.
Plan = tuple[tuple[int, int, int], tuple, int]


def kernel(plan: Callable) -> Callable:
    """Make a kernel that is compiled once for all sizes and addresses.

    Its arguments are what it reads, what it writes, sizes, numbers, the name
    of a function, and the constants of the :data:`Plan` that ``plan`` returns
    for the first three of these.
    """

    def register(function: Callable) -> Callable:
        arguments = inspect.signature(function).parameters.values()
        names = [a.name for a in arguments if a.annotation is a.empty]
        jit = triton.jit(
            function,
            do_not_specialize=names,
            do_not_specialize_on_alignment=names,
        )
        KERNELS[function.__name__] = jit, plan
        return jit

    return register


def _launch_gate(
    kernel: str,
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor],
    sizes: Sequence[int],
    numbers: Sequence[float],
    function: str,
) -> None:
    """Start a kernel as its plan says."""
    jit, plan = KERNELS[kernel]
    grid, constants, warps = plan(reads, writes, sizes)
    if INTERPRETED:  # there, NumPy >= 2.4 makes no range of an integer
        sizes = map(tl.constexpr, sizes)
    numbers = map(float, numbers)  # a 1 would be compiled as an integer
    args = *reads, *writes, *sizes, *numbers, function, *constants
    # What it is compiled for.
    key = (
        kernel, function, constants, reads[0].dtype, writes[-1].dtype,
        reads[-1] is None, writes[-1].device,
    )  # fmt: skip
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = jit[grid](*args, num_warps=warps, num_stages=2)
    else:  # Triton's own look-up takes the host five times as long
        compiled[grid](*args)
    torch.autograd.graph.increment_version(writes)


# An operator, so that torch.compile does not look into it.
_schema = torch.library.infer_schema(_launch_gate, mutates_args=('writes',))
torch.library.define('sb_mm::launch_gate', _schema)
torch.library.impl('sb_mm::launch_gate', ('cpu', 'cuda'), _launch_gate)
torch.library.register_fake('sb_mm::launch_gate', lambda *_: None)


def launch(*args) -> None:
    """Start a kernel, as an operator where one is recorded or compiled."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        torch.ops.sb_mm.launch_gate(*args)
    else:
        _launch_gate(*args)
