"""ResNet-18 on pictures of 32x32, batches of 128: training steps and inference against plain eager fp32 PyTorch."""

from etude.bench import Contest
from etude.bench.convnet import compare


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: 2.1 times in training, 2.6 in inference, 3.0 compiled."""
    targets = {"train": 2.1, "infer": 2.6, "compiled": 3.0}
    settings = {"stem": "cifar", "num_classes": 10}
    return compare("resnet18", settings, side=32, batch_size=128, targets=targets, compiled=compiled)
