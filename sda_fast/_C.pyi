"""The native library: what it says about itself. Its operators are in `torch.ops.sda_fast`."""

from collections.abc import Sequence
from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    torch: str
    cuda: bool
    cuda_version: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def has_bfloat16() -> bool: ...
def isa() -> str: ...
def philox(ctr: Sequence[int], key: Sequence[int]) -> list[int]: ...
def normals(a: int, b: int) -> tuple[float, float, float, float]: ...
