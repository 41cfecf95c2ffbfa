"""llama.cpp as a witness: the tokens that it gives for a GGUF file, and its next-token probabilities.

It reads the file itself and shares no code with us. `make test-peers` runs this.
"""

import json
import urllib.request
from pydoc_data.topics import topics

import gguf
import pytest
import torch

from lib.model import gguf_tokenizer, packaged
from lib.run import packages
from tests.conftest import fetched, make_tokenizer, save_gguf, tiny_model
from tests.model.test_gguf import metadata, rewritten

pytestmark = pytest.mark.peer
PROSE = "\n\n".join(topics[name] for name in sorted(topics))
TEXTS = [
    "x  5",
    "  leading, trailing  ",
    "I'M you'LL 1234567 0.5\r\n\r\n\t x",
    "naïve ﬁ Å 日本語、中文 🙂👩‍👩‍👧 नमस्ते",
    "f(x)=_y_[3]//2 $x^2$ <b>",
    *(PROSE[start : start + 200] for start in range(0, 400_000, 20_011)),
]


class LlamaCpp:
    def __init__(self, path):
        import xllamacpp  # only .venv-peers has it

        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx, parameters.warmup = str(path), 512, False
        self.server = xllamacpp.Server(parameters)

    def post(self, path, body):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), headers)
        return json.loads(urllib.request.urlopen(request).read())

    def tokens(self, text):
        return self.post("/tokenize", {"content": text, "parse_special": False})["tokens"]

    def log_probabilities(self, ids):
        """{token: log probability} of the likeliest next tokens."""
        answer = self.post("/completion", {"prompt": ids, "n_predict": 1, "n_probs": 5, "temperature": 0})
        return {of["id"]: of["logprob"] for of in answer["completion_probabilities"][0]["top_logprobs"]}


def ours(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("pre", gguf_tokenizer.SPLITS)
def test_tokens_of_every_pre_tokenizer(pre, tmp_path):
    path = save_gguf(tmp_path / "m.gguf", tiny_model("llama", vocab_size=300), make_tokenizer())
    kinds = [gguf_tokenizer.CONTROL] + [gguf_tokenizer.NORMAL] * 299
    path = rewritten(path, tmp_path / "n.gguf", {"tokenizer.ggml.pre": pre, "tokenizer.ggml.token_type": kinds})
    witness, tokenizer = LlamaCpp(path), gguf_tokenizer.build(metadata(path))
    for text in TEXTS:
        assert ours(tokenizer, text) == witness.tokens(text), text


@pytest.mark.real
@pytest.mark.parametrize("name", packages.MODELS)
def test_packaged_models(name):
    """Activations are quantised in llama.cpp, so that its probabilities are close, not the same."""
    lm, witness = fetched(name), LlamaCpp(packaged.gguf(name))
    for text in TEXTS:
        assert ours(lm.tokenizer, text) == witness.tokens(text), text
    for n in (5, 50, 300):
        ids = (lm.tokenizer("")["input_ids"] + ours(lm.tokenizer, PROSE))[:n]  # with BOS where it is trained with it
        with torch.inference_mode():
            own = lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        for token, theirs in witness.log_probabilities(ids).items():
            assert own[token].item() == pytest.approx(theirs, abs=0.5)


def test_kinds_of_tokens_are_those_of_the_format():
    names = ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")
    assert [getattr(gguf_tokenizer, name) for name in names] == [getattr(gguf.TokenType, name).value for name in names]
