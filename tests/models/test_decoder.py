"""The decoder: one recurrence, whichever way it is driven."""

import itertools

import pytest
import torch
from helpers.tiny import DECODERS, make_captions, make_decoder, make_grid
from torch import nn

from captioner.errors import ConfigError
from captioner.models.decoder import State
from captioner.models.encoder import Grid

LENGTHS = [[5, 3, 1], [6, 6, 0], [2, 1, 1]]  # targets of each caption, longest first

variants = pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)


def teacher_forced(decoder, lengths=LENGTHS, grid=None):
    """Logits unpacked to (B, C, T, V), zero at padding, and the result itself."""
    captions, lengths = make_captions(lengths)
    result = decoder(decoder.remember(grid or make_grid(len(lengths))), captions, lengths)
    logits = torch.zeros(*result.mask.shape, result.logits.shape[-1])
    logits[result.mask] = result.logits
    return logits, result, captions


@variants
def test_step_by_step_equals_teacher_forced(options):
    decoder = make_decoder(**options)
    logits, result, captions = teacher_forced(decoder)
    memory = decoder.remember(make_grid(3))
    state = decoder.start(memory, captions.shape[1])
    for t in range(result.mask.shape[-1]):
        step = decoder.step(state, captions[..., t], memory)
        state = step.state
        real = result.mask[..., t]
        torch.testing.assert_close(step.logits[real], logits[:, :, t][real])
        torch.testing.assert_close(step.attention[real], result.attention[:, :, t][real])


def test_targets_are_the_next_words():
    _, result, captions = teacher_forced(make_decoder())
    expected = [
        captions[photo, row, t + 1]
        for photo, rows in enumerate(LENGTHS)
        for row, length in enumerate(rows)
        for t in range(length)
    ]
    assert result.targets.tolist() == expected
    assert result.mask.sum(-1).tolist() == LENGTHS
    assert (result.attention[~result.mask] == 0).all()


@variants
def test_every_parameter_gets_a_gradient(options):
    decoder = make_decoder(**options).train()
    _, result, _ = teacher_forced(decoder)
    loss = nn.functional.cross_entropy(result.logits, result.targets)
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-8, name


def test_the_recurrence_is_an_lstm_that_reads_word_and_context():
    """Against torch's own cell, fed with [word; β·context] as in Xu et al. 2015."""
    decoder = make_decoder()
    cell = nn.LSTMCell(6 + 8, 10)
    with torch.no_grad():
        joined = (decoder.word_gates.weight, decoder.context_gates.weight)
        cell.weight_ih.copy_(torch.cat(joined, 1))
        cell.weight_hh.copy_(decoder.hidden_gates.weight)
        cell.bias_ih.copy_(decoder.word_gates.bias)
        cell.bias_hh.zero_()
    grid, words = make_grid(1), torch.tensor([[4], [5], [6]])
    memory = decoder.remember(grid)
    mean = grid.features.mean(1)
    hidden, cell_state = decoder.start_hidden(mean).tanh(), decoder.start_cell(mean).tanh()
    state = decoder.start(memory)
    for word in words:
        scores = torch.tanh(
            decoder.attention.key(grid.features[0]) + decoder.attention.query(hidden[0])
        )
        weights = (scores @ decoder.attention.score).softmax(0)
        beta = torch.sigmoid(decoder.gate(hidden))
        context = beta * (weights @ grid.features[0])
        x = torch.cat((decoder.embed(word), context), 1)
        hidden, cell_state = cell(x, (hidden, cell_state))
        step = decoder.step(state, word[None], memory)
        state = step.state
        torch.testing.assert_close(step.attention[0, 0], weights)
        torch.testing.assert_close(state.hidden[0], hidden)
        torch.testing.assert_close(state.cell[0], cell_state)
        torch.testing.assert_close(step.logits[0], decoder.project(hidden))


def test_deep_output_equals_equation_7():
    decoder = make_decoder(deep_output=True)
    memory = decoder.remember(make_grid(1))
    contexts = []
    decoder.deep_context.register_forward_hook(lambda _m, inputs, _o: contexts.append(inputs[0]))
    word = torch.tensor([[5]])
    step = decoder.step(decoder.start(memory), word, memory)
    deep = (
        decoder.embed(word)
        + decoder.deep_hidden(step.state.hidden)
        + contexts[0] @ decoder.deep_context.weight.T
    )
    torch.testing.assert_close(step.logits, decoder.project(torch.tanh(deep)))


@variants
def test_order_of_the_rows_changes_nothing(options):
    """Longest first lets finished columns leave; any other order must give the same."""
    decoder = make_decoder(**options)
    captions, lengths = make_captions(LENGTHS)
    memory = decoder.remember(make_grid(3))
    rows = []
    decoder.attention.query.register_forward_pre_hook(
        lambda _m, inputs: rows.append(inputs[0].shape[1])
    )
    logits, attention = {}, {}
    costs = {}
    for order in itertools.permutations(range(3)):
        rows.clear()
        order = list(order)
        result = decoder(memory, captions[:, order], lengths[:, order])
        costs[tuple(order)] = sum(rows)
        back = torch.argsort(torch.tensor(order))
        full = torch.zeros(*result.mask.shape, result.logits.shape[-1])
        full[result.mask] = result.logits
        logits[tuple(order)] = full[:, back]
        attention[tuple(order)] = result.attention[:, back]
    sorted_rows = (0, 1, 2)
    for order in costs:
        torch.testing.assert_close(logits[order], logits[sorted_rows])
        torch.testing.assert_close(attention[order], attention[sorted_rows])
    # 6 steps: column 0 and 1 live for 6, column 2 for one.
    assert costs[sorted_rows] == 6 + 6 + 1
    assert costs[2, 1, 0] == 3 * 6


@variants
def test_order_of_the_photos_changes_nothing(options):
    """The photo with the longest caption first lets the others leave."""
    decoder = make_decoder(**options)
    logits, result, captions = teacher_forced(decoder)
    features, lengths = make_grid(3).features, torch.tensor(LENGTHS)
    cost = []
    decoder.attention.query.register_forward_pre_hook(
        lambda _m, inputs: cost.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    costs = {}
    for order in itertools.permutations(range(3)):
        cost.clear()
        order = list(order)
        memory = decoder.remember(Grid(features[order], (3, 3)))
        again = decoder(memory, captions[order], lengths[order])
        costs[tuple(order)] = sum(cost)
        torch.testing.assert_close(again.logits, logits[order][result.mask[order]])
        torch.testing.assert_close(again.attention, result.attention[order])
    # Columns 3, 2, 2, 2, 2, 2 over the steps; photos with 6, 5 and 2 of them.
    assert costs[1, 0, 2] == 3 * 3 + 3 * 2 + 2 * 2 + 2 * 2 + 2 * 2 + 1 * 2
    assert costs[1, 0, 2] < costs[2, 1, 0]


@variants
def test_rows_share_the_photo(options):
    """Three captions of one encoding equal three copies of the photo with one caption each."""
    decoder = make_decoder(**options)
    _, result, captions = teacher_forced(decoder)
    copies = Grid(make_grid(3).features.repeat_interleave(3, 0), (3, 3))
    single = decoder(
        decoder.remember(copies), captions.flatten(0, 1)[:, None], torch.tensor(LENGTHS).view(9, 1)
    )
    torch.testing.assert_close(single.logits, result.logits)
    torch.testing.assert_close(single.attention.view_as(result.attention), result.attention)


@variants
def test_each_photo_of_a_batch_gives_what_it_gives_alone(options):
    decoder = make_decoder(**options)
    logits, result, captions = teacher_forced(decoder)
    features = make_grid(3).features
    for photo, lengths in enumerate(LENGTHS):
        alone = decoder(
            decoder.remember(Grid(features[photo : photo + 1], (3, 3))),
            captions[photo : photo + 1],
            torch.tensor([lengths]),
        )
        steps = max(lengths)
        torch.testing.assert_close(alone.logits, logits[photo][result.mask[photo]])
        torch.testing.assert_close(alone.attention[0], result.attention[photo, :, :steps])


def test_what_stands_in_the_padding_does_not_matter():
    decoder = make_decoder()
    captions, lengths = make_captions(LENGTHS)
    memory = decoder.remember(make_grid(3))
    result = decoder(memory, captions, lengths)
    places = torch.arange(captions.shape[-1])
    garbage = torch.where(places > lengths[..., None], 7, captions)
    garbage = nn.functional.pad(garbage, (0, 4), value=5)
    assert not torch.equal(garbage[..., : captions.shape[-1]], captions)
    for one, other in zip(result, decoder(memory, garbage, lengths), strict=True):
        torch.testing.assert_close(one, other)


def test_words_of_the_future_are_not_seen():
    decoder = make_decoder()
    captions, lengths = make_captions([[6]])
    memory = decoder.remember(make_grid(1))
    before = decoder(memory, captions, lengths).logits
    captions[0, 0, 4] = 8 if captions[0, 0, 4] != 8 else 7  # the word that step 4 reads
    after = decoder(memory, captions, lengths).logits
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.allclose(before[4], after[4])


def test_dropout_acts_in_training_only():
    decoder = make_decoder(dropout=0.5, deep_output=True)
    first, second = (teacher_forced(decoder)[1].logits for _ in range(2))
    assert torch.equal(first, second)
    decoder.train()
    first, second = (teacher_forced(decoder)[1].logits for _ in range(2))
    assert not torch.equal(first, second)


def test_gate_weighs_the_context():
    """A scalar gate that is shut leaves the photo to the initial state alone."""
    decoder = make_decoder(gate="scalar", initial_state="zero")
    with torch.no_grad():
        decoder.gate.bias.fill_(-100)
        decoder.gate.weight.zero_()
    outputs = []
    for seed in (0, 1):
        memory = decoder.remember(make_grid(1, seed))
        outputs.append(decoder.step(decoder.start(memory), torch.tensor([[1]]), memory).logits)
    torch.testing.assert_close(*outputs)


def test_start_gives_every_row_the_same_state():
    decoder = make_decoder()
    state = decoder.start(decoder.remember(make_grid(2)), rows=3)
    assert isinstance(state, State)
    for part in state:
        assert part.shape == (2, 3, 10)
        assert torch.equal(part[:, 0], part[:, 2])
    assert not torch.equal(state.hidden[0], state.hidden[1])


def test_tied_embeddings_are_one_tensor():
    decoder = make_decoder(tied=True, hidden=6)
    assert decoder.project.weight is decoder.embed.weight
    with pytest.raises(ConfigError, match=r"decoder\.tied"):
        make_decoder(tied=True, hidden=10)
