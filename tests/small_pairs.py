"Two views of made-up pictures, near each other, shared by the tests of the Siamese methods."

from helpers import seeded
import torch
from torch import Tensor

SMALL = dict(img_size=24, patch_size=8, embed_dim=48, depth=2)  # of the ViT that sees them


def two(batch: int = 8, seed: int = 1) -> list[Tensor]:
    g = seeded(seed)
    x = torch.randn(batch, 3, 24, 24, generator=g)
    return [x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2)]
