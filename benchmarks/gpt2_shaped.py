"""Save a model of GPT-2 small's shape with random weights, and SmolLM2's tokenizer, unless the folder exists.

    python -m benchmarks.gpt2_shaped results/bench/gpt2-small-shaped

For times and memory only: what it computes means nothing.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

from lib.model import models
from lib.run import cli

SEED = 0


def main(folder):
    if folder.exists():
        return
    torch.manual_seed(SEED)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    tokenizer = models.load(cli.Options(model="smollm2-135m", device="cpu")).tokenizer
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished:
        ready = Path(unfinished) / "model"
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        ready.rename(folder)


if __name__ == "__main__":
    cli.main(lambda: main(Path(sys.argv[1])))
