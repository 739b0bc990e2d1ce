"""Recipes of U-Net: tissues of the brain, nuclei of cells, and any folder of pictures or volumes with masks."""

from etude.data.elastic import Deform
from etude.data.segmentation import Segmentation
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.segment import Segment
from etude.vision import unet


def brain() -> Recipe:
    """Grey and white matter on the average MR image of 152 heads, axial slices, every fifth block of them held out."""
    return Recipe(
        name="unet.brain",
        model=unet.Config(in_channels=1, num_classes=3, depth=3, width=16),
        data=Segmentation(
            source="mni152",
            channels=1,
            size=128,
            augment=Deform(
                degrees=10, scale=(0.9, 1.1), mirror=True, elastic=4, brightness=0.05, contrast=0.15, gamma=0.15
            ),
        ),
        task=Segment(),
        optim=Optim("adamw", lr=2e-3, weight_decay=1e-4, decay_vectors=False),
        schedule=Schedule("cosine", warmup=30),
        steps=500,
        batch_size=8,
        eval_batch_size=8,
        channels_last=True,
        ema=0.98,
    )
