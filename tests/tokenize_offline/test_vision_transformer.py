import pytest
import torch
from torch import Tensor

from tokenize_offline.vision_transformer import Layer, VisionTransformer, to_patches


def transformer(num_layers: int = 1) -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(
        channels=3,
        patch_size=2,
        width=8,
        intermediate=12,
        num_heads=2,
        num_layers=num_layers,
        num_positions=16,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_patches_are_rows_of_the_picture_with_channels_last() -> None:
    size, height, width = 2, 2, 3  # in patches
    x = torch.randn(2, 3, size * height, size * width)
    expected = [
        x[:, channel, size * i + y, size * j + z]
        for i in range(height)
        for j in range(width)
        for y in range(size)
        for z in range(size)
        for channel in range(3)
    ]
    found = to_patches(x, size)
    assert found.shape == (2, height * width, size * size * 3)
    assert torch.equal(found.flatten(1), torch.stack(expected, dim=1))
    still = to_patches(x.to(memory_format=torch.channels_last), size)
    assert torch.equal(still, found)


def test_features_come_back_where_their_patches_are() -> None:
    """Without layers a cell's feature is its own patch's alone."""
    network = transformer(num_layers=0)
    x = torch.randn(1, 3, 4, 10)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    different = (network(x) != network(changed)).any(dim=1)[0]
    assert different.shape == (2, 5)
    assert different.nonzero().tolist() == [[1, 3]]


def test_the_table_is_read_row_by_row_and_resized() -> None:
    network = transformer()
    assert torch.equal(network._positions((4, 4)), network.positions)
    with torch.no_grad():  # a table that grows downwards only
        network.positions.copy_(torch.arange(4.0).repeat_interleave(4)[:, None].expand(16, 8))
    tall = network._positions((8, 3)).reshape(8, 3, 8)
    assert (tall.diff(dim=0) >= 0).all()
    assert tall[0, 0, 0] < tall[-1, 0, 0]
    assert torch.allclose(tall.diff(dim=1), torch.zeros(()), atol=1e-6)


def attend(layer: Layer, tokens: Tensor) -> Tensor:
    """The layer's definition, head by head and token by token."""
    width = tokens.shape[-1]
    joint = layer.query_key_value(layer.norm_attention(tokens))
    attended = torch.zeros_like(tokens)
    per_head = width // layer.num_heads
    for head in range(layer.num_heads):
        part = slice(head * per_head, (head + 1) * per_head)
        query, key, value = (joint[..., k * width : (k + 1) * width][..., part] for k in range(3))
        share = (query @ key.mT / per_head**0.5).softmax(-1)
        attended[..., part] = share @ value
    tokens = tokens + layer.attended(attended)
    inner = layer.expand(layer.norm_expand(tokens))
    inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return tokens + layer.contract(inner)


def test_a_layer_is_attention_and_two_linear_layers() -> None:
    network = transformer()
    (layer,) = network.layers
    assert isinstance(layer, Layer)
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(tokens), attend(layer, tokens))


def test_a_new_layer_changes_nothing() -> None:
    tokens = torch.randn(2, 5, 8)
    assert torch.equal(Layer(8, 16, 2)(tokens), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_through_the_layers_has_the_weights_precision(dtype: torch.dtype) -> None:
    network, x = transformer(2).to(dtype), torch.randn(1, 3, 4, 6).to(dtype)
    assert network(x).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == dtype
    torch.testing.assert_close(network(x).float(), transformer(2)(x.float()), atol=0.1, rtol=0.1)


def test_it_is_compiled_in_one_piece() -> None:
    network, x = transformer(2), torch.randn(1, 3, 6, 10)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))
