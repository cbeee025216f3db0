"""Which precision of products is read, however torch was told it.

In processes of their own, as torch does not forget by which of its settings that was.
"""

import subprocess
import sys

import pytest

HEAD = """
import warnings
warnings.simplefilter("error")
import torch
from sda_fast import MCScoreNet, VPSDE, explain, sample
from sda_fast._native import has_bfloat16
from sda_fast._precision import matmul_precision

cpu, cuda = map(torch.device, ("cpu", "cuda"))
sde = VPSDE(MCScoreNet(3, order=1, hidden_features=[16]), (8, 3))
"""

TOLD = {
    "": ("highest", "highest"),
    "torch.set_float32_matmul_precision('high')": ("high", "high"),
    "torch.set_float32_matmul_precision('medium')": ("medium", "medium"),
    "torch.backends.fp32_precision = 'ieee'": ("highest", "highest"),
    "torch.backends.fp32_precision = 'tf32'": ("high", "high"),
    "torch.backends.fp32_precision = 'bf16'": ("medium", "highest"),
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": ("highest", "high"),
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'": ("medium", "highest"),
    "torch.backends.cuda.matmul.allow_tf32 = True": ("high", "high"),
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'": ("highest", "highest"),
}


@pytest.mark.parametrize("told", TOLD)
def test_however_torch_was_told(told: str):
    on_cpu, on_cuda = TOLD[told]
    code = f"""{HEAD}
{told}
assert matmul_precision(cpu) == {on_cpu!r}
assert matmul_precision(cuda) == {on_cuda!r}
told = "bfloat16" if {on_cpu!r} == "medium" and has_bfloat16() else "float32"
assert f"products in {{told}}" in str(explain(sde))
sample(sde, steps=2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
