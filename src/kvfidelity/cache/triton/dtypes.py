"""Element types of tensors, as kernels need them."""

from __future__ import annotations

import torch
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: How `tl.dot` multiplies fp32: three products of TF32 parts have fp32's precision and use the
#: matrix units, which fp32 itself does not.
FP32_PRODUCT = "tf32x3"


def product_precision(dtype: torch.dtype) -> str:
    """`input_precision` of `tl.dot`; for half precision, whose products are exact, the default."""
    return FP32_PRODUCT if dtype is torch.float32 else "tf32"
