"""What tests of Triton kernels share; none of it needs a GPU."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def run_interpreted(script: str) -> None:
    """Run a script in a process of its own, where Triton computes kernels on CPU tensors."""
    run_alone(script, TRITON_INTERPRET="1")


def run_alone(script: str, **variables: str) -> None:
    """Run a script in a process of its own, with further environment variables."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Usage:
    """What a program takes of a GPU.

    Attributes:
        stack_bytes: Stack of a thread; 0 if no register is spilled.
        shared_bytes: Shared memory.
    """

    stack_bytes: int
    shared_bytes: int


def stack_bytes(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, capability: int
) -> int:
    """Compile a kernel as `compiled_usage` and return the stack of a thread."""
    return compiled_usage(kernel, types, constants, capability=capability).stack_bytes


def compiled_usage(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    *,
    capability: int,
    n_warps: int = 4,
    n_stages: int = 3,
) -> Usage:
    """Compile a kernel for a GPU and return what a program takes of it.

    Args:
        kernel: The jitted function.
        types: Type of each argument, as "*bf16", "fp32" or "i32".
        constants: Values of the constant arguments.
        capability: Compute capability, as 90.
        n_warps: Warps of a program.
        n_stages: Stages of its loops.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    attributes = {}
    for position, name in enumerate(kernel.arg_names):
        signature[name] = types.get(name, "constexpr")
        if name in types and types[name] != "fp32":
            # As at run time for addresses and for numbers that are multiples of 16.
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    # Named, since Triton warns of a default that will change.
    options = {"enable_fp_fusion": True, "num_warps": n_warps, "num_stages": n_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Usage(_stack_bytes(compiled.asm["cubin"]), compiled.metadata.shared)


def _stack_bytes(cubin: bytes) -> int:
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack, usage
    return int(stack.group(1))
