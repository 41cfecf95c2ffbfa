"""Train a small GPT-2 and a small Llama from scratch, and keep checkpoints along the way: a course of training.

    python -m training.small
    python -m training.small --models small-gpt2 --steps 2000

The text are the sources of Python's standard library; every 25th file is held out. Checkpoints, each a model of its
own with its tokenizer, are folders step0, step10, step15, ... below trained/small-gpt2 and trained/small-llama in the
user's cache, beside heldout.jsonl; then

    python exp14_training.py --model ~/.cache/massive-activations/trained/small-gpt2 \\
        --dataset ~/.cache/massive-activations/trained/heldout.jsonl

What is finished is left alone, and what was interrupted goes on with the batches that it would have had.

Every window begins with BOS, which the tokenizer adds by itself: the first token is the same in training and wherever
it is measured, so that what it carries is learnt in every window. AdamW at a high, constant learning rate (a step is
the same step in a longer course) with weight decay: where sinks come early (Gu et al. 2025, arXiv 2410.10781).
"""

import argparse
import hashlib
import json
import platform
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from lib.run import atomic, cli, storage

BOS, BOS_TEXT = 0, "<s>"
HELD_OUT = 25  # of so many files one


@dataclass(frozen=True)
class Settings:
    """How both are trained. learning_rate: after `warm_up` steps; weight_decay: of matrices. batch_size: in windows of
    `seqlen` tokens. clip: the largest norm of the gradient."""

    vocabulary: int = 2048
    layers: int = 6
    heads: int = 4
    hidden: int = 128
    seqlen: int = 128
    batch_size: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0


SETTINGS = Settings()


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=SETTINGS.vocabulary,
        n_layer=SETTINGS.layers,
        n_head=SETTINGS.heads,
        n_embd=SETTINGS.hidden,
        n_positions=SETTINGS.seqlen,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=BOS,
        eos_token_id=BOS,
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=SETTINGS.vocabulary,
        num_hidden_layers=SETTINGS.layers,
        num_attention_heads=SETTINGS.heads,
        hidden_size=SETTINGS.hidden,
        intermediate_size=8 * SETTINGS.hidden // 3,  # as many weights as GPT-2's MLP
        max_position_embeddings=SETTINGS.seqlen,
        bos_token_id=BOS,
        eos_token_id=BOS,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"small-gpt2": gpt2, "small-llama": llama}


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS], help="default: both")
    parser.add_argument("--steps", type=int, default=10_000, help="optimiser steps (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=28.0, help="of each model, after which it stops (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.steps < 1 or options.minutes <= 0:
        raise cli.UserError("--steps must be at least 1, --minutes above 0")
    folder = storage.lasting() / "trained"
    folder.mkdir(exist_ok=True)
    sources = standard_library()
    held_out, text = sources[::HELD_OUT], [source for i, source in enumerate(sources) if i % HELD_OUT]
    with atomic.complete_file(folder / "heldout.jsonl") as temporary:
        Path(temporary).write_text("".join(f"{json.dumps({'text': source})}\n" for source in held_out))
    tokenizer = trained_tokenizer(text)
    tokens = ids_of(tokenizer, text)
    for name in options.models:
        course = Course(folder / name, tokenizer, tokens)
        course.train(options.steps, 60 * options.minutes)
        print(course.folder)


def standard_library() -> list[str]:
    """The sources of the running Python, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    installed = {"site-packages", "dist-packages"}
    paths = sorted(path for path in root.rglob("*.py") if not installed & set(path.relative_to(root).parts))
    return [source for path in paths if (source := path.read_text(encoding="utf-8", errors="replace")).strip()]


def trained_tokenizer(text: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level pairs of the text; BOS is put before every text."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SETTINGS.vocabulary,
        special_tokens=[BOS_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs.train_from_iterator(text, trainer)
    pairs.post_processor = processors.TemplateProcessing(single=f"{BOS_TEXT} $A", special_tokens=[(BOS_TEXT, BOS)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token=BOS_TEXT, eos_token=BOS_TEXT)


def ids_of(tokenizer: transformers.PreTrainedTokenizerFast, text: list[str]) -> np.ndarray:
    """(n,) ids of all texts in a row, without BOS."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(text, add_special_tokens=False)
    return np.concatenate([np.array(one.ids, dtype=np.uint16) for one in encoded])


def kept_steps(last: int) -> Iterator[int]:
    """0, 10, 15, 20, 30, 50, 70, 100, 150, ... up to `last`, which is the end."""
    yield 0
    decade = 10
    while True:
        for factor in (1, 1.5, 2, 3, 5, 7):
            if factor * decade >= last:
                yield last
                return
            yield round(factor * decade)
        decade *= 10


class Course:
    """One model's training. folder: gets the checkpoints, what they came of (training.json) and the optimiser's state
    after the last of them (optimizer.pt)."""

    def __init__(self, folder: Path, tokenizer: transformers.PreTrainedTokenizerFast, tokens: np.ndarray) -> None:
        """tokens: (n,) ids of the text. Raises UserError if the folder is of another text or of other settings."""
        self.folder, self.tokenizer, self.tokens = folder, tokenizer, tokens
        self.log: list[dict[str, float]] = []
        folder.mkdir(exist_ok=True)
        self.origin = {
            "settings": json.loads(json.dumps(asdict(SETTINGS))),
            "text": f"standard library of Python {platform.python_version()}, {len(tokens):,} tokens",
            "token_ids_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        }
        if (self.folder / "training.json").is_file():
            told = json.loads((self.folder / "training.json").read_text())
            self.log = told.pop("log")
            if {key: told[key] for key in self.origin} != self.origin:
                raise cli.UserError(f"{folder} was trained on another text or otherwise; remove it to train anew")

    def train(self, steps: int, seconds: float) -> None:
        """Up to so many steps, or until so many seconds have passed."""
        if (self.folder / f"step{steps}").is_dir():
            return
        begun = time.monotonic()
        torch.manual_seed(SETTINGS.seed)
        model = MODELS[self.folder.name]().train()
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        others = [weight for weight in model.parameters() if weight.ndim < 2]
        groups = [{"params": matrices, "weight_decay": SETTINGS.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=SETTINGS.learning_rate, betas=SETTINGS.betas)
        done = self._resume(model, optimizer)
        kept = {*kept_steps(steps)}
        losses: list[float] = []
        with tqdm(total=steps, initial=done, desc=self.folder.name, unit="step", disable=None) as progress:
            if done == 0:
                self._keep(model, optimizer, 0, losses, begun)
            for step in range(done + 1, steps + 1):
                losses.append(self._step(model, optimizer, step))
                progress.update()
                late = time.monotonic() - begun > seconds
                if step in kept or late:
                    progress.set_postfix(loss=np.mean(losses))
                    self._keep(model, optimizer, step, losses, begun)
                    losses = []
                if late:
                    return

    def _step(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
        """One step; the batch is the same whenever it is made. Gives the loss, in nats a token."""
        rng = np.random.default_rng([SETTINGS.seed, step])
        begins = rng.integers(len(self.tokens) - SETTINGS.seqlen, size=SETTINGS.batch_size)
        windows = self.tokens[begins[:, None] + np.arange(SETTINGS.seqlen - 1)].astype(np.int64)
        ids = torch.from_numpy(np.pad(windows, ((0, 0), (1, 0)), constant_values=BOS))
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS.learning_rate * min(1, step / SETTINGS.warm_up)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def _keep(
        self,
        model: transformers.PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        step: int,
        losses: list[float],
        begun: float,
    ) -> None:
        """The checkpoint first: an optimiser's state without one could not be gone on from."""
        mean = {"loss": float(np.mean(losses))} if losses else {}
        self.log.append({"step": step, **mean, "seconds": round(time.monotonic() - begun, 1)})
        path = self.folder / f"step{step}"
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=atomic.UNFINISHED) as unfinished:
            ready = Path(unfinished) / "model"
            model.save_pretrained(ready)
            self.tokenizer.save_pretrained(ready)
            shutil.rmtree(path, ignore_errors=True)
            ready.rename(path)
        with atomic.complete_file(self.folder / "optimizer.pt") as temporary:
            torch.save({"step": step, "optimizer": optimizer.state_dict()}, temporary)
        made = self.origin | {"torch": torch.__version__, "threads": torch.get_num_threads(), "log": self.log}
        with atomic.complete_file(self.folder / "training.json") as temporary:
            Path(temporary).write_text(json.dumps(made, indent=1) + "\n")

    def _resume(self, model: transformers.PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
        """Make both what they were after the last checkpoint; gives its step, 0 where there is none."""
        atomic.remove_leftovers(self.folder)
        if not (self.folder / "optimizer.pt").is_file():
            return 0
        state: dict[str, Any] = torch.load(self.folder / "optimizer.pt", weights_only=True)
        kept = type(model).from_pretrained(self.folder / f"step{state['step']}", dtype=torch.float32)
        model.load_state_dict(kept.state_dict())
        optimizer.load_state_dict(state["optimizer"])
        self.log = [row for row in self.log if row["step"] <= state["step"]]
        return int(state["step"])


if __name__ == "__main__":
    cli.main(main)
