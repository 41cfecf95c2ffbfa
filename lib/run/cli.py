"""The command line: every flag is a field of one frozen dataclass.

Nothing here imports torch, so `--help` and `--replot` answer at once.
"""

import argparse
import hashlib
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from lib.run import command, memory, packages, processes, terminal
from lib.run.errors import UserError, cause

STATES = (".pt", ".pth")  # checkpoints by torch.save
FILES = (".gguf", *STATES)  # that are models of their own
NANOGPT = "ckpt.pt"  # whatever the model, whose name is then its folder's

Value = TypeVar("Value")


def flag(default: Value, help: str, **argparse_options: object) -> Value:
    """A dataclass field that is also a command-line flag.

    default: the value without the flag; its type converts what is typed.
    argparse_options: passed to `add_argument` (`type`, `choices`, `nargs`, `action`, `metavar`, `aliases`).
    """
    return field(default=default, metadata={"help": help, **argparse_options})


def batch_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def path(text: str) -> Path:
    """A path as it is typed, `~` being the home folder."""
    if not text:
        raise UserError("a path is empty")
    return Path(os.path.expanduser(text))


def dpi(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value not in DPI:
        raise UserError(f"--dpi must be from {DPI[0]} to {DPI[-1]}, not {text}")
    return value


def width(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not WIDTHS[0] <= value <= WIDTHS[1]:
        raise UserError(f"--width must be from {WIDTHS[0]:g} to {WIDTHS[1]:g} inches, not {text}")
    return value


WINDOWS = ("dataset", "dataset_config", "split", "text_column", "encoding", "nsamples", "seqlen", "batch_size")
FORMATS = ("png", "svg", "pdf")
DPI = range(20, 1201)
WIDTHS = 2.0, 20.0  # inches
DRAWING = ("format", "dpi", "width")  # fields of Options that change no result
OF_EVERY_SCRIPT = ("dataset", "nsamples", "seqlen", "batch_size")  # the same may be typed for many scripts in a row
INTS: dict[str, object] = {"nargs": "+", "type": int, "metavar": "N"}
FLOATS: dict[str, object] = {"nargs": "+", "type": float, "metavar": "X"}


@dataclass(frozen=True)
class Options:
    """What every script accepts.

    typed: the fields that the command line gave. beside_replot: those that may stand beside --replot.
    """

    typed: ClassVar[frozenset[str]] = frozenset()
    beside_replot: ClassVar[frozenset[str]] = frozenset({"replot", "savedir", "offline", *DRAWING})
    model: str = flag(
        "gpt2", f"hub id, local folder, .gguf file, nanoGPT's ckpt.pt, or packaged (needs no hub): {packages.NAMES}"
    )
    revision: str | None = flag(None, "branch, tag or commit of a hub model")
    tokenizer: str | None = flag(None, "hub id or local folder of the tokenizer, where it is not the model's own")
    trust_remote_code: bool = flag(False, "run the code that a model or a tokenizer brings along", action="store_true")
    dataset: str = flag(
        "wikitext",
        "wikitext, python-docs (needs no network), a hub id, or a file: .txt .md .csv .tsv .json .jsonl .parquet, each "
        "also with .gz",
    )
    dataset_config: str | None = flag(None, "configuration of a hub dataset", aliases=["--config"])
    split: str | None = flag(None, "split of a hub dataset (default: test)")
    text_column: str | None = flag(None, "column that holds the text, of a hub dataset or a table (default: text)")
    encoding: str | None = flag(
        None, "encoding of a file that is not parquet (default: by its byte order mark, or UTF-8)"
    )
    nsamples: int = flag(30, "number of token windows")
    seqlen: int | None = flag(None, "tokens in a window (default: 1024, or the model's position table if shorter)")
    # "auto" until the run has found out how many fit: what measures has an int
    batch_size: int = flag(  # type: ignore[assignment]
        "auto", "windows in one forward pass; auto: as many as fit, on a CPU 1,024 tokens", type=batch_size
    )
    bos: bool | None = flag(
        None,
        "begin each window with the BOS token (default: as the tokenizer does)",
        action=argparse.BooleanOptionalAction,
    )
    seed: int = flag(0, "seed of the choice of windows, of random heads and of the draws for intervals")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = flag("float32", "dtype of the weights and activations", choices=["float32", "bfloat16", "float16"])
    savedir: Path | None = flag(None, "folder for the results (default: results/<model>/<script>)", type=path)
    format: tuple[str, ...] = flag((), "formats of the figures (default: png)", nargs="+", choices=FORMATS)
    dpi: int = flag(110, "dots per inch of the figures, of what svg and pdf hold as pixels, too", type=dpi)
    width: float | None = flag(
        None, "of the figures at most, in inches, as a column of a paper has: text of 6 points or more", type=width
    )
    offline: bool = flag(False, "never ask the Hugging Face hub; use its local cache", action="store_true")
    replot: Path | None = flag(
        None,
        "write TXT and figures of this result JSON anew, judged by the rules of today, without a model",
        type=path,
        metavar="JSON",
    )

    @property
    def model_name(self) -> str:
        """Short name for files: `openai-community/gpt2` and `models/gpt2/` are `gpt2`."""
        path = self._path
        if path.name == NANOGPT:
            path = path.resolve().parent
        here = os.path.exists(path)
        return file_name(path.stem if path.suffix.lower() in FILES else path.resolve().name if here else path.name)

    @property
    def _path(self) -> Path:
        return Path(os.path.expanduser(self.model))

    def idle(self) -> dict[str, str]:
        """{field: why it would do nothing here}; typed, it is refused, or noted if it is OF_EVERY_SCRIPT."""
        if self.model in packages.MODELS or self._path.suffix.lower() in FILES or os.path.isdir(self._path):
            return {"revision": f"'{self.model}' is not on the hub"}
        return {}

    @property
    def formats(self) -> list[str]:
        """Of the figures, each once."""
        return list(dict.fromkeys(self.format or FORMATS[:1]))

    @property
    def output_dir(self) -> Path:
        if self.savedir:
            return self.savedir
        return Path("results") / self.model_name / Path(command.current().script).stem


def file_name(name: str, longest: int = 160) -> str:
    """`name` without control characters, and with its end replaced by a digest where that leaves no room for suffixes
    (most file systems take 255 bytes)."""
    name = "".join("_" if unicodedata.category(c) == "Cc" else c for c in name) or "root"
    whole = os.fsencode(name)
    if len(whole) <= longest:
        return name
    while len(os.fsencode(name)) > longest - 9:
        name = name[:-1]
    return f"{name}-{hashlib.sha256(whole).hexdigest()[:8]}"


@dataclass(frozen=True)
class PlaceOptions(Options):
    """What the scripts accept that follow one place (lib.core.place)."""

    dim: int | None = flag(None, "dim to follow (default: of the largest massive activations)")
    position: int | None = flag(None, "position to follow (default: in each window where |value| in that dim peaks)")


AnyOptions = TypeVar("AnyOptions", bound=Options)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def add_flags(parser: argparse.ArgumentParser, options_class: type[Options], names: Sequence[str]) -> None:
    """These fields of a dataclass of `flag`s; what is not typed is in no namespace."""
    for f in (f for f in fields(options_class) if f.name in names):
        spec = dict(f.metadata)
        spelled = [f"--{f.name}", *spec.pop("aliases", [])]
        if f.default not in (None, False, ()) and f.default is not MISSING and "action" not in spec:
            spec.setdefault("type", type(f.default))
            spec["help"] += f" (default: {f.default})"
        elif "action" not in spec and "type" not in spec:
            spec["type"] = int if "int" in str(f.type) else str
        parser.add_argument(*spelled, dest=f.name, default=argparse.SUPPRESS, **spec)


def parse(options_class: type[AnyOptions], description: str | None, argv: Sequence[str] | None = None) -> AnyOptions:
    """The command line, or `argv`, as an instance of `options_class`, whose fields are `flag`s."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_flags(parser, options_class, [f.name for f in fields(options_class)])
    typed: dict[str, Any] = vars(parser.parse_args(argv))
    typed = {name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()}
    options = options_class(**typed)
    object.__setattr__(options, "typed", frozenset(typed))
    for name in ("model", "dataset", "tokenizer"):
        if getattr(options, name) is not None and not getattr(options, name).strip():
            raise UserError(f"--{name} is empty")
    if options.seed >= 2**63:
        raise UserError(f"--seed must be below {2**63:,}")
    for name, least in (("nsamples", 1), ("batch_size", 1), ("seed", 0), ("n_random", 0)):
        value = getattr(options, name, least)
        if value not in (None, "auto") and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if not options.replot:
        _refuse_idle(options)
    return options


def _refuse_idle(options: Options) -> None:
    idle = {name: why for name, why in options.idle().items() if name in options.typed}
    for name, why in idle.items():
        if name not in OF_EVERY_SCRIPT:
            raise UserError(f"--{name} would do nothing: {why}")
    if idle and processes.rank() == 0:
        print(
            f"note: {' '.join(f'--{name}' for name in idle)} without effect: {next(iter(idle.values()))}",
            file=sys.stderr,
        )


def require_only_replot(options: Options) -> None:
    """Raise UserError if something was typed beside --replot that does nothing there."""
    for name in sorted(options.typed - options.beside_replot):
        raise UserError(f"--{name} would do nothing: --replot draws what {options.replot} holds")


def require_one_process() -> None:
    """For scripts that do not share their work. Raises UserError if there are several processes."""
    if processes.size() > 1:
        raise UserError(
            f"{command.current().script} does not share its work among processes; start it without torchrun"
        )


def main(script: Callable[[], object]) -> None:
    """Run `script()`; user errors become one line on stderr and exit code 2, in all processes where one has one.

    Ctrl-C and SIGTERM end it in one line that says what was written, with exit code 130 and 143. A reader of the output
    that leaves changes nothing: the files are the result.
    """
    terminal.begin()
    memory.keep_freed()
    if "IPython" not in sys.modules:  # a notebook names its own to the commands that it starts, where it may be unknown
        os.environ.pop("MPLBACKEND", None)
    try:
        with terminal.interruptible(), processes.quiet(), processes.failing_together():
            _run(script)
    except (UserError, MemoryError, ModuleNotFoundError, PermissionError) as error:
        line = str(error) if isinstance(error, UserError) else cause(error)
        with processes.quiet():
            print(f"error: {' '.join(line.splitlines())}", file=sys.stderr)
        processes.gather([])  # the first to leave takes the others with it: not before the line is printed
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print(terminal.last_words(number), end="", file=sys.stderr)
        sys.exit(128 + number)


def _run(script: Callable[[], object]) -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the folder in which this is started does not exist ({cause(error)})") from error
    try:
        script()
    except SystemExit as stop:
        if not stop.code:
            terminal.require_printed()
        raise
    terminal.require_printed()
