"""A GGUF file as a folder that transformers loads: every tensor, every number of the metadata, or a refusal by name."""

import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import torch
import transformers

from lib.model import converted, gguf_formats, gguf_tokenizer
from lib.run.errors import UserError, cause, listed


def parts(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to: itself, or those it was split into.

    Raises UserError if some of these are absent.
    """
    split = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", path.stem)
    if not split:
        return [path]
    stem, _number, count = split.groups()
    every = [path.with_name(f"{stem}-{i:05d}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    absent = [part.name for part in every if not part.is_file()]
    if absent:
        raise UserError(f"'{path}' is one part of {len(every)}; absent: {', '.join(absent[:3])}")
    return every


def convert(
    files: Sequence[Path],
    folder: Path,
    needs_tokenizer: bool,
    require_room: Callable[[str, transformers.PreTrainedConfig, int], None],
) -> None:
    """Write the configuration, the weights (dequantised to float32) and the tokenizer of `parts` into `folder`.

    require_room: given the bytes of the files, raises UserError for a model that is larger than that.

    Raises UserError: a file that is cut short, an architecture, metadata, tensors or a tokenizer not understood.
    """
    name = files[0]
    for file in files:
        _require_whole_header(file)
    try:
        readers = [gguf.GGUFReader(file) for file in files]
        metadata = {key: field.contents() for key, field in readers[0].fields.items()}
        tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        if len(tensors) < sum(len(reader.tensors) for reader in readers):
            raise UserError("its parts have the same tensor more than once")
        if metadata.get("split.count", 1) > len(files):
            raise UserError(
                f"it is part {metadata['split.no'] + 1} of {metadata['split.count']}, and not named as such"
            )
        config = gguf_formats.configuration(metadata, tensors)
        require_room(str(name), config, sum(file.stat().st_size for file in files))
        weights = _weights(config, metadata["general.architecture"], tensors)
        tokenizer = gguf_tokenizer.build(metadata) if needs_tokenizer else None
    except UserError as error:
        raise UserError(f"cannot load '{name}': {error}") from error
    except Exception as error:
        raise UserError(f"cannot load '{name}': {cause(error)}") from error
    converted.save(folder, config, weights, tokenizer)


def _weights(
    config: transformers.PreTrainedConfig, architecture: str, tensors: Mapping[str, gguf.ReaderTensor]
) -> dict[str, torch.Tensor]:
    """In float32, by their names in transformers. Raises UserError unless file and model have each other's tensors."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    ends = (".weight", ".bias")
    source = {
        name: names.get_name(name, ends) or names.get_name(name.removeprefix("transformer."), ends) for name in shapes
    }
    absent = [stored or name for name, stored in source.items() if stored not in tensors]
    if absent:
        raise UserError(f"it has no tensor {listed(absent)}")
    unused = tensors.keys() - set(source.values()) - {"rope_freqs.weight"}
    if unused:
        raise UserError(f"the model of its metadata has no place for its tensor {listed(sorted(unused))}")
    weights = {}
    for name, stored in source.items():
        tensor = tensors[stored]  # type: ignore[index]  # those without a name are refused above
        value = gguf_formats.FORMATS[architecture].undo(name, gguf_formats.dequantised(tensor), config).contiguous()
        if value.shape != shapes[name]:
            raise UserError(f"its {stored} is {tuple(value.shape)}, its metadata says {shapes[name]}")
        weights[name] = value
    return weights


def _require_whole_header(path: Path) -> None:
    """Raise UserError if a length in a GGUF file's metadata goes beyond the file: its reader would fill the memory.

    Format: ggml's docs/gguf.md.
    """
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
    string, array = 8, 9
    end = path.stat().st_size

    def skip(n: int) -> None:
        if file.tell() + n > end:
            raise ValueError("the file ends within its metadata")
        file.seek(n, os.SEEK_CUR)

    def number(form: str) -> int:
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def skip_value(kind: int) -> None:
        if kind == string:
            skip(number("<Q"))
        elif kind == array:
            kind_of_items, n = number("<I"), number("<Q")
            if kind_of_items in sizes:
                skip(n * sizes[kind_of_items])
            else:
                for _ in range(n):
                    skip_value(kind_of_items)
        elif kind in sizes:
            skip(sizes[kind])
        else:
            raise ValueError(f"no such type: {kind}")

    with open(path, "rb") as file:
        try:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            skip(struct.calcsize("<I"))  # version
            n_tensors = number("<Q")
            for _ in range(number("<Q")):
                skip(number("<Q"))
                skip_value(number("<I"))
            needed = 0
            for _ in range(n_tensors):
                skip(number("<Q"))
                elements = math.prod(number("<Q") for _ in range(number("<I")))
                block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number("<I"))]
                needed = max(needed, number("<Q") + elements // block * size)
            if file.tell() + needed > end:
                raise ValueError(f"the file is cut short: it has {end:,} bytes, its tensors end after {needed:,} more")
        except (ValueError, KeyError, struct.error, RecursionError) as error:
            raise UserError(f"cannot load '{path}': {cause(error)}") from error
