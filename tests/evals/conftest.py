"""A byte-level tokenizer, two tiny random models, of rotary and of learned positions, and the harness kept local."""

from collections.abc import Iterator
from functools import cache, partial

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["Question: Where was Ann Lee born?\nAnswer: Ann Lee was born in Oslo."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<pad>")


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # far from uniform, so that two greedy paths that should agree can't do so by a tie
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    return GPT2LMHeadModel(config)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM | GPT2LMHeadModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def only_local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tasks of a test alone (the harness's own index takes ten seconds), their data kept in a folder of ours."""
    import datasets.config
    from lm_eval import tasks, utils
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
        # It compiles a task's templates again for every question.
        patch.setattr(utils.env, "from_string", cache(utils.env.from_string))
        # It asks pip, git and the like about the machine in every result.
        patch.setattr(collect_env, "get_pretty_env_info", cache(collect_env.get_pretty_env_info))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        torch.set_num_threads(1)
        yield
