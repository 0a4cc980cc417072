"""What tests of Triton kernels share; none of it needs a GPU."""

import os
import re
import subprocess
import sys
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


def stack_bytes(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, capability: int
) -> int:
    """Compile a kernel for a GPU and return the stack of a thread: 0 if no register is spilled.

    Args:
        kernel: The jitted function.
        types: Type of each argument, as "*bf16", "fp32" or "i32".
        constants: Values of the constant arguments.
        capability: Compute capability, as 90.
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
    options = {"enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _stack_bytes(compiled.asm["cubin"])


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
