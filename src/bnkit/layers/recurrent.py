"""`BatchNormLSTM` and `BatchNormLSTMCell`: torch's, with recurrent batch normalization."""

from collections.abc import Sequence
from typing import Any, Unpack, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bnkit.layers.batch_norm import showing_options
from bnkit.layers.lstm_direction import (
    Direction,
    NormOptions,
    Packing,
    Run,
    State,
    add_batch_norms,
    check_batch,
    check_features,
    check_state,
    checked_lengths,
    reset_parameters,
)
from bnkit.layers.per_step import PerStepBatchNorm1d


class LSTMOptions(NormOptions, total=False):
    """What torch.nn.LSTM takes after its sizes, by position or keyword, and the batch norms'."""

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class BatchNormLSTM(nn.RNNBase):
    """torch.nn.LSTM whose gates and cell outputs are batch-normalised in each time step.

    With BN(x; γ, β) normalising over the mini-batch, one step is (Cooijmans et al. 2017,
    "Recurrent Batch Normalization", arXiv:1603.09025, equations 6 to 8)

        i, f, g, o = BN(W_ih x_t; γ_ih) + BN(W_hh h_{t−1}; γ_hh) + b_ih + b_hh
        c_t = σ(f) c_{t−1} + σ(i) tanh(g)
        h_t = σ(o) tanh(BN(c_t; γ_c, β_c))

    Arguments, shapes, results and parameter names are torch's, `proj_size` and packed sequences
    included; the weights of a torch.nn.LSTM load with strict=False. γ starts at 0.1, β_c at 0, and
    they are shared over time; the running statistics are not: each layer and direction has
    `batchnorm_ih_l0`, `batchnorm_hh_l0` and `batchnorm_c_l0` (and so on, as torch names weights),
    a `PerStepBatchNorm1d` each. They track the first `max_steps` steps. In training every step uses
    the statistics of the mini-batch; in eval mode steps beyond `max_steps`, or beyond the longest
    sequence that was trained on, use those of the last (section 3). `eps`, `momentum` and `guard`
    are those of `bnkit.BatchNorm1d`.

    Sequences of different lengths come as a PackedSequence, or padded with `lengths`. Padding
    takes no part in the statistics. In training, the steps that only one sequence reaches have no
    variance: they use the running statistics and do not change them. Backwards, each sequence
    starts at its own last step, which is step 0 of that direction's statistics. If all sequences
    start alike (the first pixels of an image), the variance of the first steps is 0 and gradients
    explode: give `hx` a little noise, std 0.1 in the authors' program. Give in eval mode an `hx`
    like those of training: if these were zeros, the variance of W_hh h at step 0 is 0.

    Under autocast the matrix products run in lower precision; c, h and the output stay in the
    weights' dtype. Raises ValueError for an input that is not 2-D or 3-D or of another dtype than
    the weights, wrong `lengths`, and in training for fewer than two sequences; RuntimeError, as
    torch's, for wrong sizes and sequences of length 0; TypeError for `lengths` with a
    PackedSequence.

    >>> layer = BatchNormLSTM(3, 5, max_steps=7)
    >>> output, (h, c) = layer(torch.randn(7, 4, 3))
    >>> tuple(output.shape), tuple(h.shape)
    ((7, 4, 5), (1, 4, 5))
    >>> output, (h, c) = layer(torch.randn(7, 4, 3), lengths=[7, 2, 7, 3])
    >>> output[2:, 1].abs().max().item(), torch.equal(output[1, 1], h[0, 1])
    (0.0, True)
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    @showing_options(nn.RNNBase.__init__, PerStepBatchNorm1d.__init__)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *arguments: Any,
        max_steps: int,
        **options: Unpack[LSTMOptions],
    ) -> None:
        rest: dict[str, Any] = dict(options)
        of_norms = {name: rest.pop(name) for name in get_type_hints(NormOptions) if name in rest}
        super().__init__("LSTM", input_size, hidden_size, *arguments, **rest)
        self.max_steps = max_steps
        for suffix in (suffix for suffixes in self._suffixes() for suffix in suffixes):
            add_batch_norms(self, suffix, max_steps=max_steps, **of_norms)

    def _suffixes(self) -> list[list[str]]:
        """Return how torch ends the names of each layer's directions."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [[f"_l{layer}{way}" for way in ways] for layer in range(self.num_layers)]

    def reset_parameters(self) -> None:
        """Draw the weights anew as torch.nn.LSTM does, and reset the batch norms."""
        reset_parameters(self)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Return all h of the last layer, in the form of `input`, and the last (h, c) of each.

        `input` is (L, N, input_size), with batch_first (N, L, input_size), without mini-batch
        (L, input_size), or a PackedSequence. `lengths`, (N,), says how many steps of each
        sequence of a padded input are not padding; there the output is 0.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise TypeError(
                    "`lengths` is given with a PackedSequence, which has its own: omit it"
                )
            return self._forward_packed(input, hx)
        if input.dim() not in {2, 3}:
            axes = "(N, L, input_size)" if self.batch_first else "(L, N, input_size)"
            raise ValueError(
                f"`input` of shape {tuple(input.shape)} is {input.dim()}-D: give {axes} or, "
                f"without mini-batch, (L, input_size)"
            )
        if input.dim() == 2:
            return self._forward_unbatched(input, hx, lengths)
        if lengths is not None:
            return self._forward_padded(input, hx, lengths)
        return self._forward_full(input, hx)

    def _forward_unbatched(
        self, input: Tensor, hx: State | None, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, State]:
        if lengths is not None:
            raise ValueError(f"`lengths` needs a mini-batch, and `input` is {tuple(input.shape)}")
        batch_axis = 0 if self.batch_first else 1
        state = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        output, (h, c) = self._forward_full(input.unsqueeze(batch_axis), state)
        return output.squeeze(batch_axis), (h.squeeze(1), c.squeeze(1))

    def _forward_full(self, input: Tensor, hx: State | None) -> tuple[Tensor, State]:
        """Run sequences that are all of the same length."""
        by_step = input.transpose(0, 1) if self.batch_first else input  # (L, N, input_size)
        steps, rows = by_step.shape[:2]
        if not steps:
            raise RuntimeError(
                f"`input` of shape {tuple(input.shape)} has sequences of length 0: give at least "
                f"one step"
            )
        self._check(input, rows)
        packing = Packing((Run(0, steps, rows),))
        data, state = self._run_layers(by_step.flatten(0, 1), packing, self._state(rows, hx))
        output = data.view(steps, rows, data.shape[1])
        return (output.transpose(0, 1) if self.batch_first else output), state

    def _forward_padded(
        self, input: Tensor, hx: State | None, lengths: Tensor | Sequence[int]
    ) -> tuple[Tensor, State]:
        batch_axis, step_axis = (0, 1) if self.batch_first else (1, 0)
        sequences, steps = input.shape[batch_axis], input.shape[step_axis]
        lengths = checked_lengths(lengths, sequences=sequences, steps=steps)
        self._check(input, sequences)
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = self._forward_packed(packed, hx)
        return pad_packed_sequence(output, self.batch_first, total_length=steps)[0], state

    def _forward_packed(
        self, input: PackedSequence, hx: State | None
    ) -> tuple[PackedSequence, State]:
        data, batch_sizes, order, order_back = input
        packing = Packing.of(batch_sizes)
        self._check(data, packing.rows)
        h, c = self._state(packing.rows, hx)
        if order is not None:  # rows of hx are in the order of the user's sequences
            h, c = h[:, order], c[:, order]
        data, (h, c) = self._run_layers(data, packing, (h, c))
        if order_back is not None:
            h, c = h[:, order_back], c[:, order_back]
        return PackedSequence(data, batch_sizes, order, order_back), (h, c)

    def _check(self, input: Tensor, sequences: int) -> None:
        check_features(self, input, self.weight_ih_l0)
        check_batch(self, input, sequences)

    def _state(self, sequences: int, hx: State | None) -> State:
        """Return `hx`, checked, or zeros: h and c, (layers · directions, sequences, features)."""
        cells = self.num_layers * (2 if self.bidirectional else 1)
        shape_h = (cells, sequences, self.proj_size or self.hidden_size)
        shape_c = (cells, sequences, self.hidden_size)
        if hx is None:
            return self.weight_hh_l0.new_zeros(shape_h), self.weight_hh_l0.new_zeros(shape_c)
        check_state(hx, shape_h, shape_c)
        return hx

    def _run_layers(self, data: Tensor, packing: Packing, state: State) -> tuple[Tensor, State]:
        """Return the packed output of the last layer, (cells, features), and all last states."""
        last_h: list[Tensor] = []
        last_c: list[Tensor] = []
        for layer, suffixes in enumerate(self._suffixes()):
            if layer:
                data = F.dropout(data, self.dropout, self.training)
            outputs = []
            for suffix in suffixes:
                start = state[0][len(last_h)], state[1][len(last_h)]
                output, (h, c) = self._run_direction(data, packing, start, suffix)
                outputs.append(output)
                last_h.append(h)
                last_c.append(c)
            data = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return data, (torch.stack(last_h), torch.stack(last_c))

    def _run_direction(
        self, data: Tensor, packing: Packing, start: State, suffix: str
    ) -> tuple[Tensor, State]:
        direction = Direction.of(self, suffix)
        if not suffix.endswith("_reverse"):
            return direction.run(data, packing, start)
        output, last = direction.run(packing.reversed(data), packing, start)
        return packing.reversed(output), last

    def extra_repr(self) -> str:
        """Return torch's line, and the number of steps."""
        return f"{super().extra_repr()}, max_steps={self.max_steps}"


class BatchNormLSTMCell(nn.RNNCellBase):
    """One time step of a batch-normalised LSTM: torch.nn.LSTMCell, and the number of the step.

    Arguments, parameters, shapes and results are those of torch's, whose weights load with
    strict=False; the equations, the further arguments and the further state are those of
    `BatchNormLSTM`. `step` counts from 0 at the start of each sequence and
    chooses the running statistics. Every call in training takes in those of its step.

    Raises ValueError for an input that is not 1-D or 2-D or of another dtype than the weights, a
    negative `step`, and in training for fewer than two samples; RuntimeError, as torch's, for
    wrong sizes.

    >>> cell, state = BatchNormLSTMCell(3, 5, max_steps=7), None
    >>> for step, x in enumerate(torch.randn(7, 4, 3)):
    ...     state = cell(x, state, step=step)
    >>> [tuple(part.shape) for part in state]
    [(4, 5), (4, 5)]
    """

    @showing_options(PerStepBatchNorm1d.__init__)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_steps: int,
        **options: Unpack[NormOptions],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.max_steps = max_steps
        add_batch_norms(self, max_steps=max_steps, **options)

    def reset_parameters(self) -> None:
        """Draw the weights anew as torch.nn.LSTMCell does, and reset the batch norms."""
        reset_parameters(self)

    def forward(self, input: Tensor, hx: State | None = None, *, step: int) -> State:
        """Return h and c after time step `step`, counted from 0: (N, hidden size) each."""
        if step < 0:
            raise ValueError(f"`step` is {step}: count the steps of a sequence from 0")
        if input.dim() == 1:
            state = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
            h, c = self.forward(input.unsqueeze(0), state, step=step)
            return h.squeeze(0), c.squeeze(0)
        if input.dim() != 2:
            raise ValueError(
                f"`input` of shape {tuple(input.shape)} is {input.dim()}-D: give (N, input_size) "
                f"or, without mini-batch, (input_size,)"
            )
        check_features(self, input, self.weight_ih)
        check_batch(self, input, len(input))
        _, state = Direction.of(self).run(
            input, Packing((Run(0, 1, len(input)),)), self._state(input, hx), first_step=step
        )
        return state

    def _state(self, input: Tensor, hx: State | None) -> State:
        shape = (len(input), self.hidden_size)
        if hx is None:
            return self.weight_hh.new_zeros(shape), self.weight_hh.new_zeros(shape)
        check_state(hx, shape, shape)
        return hx

    def extra_repr(self) -> str:
        """Return torch's line, and the number of steps."""
        return f"{super().extra_repr()}, max_steps={self.max_steps}"
