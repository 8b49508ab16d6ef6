"""A tiny model of every causal-LM configuration that transformers knows, made from the configuration's own defaults.

Sizes are set by the names that configurations give them; of a pattern of layers, one of each kind is kept.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 300

SIZES = {
    name: size
    for size, names in {
        VOCABULARY: "vocab_size unpadded_vocab_size vocab_size_per_layer_input pronunciation_vocab_size "
        "shape_vocab_size",
        32: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size word_embed_proj_dim attention_hidden_size "
        "lru_width input_embedding_size output_embedding_size mamba_d_ssm router_hidden_size pronunciation_embed_dim "
        "shape_embed_dim ple_embed_dim index_topk index_topk_blocks keep_window_size adapter_in_dim hidden_size_global",
        64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner shared_expert_intermediate_size "
        "shared_experts_intermediate_size shared_intermediate_size ffn_hidden_size intermediate_size_mlp "
        "expert_ffn_hidden_size dense_intermediate_size dim_ff dff feed_forward_size d_inner block_multiple_of "
        "moe_shared_expert_intermediate_size prompt_mid_dim",
        2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads attention_heads "
        "swa_num_attention_heads num_kv_heads index_n_heads num_blocks num_layers_per_stack linear_num_value_heads "
        "linear_num_heads num_experts_per_tok num_experts_per_token moe_topk moe_k n_mamba_heads num_query_groups "
        "rescale_every heads_per_ngram attn_layer_period o_groups n_group num_expert_group",
        1: "num_key_value_heads swa_num_key_value_heads linear_num_key_heads first_k_dense_replace num_dense_layers "
        "num_nextn_predict_layers moe_layer_start_index moe_layer_end_index topk_group attn_layer_offset "
        "mamba_n_groups n_groups mamba_ngroups zero_expert_num max_window_layers",
        16: "head_dim swa_head_dim v_head_dim qk_nope_head_dim kv_channels index_head_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim attention_head_dim attention_head_size d_head dim_head q_lora_rank "
        "kv_lora_rank o_lora_rank mamba_dt_rank time_step_rank hidden_size_per_layer_input laurel_rank gated_norm_rank "
        "adapter_rank hc_lowrank qk_rope_head_dim mamba_d_head mamba_head_dim moe_intermediate_size mamba_headdim "
        "rotary_dim",
        4: "num_experts n_routed_experts num_local_experts moe_num_experts mamba_n_heads mamba_num_heads state_size "
        "ssm_state_size mamba_d_state split_ngram_parts d_rel",
        8: "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size local_attention "
        "local_attention_window_len chunk_size mamba_chunk_size index_block_size local_attn_chunk_length "
        "lsh_attn_chunk_length block_size",
        128: "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length rel_extent "
        "original_max_position_embeddings max_target_positions max_source_positions position_bias_max_distance "
        "ngram_vocab_size_base encoder_hash_byte_group_vocab",
    }.items()
    for name in names.split()
}

GIVEN: dict[str, Any] = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "is_decoder": True,
}
"""What is set where a configuration with attention heads leaves it open."""

MULTIPLIERS = ("lm_head_multiplier", "logits_scaling", "logit_scale")
"""Of these, 1 would hide whether they are looked at."""

BOTH = ["linear_attention", "full_attention"]
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": BOTH, "num_hidden_layers": 2},
    "codegen": {"n_head": 4, "n_embd": 64},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hrm_text": {"num_hidden_layers": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [8, 24], "attn_layers": ["local", "lsh"]},
    "rwkv": {"num_hidden_layers": 3},  # the third is the first whose weights are rescaled
    "xlstm": {"num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
}


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same configuration with small sizes, a few layers, and nothing random."""
    kind, own, heads = type(config), vars(config), getattr(config, "num_attention_heads", None)
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else set(inspect.signature(kind).parameters)
    new: dict[str, Any] = {}
    for name, value in own.items():
        if isinstance(value, PreTrainedConfig):
            new[name] = shrunk(value)
        elif name in SIZES and type(value) is int and value > 0:
            new[name] = min(value, SIZES[name])
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            new[name] = 0.0
        elif name in MULTIPLIERS and value == 1:
            new[name] = 0.5
        elif name in GIVEN and heads and not value:
            new[name] = GIVEN[name]
    if heads and own.get("num_key_value_heads") == heads:
        new["num_key_value_heads"] = new["num_attention_heads"]
    new |= _one_of_each_kind(own)
    new |= {"initializer_range": 0.1, "bos_token_id": 2, "eos_token_id": 0, "pad_token_id": 1}
    new |= EXCEPTIONS.get(kind.model_type, {})
    return kind(**{name: value for name, value in new.items() if name in known})


def _one_of_each_kind(own: dict[str, Any]) -> dict[str, Any]:
    """Settings that hold a value for every layer, with the first layer of each kind kept, at least two and at most
    five."""
    count = own.get("num_hidden_layers")
    by_layer = {name: x for name, x in own.items() if isinstance(x, list | tuple) and len(x) == count}
    if not count or not by_layer:
        return {}
    first: dict[tuple[str, ...], int] = {}
    for i, kind in enumerate(zip(*(map(str, x) for x in by_layer.values()), strict=True)):
        first.setdefault(kind, i)
    kept = sorted(first.values())[:5] if len(first) > 1 else [0, 1]
    small = {name: [min(x[i], 64) if type(x[i]) is int else x[i] for i in kept] for name, x in by_layer.items()}
    return {**small, "num_hidden_layers": len(kept)}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[[str], PreTrainedConfig]:
    return lambda model_type: shrunk(CONFIG_MAPPING[model_type]())


@pytest.fixture(scope="session")
def build_tiny(tiny_config: Callable[[str], PreTrainedConfig]) -> Callable[[str], Any]:
    """Builds the random model of a type, the same at every call."""

    def build(model_type: str) -> Any:
        config = tiny_config(model_type)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        assert size < 4_000_000, f"{model_type} still has {size:,} parameters"
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    return build
