"""What the machine at hand can do."""

import torch

__all__ = ["has_bfloat16"]


def has_bfloat16() -> bool:
    """Whether bfloat16 products are fast here: on the GPU if there is one, else on the CPU."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())
