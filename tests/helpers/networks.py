"""Networks whose output follows from their input by hand."""

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Give the same probability everywhere, and count the windows and modes it was called in."""

    def __init__(self, probability: float = 0.3) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(torch.tensor(probability)))
        self.n_windows = 0
        self.modes: set[bool] = set()

    def forward(self, image: Tensor) -> Tensor:
        self.n_windows += len(image)
        self.modes.add(self.training)
        return self.logit.expand(len(image), 1, *image.shape[2:])


class Local(nn.Module):
    """Logit = first channel times a factor that varies in the window, so that windows disagree."""

    def forward(self, image: Tensor) -> Tensor:
        ramp = torch.linspace(0.5, 1.5, image.shape[2])[:, None, None]
        return torch.cat([image[:, :1] * ramp, image[:, :1] * ramp.flip(0)], dim=1)


class FirstChannel(nn.Module):
    """Logit = first channel, so that a prediction can be compared with the image."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1]


def an_image(*shape: int, seed: int = 0) -> Tensor:
    """Draw an image (C, X, Y, Z) of noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Lopsided(nn.Module):
    """Logits that depend on the position in the window along all axes, so that no views agree."""

    def __init__(self) -> None:
        super().__init__()
        self.n_windows = 0

    def forward(self, image: Tensor) -> Tensor:
        self.n_windows += len(image)
        x, y, z = (torch.linspace(-1, 1, n) for n in image.shape[2:])
        return image[:, :1] + x[:, None, None] + 2 * y[:, None] + 3 * z
