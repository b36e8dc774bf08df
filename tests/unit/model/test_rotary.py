import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pretrain.config.model import RopeScaling
from pretrain.model.rotary import RotaryTables, rotate, scaled

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


SCALINGS = [
    {"type": "linear", "factor": 4.0},
    {"type": "llama3", "factor": 8.0, "original_length": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"type": "llama3", "factor": 32.0, "original_length": 8192},
    {"type": "yarn", "factor": 4.0, "original_length": 256},
    {"type": "yarn", "factor": 16.0, "original_length": 4096, "beta_fast": 20.0, "beta_slow": 2.0},
]


@pytest.mark.parametrize("keys", SCALINGS, ids=lambda keys: f"{keys['type']} {keys['factor']:g}")
@pytest.mark.parametrize("size, base", [(16, 10_000), (64, 500_000)])
def test_frequencies_for_longer_texts_are_those_of_transformers(ranks, keys, size, base):
    theirs = {
        "rope_type": keys["type"], "rope_theta": float(base), "factor": keys["factor"],
        "original_max_position_embeddings": keys.get("original_length", 1), "low_freq_factor": keys.get("low_freq_factor", 1.0),
        "high_freq_factor": keys.get("high_freq_factor", 4.0), "beta_fast": keys.get("beta_fast", 32.0),
        "beta_slow": keys.get("beta_slow", 1.0),
    }  # fmt: skip
    length = int(keys["factor"] * keys.get("original_length", 64))
    config = LlamaConfig(hidden_size=2 * size, num_attention_heads=2, max_position_embeddings=length, rope_parameters=theirs)
    expected, factor = ROPE_INIT_FUNCTIONS[keys["type"]](config, "cpu")
    plain = RotaryEmbedding(size, 1.0, rotary_base=base, use_cpu_initialization=True).inv_freq
    found, sharpness = scaled(plain, RopeScaling(**keys))
    assert torch.allclose(found, expected, rtol=1e-5) and sharpness == pytest.approx(factor)
    assert not torch.allclose(found, plain, rtol=1e-3)


def test_sharper_attention_is_in_the_tables(angles):
    assert torch.allclose(RotaryTables(angles, torch.float32, 1.5)(LENGTH), 1.5 * RotaryTables(angles, torch.float32)(LENGTH))
