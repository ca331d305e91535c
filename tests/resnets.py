"""ResNet-50, narrow: 53 convolutions, each with its batch norm (He et al. 2016, table 1)."""

from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, channels, maps, *, stride):
        super().__init__()
        self.body = nn.Sequential(
            *normalised(channels, maps, 1),
            nn.ReLU(),
            *normalised(maps, maps, 3, stride=stride),
            nn.ReLU(),
            *normalised(maps, 4 * maps, 1),
        )
        same = channels == 4 * maps and stride == 1
        short = () if same else normalised(channels, 4 * maps, 1, stride=stride)
        self.shortcut, self.relu = nn.Sequential(*short), nn.ReLU()

    def forward(self, x):
        return self.relu(self.body(x) + self.shortcut(x))


def normalised(channels, maps, size, *, stride=1):
    conv = nn.Conv2d(channels, maps, size, stride, size // 2, bias=False)
    return conv, nn.BatchNorm2d(maps)


def resnet50(*, width=4, classes=10):
    layers = [*normalised(3, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(channels, width * 2**stage, stride=stride))
            channels = 4 * width * 2**stage
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    return nn.Sequential(*layers, *head)
