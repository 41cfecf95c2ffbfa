"""Names of architectures stand in lib/model/families.py alone: `make lint` runs this.

    python -m tests.architecture_names

Elsewhere a name would be a special case that no entry of the families tells. GGUF files have names of their own, the
planted models are of a few architectures; `gpt2` is also the hub's name of a model, and git is git.
"""

import ast
import sys
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("lib", "experiments")
THEIR_OWN = ("lib/model/families.py", "lib/model/gguf_formats.py", "lib/model/gguf_tokenizer.py", "lib/planted/")
OTHER_THINGS = {"gpt2", "git"}


def names(source):
    """(line, name) of every string in Python source that is a model type of transformers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in CONFIG_MAPPING_NAMES.keys() - OTHER_THINGS:
            yield node.lineno, node.value


def main():
    found = [
        f"{path}:{line}: '{name}' is an architecture's name; it belongs to lib/model/families.py"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(THEIR_OWN)
        for line, name in names(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(found), end="\n" * bool(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
