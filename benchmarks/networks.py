"""The networks whose training steps are timed, as their papers describe them."""

import torch
from torch import Tensor, nn


def conv(features_in: int, features: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(features_in, features, size, padding=size // 2, bias=False, **options)


class Residual(nn.Module):
    """The basic block of a residual network (He et al. 2016)."""

    def __init__(self, features_in: int, features: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(features_in, features, stride=stride),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            conv(features, features),
            nn.BatchNorm2d(features),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or features_in != features:
            self.shortcut = nn.Sequential(
                conv(features_in, features, 1, stride=stride), nn.BatchNorm2d(features)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 (Sandler et al. 2018): expand, depthwise, project."""

    def __init__(self, features_in: int, features: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = features_in * expansion
        expand = [conv(features_in, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(
            *(expand if expansion > 1 else ()),
            conv(wide, wide, stride=stride, groups=wide),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            conv(wide, features, 1),
            nn.BatchNorm2d(features),
        )
        self.adds = stride == 1 and features_in == features

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class Dense(nn.Module):
    """A layer of DenseNet (Huang et al. 2017), whose output goes beside its input."""

    def __init__(self, features_in: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(features_in),
            nn.ReLU(inplace=True),
            conv(features_in, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            conv(4 * growth, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def stem(features: int, stride: int, activation: nn.Module) -> list[nn.Module]:
    return [conv(3, features, stride=stride), nn.BatchNorm2d(features), activation]


def head(features: int, classes: int = 1000) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet_18() -> nn.Module:
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)]
    widths += [(256, 256, 1), (256, 512, 2), (512, 512, 1)]
    blocks = [Residual(*width) for width in widths]
    first = [*stem(64, 2, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*first, *blocks, *head(512))


def mobilenet_v2() -> nn.Module:
    layers, features_in = stem(32, 2, nn.ReLU6(inplace=True)), 32
    groups = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    groups += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, features, count, stride in groups:
        for index in range(count):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(features_in, features, step, expansion))
            features_in = features
    last = [conv(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, *last, *head(1280))


def densenet_121() -> nn.Module:
    growth, features = 32, 64
    layers: list[nn.Module] = [*stem(64, 2, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)]
    for count in (6, 12, 24, 16):
        for _ in range(count):
            layers.append(Dense(features, growth))
            features += growth
        if count != 16:
            layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
            layers += [conv(features, features // 2, 1), nn.AvgPool2d(2)]
            features //= 2
    last = [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *last, *head(features))
