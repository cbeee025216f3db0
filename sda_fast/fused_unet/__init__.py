r"""U-Nets whose steps between convolutions are native operators.

A :class:`FusedUNet` is made from a :class:`sda_fast.nn.UNet`, and uses its parameters. Convolutions
are the library's (oneDNN, cuDNN), but for most of those by 3 x 3 points on a CPU, which are
:func:`sda_fast.ops.winograd`; what is between two of them (modulation, LayerNorm, activation,
circular padding) is one pass that writes what the next one reads, channels last. A block,

.. math:: x + W_2 * f(W_1 * n + b_1) + b_2, \quad n = \text{norm}(x + \text{shift}),

is then four steps: :func:`sda_fast.ops.norm_pad`, a convolution,
:func:`sda_fast.ops.activation_pad` and a convolution that adds to x where it lies. Biases are the
convolutions' where the library adds them at no cost, and otherwise the next step's. The adjoint of
a convolution whose stride is 1 is a convolution too, by the same kernel flipped and transposed, so
that the way back has the same form; of the way forward it needs n, its scale, and what f was
applied to. Nothing waits for the device: on CUDA an evaluation may be captured in a graph.

Its precision follows :func:`torch.set_float32_matmul_precision`: "highest" is float32 throughout;
"high" rounds the factors of convolutions to TF32 on CUDA; "medium" keeps fields and kernels in
bfloat16 where the processor multiplies such, and sums products, variances and activations in
float32.
"""

__all__ = ["FusedUNet"]

from .network import FusedUNet
