"""A convolution in float32 wherever it runs."""

import torch
from torch import Tensor, nn


class ExactConv2d(nn.Conv2d):
    """Reads or writes pictures in a network whose other layers may compute in bf16: that has 8 bits, and a picture
    rounded to them would be seen. Its weights stay float32 under `prepare_for_inference`, and float64 stays float64.

    (B, C, H, W) -> (B, C', H', W') float32, or float64 if that came in.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(torch.promote_types(self.weight.dtype, torch.float32)))
