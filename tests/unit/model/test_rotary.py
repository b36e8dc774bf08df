import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig

from pretrain.model.rotary import RotaryTables, rotate

LENGTH, SIZE = 48, 16


@pytest.fixture(scope="module")
def angles(ranks):
    return RotaryEmbedding(SIZE, 1.0, use_cpu_initialization=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_megatron_cores_bit_for_bit_and_so_is_its_gradient(angles, dtype):
    torch.manual_seed(1)
    config = TransformerConfig(num_layers=1, hidden_size=2 * SIZE, num_attention_heads=2, apply_rope_fusion=False)
    vectors = torch.randn(LENGTH, 3, 2, SIZE, dtype=dtype).requires_grad_()
    weights = torch.randn_like(vectors)
    expected = apply_rotary_pos_emb(vectors, angles(LENGTH), config)
    found = rotate(vectors, RotaryTables(angles, dtype)(LENGTH))
    assert torch.equal(found, expected) and found.dtype == dtype
    of_found, of_expected = (torch.autograd.grad((turned * weights).sum(), vectors)[0] for turned in (found, expected))
    assert torch.equal(of_found, of_expected)


def test_scores_depend_on_distance_alone(angles):
    tables = RotaryTables(angles, torch.float64)(LENGTH)
    query, key = torch.randn(2, SIZE, dtype=torch.float64)
    queries, keys = (rotate(vector.expand(LENGTH, 1, 1, SIZE), tables).squeeze() for vector in (query, key))
    scores = queries @ keys.T
    for distance in (0, 1, 17):
        assert torch.allclose(scores.diagonal(distance), scores[0, distance].expand(LENGTH - distance), atol=1e-5)
    assert not torch.allclose(scores[0, :2], scores[0, 0].expand(2), atol=1e-2)


def test_a_table_is_made_once(angles):
    tables = RotaryTables(angles, torch.float32)
    assert tables(LENGTH) is tables(LENGTH) and tables(LENGTH // 2).shape == (LENGTH // 2, 1, 1, 2 * SIZE)
