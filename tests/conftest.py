"""Tiny models, tokenizers and files. Nothing here needs a network."""

import gc
import json
import os

# read when the libraries are imported, here and in scripts that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads that wait for each other cost the most

from pydoc_data.topics import topics

import gguf
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lib.core import stats
from lib.model import attention, packaged
from lib.model import models as model_models
from lib.model.arch import Architecture
from lib.report import figures
from lib.run import storage, unfinished
from lib.run.cli import Options, UserError
from tests import architectures, cases, reference, undrawn

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_addoption(parser):
    parser.addoption("--device", default="pretend", help="where test_on_device.py runs models (default: pretend)")


def pytest_configure(config):
    name = config.getoption("--device")
    try:
        if name != "pretend":
            model_models.chosen_device(name)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_finish():
    gc.freeze()  # or every collection would look through all that was imported


def exhaustive_unless(kept, *case):
    """A case of a parametrisation, which `make test` runs if it is kept, and otherwise `make test-exhaustive` alone."""
    return pytest.param(*case, marks=[] if kept else pytest.mark.exhaustive)


def by_turns(firsts, seconds):
    """Every pair of two lists; every other one is exhaustive, so that each of either list is kept."""
    return [
        exhaustive_unless((i + j) % 2 == 0, first, second)
        for i, first in enumerate(firsts)
        for j, second in enumerate(seconds)
    ]


END = "<|end|>"
TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:20_000]
VOCABULARY = 320
LAYERS, HEADS, HIDDEN, POSITIONS = 3, 4, 32, 64
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
GROUPED = {
    **SHARED,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
# family: (classes, configuration); the odd ones out: sliding windows, a scale that is not head_dim ** -0.5, heads
# that together are wider than the residual stream
FAMILIES = {
    "gpt2": ("GPT2", {**SHARED, "n_layer": LAYERS, "n_head": HEADS, "n_embd": HIDDEN, "n_positions": POSITIONS}),
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16}),
    "gemma3_text": (
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def tiny_model(family, seed=0, scale=0.2, **overrides):
    """A random model in which no bias is zero and no norm weight is its default."""
    name, config = FAMILIES[family]
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**config, **overrides})
    model_class = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, model_class)(config).eval()
    model.set_attn_implementation("sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = scale * torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(parameter + noise if norm else noise)
    return model.requires_grad_(False)


# What planted_model() plants
SPIKE_TOKEN = 7
FLAG_DIM, MASSIVE_DIM, SECOND_DIM = 7, 5, 9


def planted_model(family):
    """A GPT-2 or Llama whose layer-1 MLP writes massive values into MASSIVE_DIM (negative) and SECOND_DIM (positive)
    wherever the token is SPIKE_TOKEN; the layer-2 MLP adds to the former if it finds it there. Heads have no part.
    """
    model = tiny_model(family, scale=0.1)
    blocks = [reference.parts(block) for block in reference.blocks(model)]
    embedding = model.get_input_embeddings().weight.data
    # only what is planted writes to these
    private = [FLAG_DIM, MASSIVE_DIM]
    embedding[:, private] = 0
    for part in blocks:
        for module in (part.heads, part.down):
            reference.matrix(module)[private] = 0
            if family == "gpt2":
                module.bias.data[private] = 0
    if family == "gpt2":
        model.transformer.wpe.weight.data[:, private] = 0
    embedding[SPIKE_TOKEN] = 0
    embedding[SPIKE_TOKEN, FLAG_DIM] = 10
    for layer, reads, gain, writes in (
        (1, FLAG_DIM, 1, {MASSIVE_DIM: -2000, SECOND_DIM: 500}),
        (2, MASSIVE_DIM, -1, {MASSIVE_DIM: -1000}),
    ):
        part = blocks[layer]
        for module in part.mlp_in:
            reference.matrix(module)[0] = 0
            reference.matrix(module)[0, reads] = gain * (5 if family == "gpt2" else 1)
        if family == "gpt2":
            part.mlp_norm.bias.data[reads] = 0
            part.mlp_in[0].bias.data[0] = -15
        for dim, weight in writes.items():
            reference.matrix(part.down)[dim, 0] = weight
    return model


def make_tokenizer(adds_bos=False):
    """Byte-level BPE of about 300 entries; END is both BOS and EOS, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def language_model(model, tokenizer=None):
    return model_models.LanguageModel(model, Architecture(model), tokenizer, {"folder": "tiny"})


def token_ids(sequences, length, seed=0):
    """Random tokens; SPIKE_TOKEN is not among them."""
    return torch.randint(SPIKE_TOKEN + 1, 300, (sequences, length), generator=torch.Generator().manual_seed(seed))


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


# GGUF's names of Llama's tensors
GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.": "",
}


def gguf_name(name):
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def save_gguf(path, model, tokenizer):
    """A tiny Llama as a GGUF file whose matrices are quantised to 8 bits (rows of queries and keys as they are)."""
    config, merges = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, value in model.state_dict().items():
        value, kind = value.numpy(), gguf.GGMLQuantizationType.Q8_0
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(gguf_name(name), gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_datasets_cache(tmp_path_factory):
    """Set before anything imports `datasets`, here or in scripts that tests start."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def own_unfinished_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "folder", lambda: tmp_path / "unfinished")


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def lm(family, tokenizer):
    """A fresh tiny language model of each family."""
    return language_model(tiny_model(family), tokenizer)


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory, tokenizer):
    return save(tmp_path_factory.mktemp("models") / "tiny-gpt2", tiny_model("gpt2"), tokenizer)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory, tokenizer):
    return save(tmp_path_factory.mktemp("models") / "tiny-llama", tiny_model("llama"), tokenizer)


@pytest.fixture(scope="session")
def tiny_series_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "tiny-series"
    for seed, name in enumerate(("step0", "step10", "step100")):
        save(folder / name, tiny_model("gpt2", seed), tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_mixture_folder(tmp_path_factory, tokenizer):
    from tests import mixtures  # which imports this

    return save(tmp_path_factory.mktemp("models") / "tiny-mixture", mixtures.planted().lm.model, tokenizer)


@pytest.fixture(name="undrawn")
def _undrawn(monkeypatch):
    monkeypatch.setattr(figures, "save", undrawn.put_away)


@pytest.fixture(params=architectures.CASES, ids=": ".join, scope="module")
def case(request):
    """One variant of a supported architecture."""
    return cases.case_of(*request.param)


@pytest.fixture
def few_draws(monkeypatch):
    """For what no interval decides."""
    monkeypatch.setattr(stats, "RESAMPLES", 50)


@pytest.fixture(params=["log sum exp", "column"])
def kernel(request, monkeypatch):
    """Both ways in which attention to the first token is read beside scaled_dot_product_attention."""
    if request.param == "column":
        monkeypatch.setattr(attention, "_kernel", lambda *_args: None)
    return request.param


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tokenizer):
    return save_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", tiny_model("llama"), tokenizer)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Text for several dozen windows of 32 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def smollm2():
    return model_models.load(Options(model="smollm2-135m", device="cpu", offline=True))


def fetched(name):
    """A packaged model; the test is skipped where it is not in the cache, unless it is SmolLM2."""
    if name != "smollm2-135m" and not storage.find(packaged.kept(name)).is_file():
        pytest.skip(f"{name} is not fetched: make models")
    return model_models.load(Options(model=name, device="cpu", offline=True))


def logits(lm, ids):
    with torch.inference_mode():
        return lm.model(ids, use_cache=False).logits
