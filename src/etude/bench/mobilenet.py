"""MobileNet V2 on pictures of 224x224, batches of 16: training steps and inference against plain eager fp32 PyTorch."""

from etude.bench import Contest
from etude.bench.convnet import compare


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: 2.2 times in training, 2 in inference, 3 compiled."""
    targets = {"train": 2.2, "infer": 2.0, "compiled": 3.0}
    return compare("mobilenet_v2", {}, side=224, batch_size=16, targets=targets, compiled=compiled)
