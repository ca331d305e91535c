"""Architectures for sequences and vectors: dense layers on more axes, layers of other kinds."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.catalogue import Net, awkward, conv, dense, sequences, vectors


@awkward(
    "a variational autoencoder has two output layers inside, and random numbers",
    example=vectors,
    before="encode decode",
    after="encode_act decode_act",
    alone={"mean": "output layer", "spread": "output layer", "out": "output layer"},
)
class Variational(Net):
    def parts(self):
        return {
            "encode": dense(4, 8),
            "encode_act": nn.SiLU(),
            "mean": dense(8, 2),
            "spread": dense(8, 2),
            "decode": dense(2, 8),
            "decode_act": nn.SiLU(),
            "out": dense(8, 4),
        }

    def forward(self, x):
        x = self.encode_act(self.encode(x))
        mean, spread = self.mean(x), self.spread(x)
        code = mean + torch.randn_like(spread) * (0.5 * spread).exp()
        return self.out(self.decode_act(self.decode(code))), mean, spread


@awkward(
    "a transformer's encoder layer has a kernel of its own, which reads the dense layers' weights",
    example=sequences,
    alone={
        "0.linear1": "nn.TransformerEncoderLayer reads its weight",
        "0.self_attn.out_proj": "multi_head_attention_forward",
        "1": "output layer",
    },
)
def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, dense())


@awkward(
    "attention: softmax is no activation of queries and keys, LayerNorm normalises already",
    example=sequences,
    before="expand",
    after="contract",
    alone={"query": "matmul()", "contract": "already normalised", "head": "output layer"},
)
class Attention(Net):
    def parts(self):
        layers = {name: dense() for name in ("query", "key", "value", "contract", "head")}
        return {**layers, "expand": dense(4, 8), "contract": dense(8, 4), "norm": nn.LayerNorm(4)}

    def forward(self, x):
        scores = torch.softmax(self.query(x) @ self.key(x).mT / 2, -1)
        x = x + scores @ self.value(x)
        return self.head(self.norm(x + self.contract(F.gelu(self.expand(x)))))


@awkward(
    "convolution, then a permuted sequence, then dense layers on three axes",
    before="conv dense",
    after="dense head",
    alone={"head": "output layer"},
)
class ConvThenSequence(Net):
    def parts(self):
        return {"conv": conv(), "dense": dense(24, 5), "head": dense(5, 3)}

    def forward(self, x):
        x = F.relu(self.conv(x)).permute(0, 3, 1, 2).flatten(2)  # (N, W, C·H)
        return self.head(F.hardswish(self.dense(x)))


@awkward(
    "recurrent layers and embeddings are no dense layers; what follows them is",
    example=lambda: torch.arange(12).reshape(4, 3) % 7,
    before="hidden",
    after="act",
    alone={"head": "output layer"},
)
class Recurrent(Net):
    def parts(self):
        return {
            "words": nn.Embedding(7, 4),
            "lstm": nn.LSTM(4, 5, batch_first=True),
            "gru": nn.GRU(5, 5, batch_first=True),
            "hidden": dense(5, 6),
            "act": nn.Softsign(),
            "head": dense(6, 3),
        }

    def forward(self, x):
        x, _ = self.lstm(self.words(x))
        x, last = self.gru(x)
        return self.head(self.act(self.hidden(last.squeeze(0))))
