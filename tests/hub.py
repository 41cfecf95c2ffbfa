"""A Hugging Face hub on this machine: repositories in folders, answered for as the real one does.

Models at /<id>, data sets at /datasets/<id>; the listings at /api/models/<id> and /api/datasets/<id>.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

from lib.run import checkout

BLOCK = 1 << 20
LFS = 1 << 20  # bytes from which a file has a sha256 instead of a git hash


@dataclass
class Repository:
    """revisions: {branch, tag or commit: folder}; `main` must be there. gated: only for whoever asked for access."""

    revisions: dict
    gated: bool = False

    def __post_init__(self):
        self.commits = {}
        for name, folder in self.revisions.items():
            whole = json.dumps([[path, _object_id(folder / path)] for path in files(folder)])
            self.commits[name] = hashlib.sha1(whole.encode()).hexdigest()

    def find(self, revision):
        """(commit, folder), or None."""
        for name, commit in self.commits.items():
            if revision in (name, commit):
                return commit, self.revisions[name]
        return None


@dataclass
class Hub:
    """Serves `repositories`, {"models/<id>" or "datasets/<id>": Repository}, while it is entered.

    moved: {old id: new id}, answered with a redirect. status: what every request is answered with instead, for example
    503. delay: seconds before every answer. requests: paths that were asked for.
    """

    repositories: dict = field(default_factory=dict)
    moved: dict = field(default_factory=dict)
    status: int | None = None
    delay: float = 0
    requests: list = field(default_factory=list)

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exception):
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home):
        """What points the libraries of another process to this hub, with caches of their own."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
        return own | {"HF_HUB_DISABLE_XET": "1"}


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    seconds: float
    out: str
    error: str


def in_order(lines, folder, environment, drawn=False):
    """Run command lines, each beginning with a script's name, in `folder`, one after another in one process; Ended of
    each. Unless `drawn`, files of figures are empty."""
    command = [sys.executable, str(checkout.ROOT / "tests" / "in_order.py"), json.dumps(lines)]
    command += [] if drawn else ["undrawn"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Ended(*of) for of in json.loads(done.stdout.splitlines()[-1])]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


_OBJECTS = {}


def _object_id(path):
    """sha256 of a large file, git's hash of a small one; kept, as a test's repositories hold still."""
    key = path, path.stat().st_mtime_ns
    if key not in _OBJECTS:
        size = path.stat().st_size
        if size < LFS:
            _OBJECTS[key] = hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()
        else:
            with open(path, "rb") as file:
                _OBJECTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _OBJECTS[key]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.respond()

    def respond(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        time.sleep(self.hub.delay)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.hub.status:
            return self.fail(self.hub.status, None, "the hub is not well")
        if path == "/":
            return self.send(200, b"hub")
        api, path = path.startswith("/api/"), path.removeprefix("/api/").strip("/")
        kind = "datasets" if path.startswith("datasets/") else "models"
        path = path.removeprefix(f"{kind}/")
        for old, new in self.hub.moved.items():
            if path == old or path.startswith(f"{old}/"):
                return self.send(307, b"", {"Location": self.path.replace(old, new, 1)})
        for name, repository in self.hub.repositories.items():
            of, name = name.split("/", 1)
            if of == kind and (path == name or path.startswith(f"{name}/")):
                rest = path[len(name) :].strip("/").split("/")
                return (self.answer_api if api else self.answer_file)(name, repository, rest)
        return self.fail(401, "RepoNotFound", "Invalid username or password.")

    def answer_api(self, name, repository, rest):
        if rest == ["refs"]:
            return self.send(200, json.dumps(_refs(repository)).encode(), {"Content-Type": "application/json"})
        what, revision, *inner = [*rest, "", ""][:2] if rest[0] in ("", "revision") else rest
        found = repository.find(revision or "main")
        if found is None:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, folder = found
        if what in ("", "revision"):
            content = {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in files(folder)],
            }
        elif what == "tree":
            below = "/".join(part for part in inner if part)
            content = [entry for entry in _entries(folder) if not below or entry["path"].startswith(f"{below}/")]
            if below and not content:
                return self.fail(404, "EntryNotFound", f"{below} does not exist")
        elif what == "paths-info":
            asked = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(self.body)["paths"]
            content = [entry for entry in _entries(folder) if entry["path"] in asked]
        else:
            return self.fail(404, None, "Not found")
        return self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer_file(self, name, repository, rest):
        if rest[0] != "resolve" or len(rest) < 3:
            return self.fail(404, None, "Not found")
        found = repository.find(rest[1])
        if found is None:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        commit, folder = found
        path = folder / "/".join(rest[2:])
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.is_file():
            return self.fail(404, "EntryNotFound", "Entry not found", headers)
        if repository.gated:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            return self.fail(403, "GatedRepo", message, headers)
        etag, size = f'"{_object_id(path)}"', path.stat().st_size
        headers |= {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(size)}
        return self.send_file(path, size, headers)

    def send_file(self, path, size, headers):
        first, last, status = 0, size - 1, 200
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = (int(start), int(end or last)) if start else (size - int(end), last)
            last, status = min(last, size - 1), 206
            headers |= {"Content-Range": f"bytes {first}-{last}/{size}"}
        self.start(status, last - first + 1, headers)
        if self.command == "HEAD":
            return
        with open(path, "rb") as file:
            file.seek(first)
            left = last - first + 1
            while left > 0:
                block = file.read(min(BLOCK, left))
                self.wfile.write(block)
                left -= len(block)

    def fail(self, status, code, message, headers=None):
        about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return self.send(status, json.dumps({"error": message}).encode(), {**about, **(headers or {})})

    def send(self, status, content, headers=None):
        self.start(status, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def start(self, status, length, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_args):
        pass


def _refs(repository):
    """Branches, and what begins with v as tags."""
    refs = {"branches": [], "tags": [], "converts": []}
    for name, commit in repository.commits.items():
        kind, path = ("tags", "tags") if name.startswith("v") else ("branches", "heads")
        refs[kind].append({"name": name, "ref": f"refs/{path}/{name}", "targetCommit": commit})
    return refs


def _entries(folder):
    """What a tree lists: its folders and files, all below."""
    entries = [
        {"type": "directory", "oid": "0" * 40, "size": 0, "path": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"))
        if path.is_dir()
    ]
    for path in files(folder):
        size, oid = (folder / path).stat().st_size, _object_id(folder / path)
        lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if size >= LFS else {}
        entries.append({"type": "file", "oid": oid[:40], "size": size, "path": path, **lfs})
    return entries


def wikitext(folder, text):
    """Write the repository of `Salesforce/wikitext` as the hub has it, with one configuration, `text` in each split."""
    import pyarrow
    from pyarrow import parquet

    config, rows = "wikitext-2-raw-v1", wikitext_rows(text)
    (folder / config).mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, of in {"test": rows, "train": rows[:100], "validation": rows[:50]}.items():
        parquet.write_table(pyarrow.table({"text": of}), folder / config / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# Dataset Card", ""]))
    return folder


def wikitext_rows(text):
    """Rows as wikitext has them: ` = Heading = `, empty rows, paragraphs that end in a line break."""
    rows = []
    for i, paragraph in enumerate(part for part in text.split("\n\n") if part.strip()):
        if i % 10 == 0:
            rows += ["", f" = Part {i // 10} = \n", ""]
        rows.append(f" {' '.join(paragraph.split())} \n")
    return [*rows, ""]


def byte_level_tokenizer(folder, text, vocabulary):
    """Write GPT-2's tokenizer files with merges of `text`, `vocabulary` entries; the last is <|endoftext|>."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    end = "<|endoftext|>"
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=vocabulary - 1, initial_alphabet=alphabet, show_progress=False),
    )
    described = json.loads(trained.to_str())["model"]
    vocab, merges = described["vocab"], [tuple(pair) for pair in described["merges"]]
    vocab[end] = vocabulary - 1
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.GPT2TokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=1024
    )
    wrapped.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')  # no more than GPT-2's own says
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merged = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(merged) + "\n", encoding="utf-8")
    return wrapped


def gpt2(folder, text, seed=0):
    """Write a repository with GPT-2 small's files, layers, heads and dim 447, and less of all that only costs time:
    random weights in float16, and one neuron.

    Where dim 447 of the normed residual stream stands out, as position 0's embedding makes it, that neuron of the first
    MLP writes a massive activation there, and its twin in the last MLP takes most of it away.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tokenizer = byte_level_tokenizer(folder, text, vocabulary=500)
    end = tokenizer.eos_token_id
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=38 * 12, n_inner=64, bos_token_id=end, eos_token_id=end
    )
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, like in model.named_parameters():
        if like.ndim == 1:
            weights[name] = torch.full(like.shape, float(name.endswith("weight")))
        else:
            weights[name] = 0.02 * torch.randn(like.shape, generator=generator)
    massive = 447
    weights["transformer.wpe.weight"][0, massive] = 20
    for layer, write in ((0, 20.0), (config.n_layer - 1, -17.0)):
        mlp = f"transformer.h.{layer}.mlp"
        weights[f"{mlp}.c_fc.weight"][:, 0] = 0
        weights[f"{mlp}.c_fc.weight"][massive, 0] = 5
        weights[f"{mlp}.c_fc.bias"][0] = -15
        weights[f"{mlp}.c_proj.weight"][0, massive] = write
    save_file({name: of.half() for name, of in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    transformers.GenerationConfig(bos_token_id=end, eos_token_id=end).save_pretrained(folder)
    return folder
