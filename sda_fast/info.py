"""What is installed and what is native: `python -m sda_fast info`."""

__all__ = ["describe"]

import platform

import torch

from . import __version__, _native


def describe() -> str:
    """Returns a table of the package's version, how it was built and what it runs on."""
    known = _native.info()
    lines = [
        ("sda_fast", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__} running"),
    ]

    if known["available"]:
        lines += [
            ("native library", f"{known['version']}, built by {known['compiler']}"),
            ("built against", f"torch {known['torch']} (stable ABI of 2.11)"),
            ("instruction set", known["isa"]),
        ]
        built = (
            f"built by nvcc {known['cuda_version']} for {known['cuda_architectures']}"
            if known["cuda"]
            else "not built"
        )
        loaded = "loaded" if known["cuda_available"] else f"not loaded: {known['cuda_reason']}"
        lines.append(("CUDA library", f"{built}; {loaded}" if known["cuda"] else built))
    else:
        lines.append(("native library", f"not available: {known['reason']}"))

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            reason = _native.device_reason(index)
            served = "served" if reason is None else f"not served: {reason}"
            lines.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)}, {served}"))
    lines.append(("threads", str(torch.get_num_threads())))

    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
