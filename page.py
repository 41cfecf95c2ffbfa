"""Everything that a folder of results says, on one page: verdicts in words, figures to turn and hover, tables to sort.

    python page.py results/gpt2
    python page.py results/gpt2 --language zh

Reads every result JSON below the folder, judges it by the rules of today, and writes index.html into the folder, one
file that needs no network and no other file. A folder may hold the results of one script or of a whole study, of one
model or of several. Figures are those that lie beside their JSON; what is not there is left out. In Chinese it is
index_zh.html: headings, questions and sentences are, what results say themselves stays as it was stored.
"""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import verify_claims
from lib import catalogue
from lib.experiment import Experiment, folder_of, of_file
from lib.page.words import ENGLISH, LANGUAGES, Words
from lib.report import result_files
from lib.run import cli

if TYPE_CHECKING:
    from lib.page.document import Subject
    from lib.page.sections import Shown

NAME = ENGLISH.file
NEEDED = (*verify_claims.NEEDED, "provenance.data.windows", "provenance.data.dataset", "provenance.model.type")
Identity = tuple[str, tuple[str, str | None]]  # the model's short name, its weights and dtype


def write(folder: Path, words: Words = ENGLISH) -> Path:
    """Make the page of a folder; gives its path. Raises UserError if there are no results, or one that is not whole."""
    from lib.page.document import document

    check_writable(folder, words)
    results = find(folder)
    if not results:
        raise cli.UserError(f"no results below {folder}")
    files = verify_claims.find(folder)
    called = _told_apart(results)
    subjects = [
        _subject(model[0], called[model], shown, files.get(model[0], {}), words, key=f"model-{number}")
        for number, (model, shown) in enumerate(results.items(), 1)
    ]
    path = folder / words.file
    result_files.write_text(path, document(subjects, words))
    return path


def check_writable(folder: Path, words: Words = ENGLISH) -> None:
    """Raise UserError if no page can be written into `folder`, which need not exist yet, or another lies there."""
    result_files.check_writable(folder, [words.file])
    path = folder / words.file
    if path.is_file() and b"page.py" not in path.read_bytes():
        raise cli.UserError(f"{path} is no page of ours, and stays as it is; move it, or name another folder")


def _told_apart(models: Iterable[Identity]) -> dict[Identity, str]:
    """What each is called: by its name, where several have that with its dtype, and weights of one dtype by number."""
    every = [*models]
    names = Counter(name for name, _of in every)
    called: dict[Identity, str] = {}
    times: Counter[str] = Counter()
    for name, of in every:
        label = f"{name} ({of[1]})" if names[name] > 1 else name
        times[label] += 1
        called[name, of] = label if times[label] == 1 else f"{label} ({times[label]})"
    return called


def find(folder: Path) -> dict[Identity, list[Shown]]:
    """The results of each model below a folder, in the order of the catalogue."""
    from lib.page.sections import Shown

    order = list(catalogue.EXPERIMENTS)
    found = [(path, payload) for path in sorted(folder.rglob("*.json")) if (payload := verify_claims.read(path, order))]
    by_name: dict[str, list[Shown]] = {}
    for number, (path, payload) in enumerate(found, 1):
        with of_file(path):
            for name in NEEDED:
                result_files.lookup(payload, name)
            result = catalogue.concluded(payload)
            shown = Shown(
                experiment=experiment_of(result.experiment),
                result=result,
                path=path,
                folder=folder_of(path, result.files["json"]),
                below=str(path.relative_to(folder)),
                key=f"{result.experiment}-{number}",
            )
        by_name.setdefault(result.config["model_name"], []).append(shown)
    models: dict[Identity, list[Shown]] = {}
    for name, of_name in by_name.items():
        of_each = verify_claims.weights_of([shown.result for shown in of_name])
        for shown, of in zip(of_name, of_each, strict=True):
            models.setdefault((name, of), []).append(shown)
    for shown_of in models.values():
        shown_of.sort(key=lambda shown: (order.index(shown.result.experiment), _is_aside(shown), -_tokens(shown)))
    return models


def sentences(results: list[Shown], words: Words = ENGLISH) -> list[str]:
    """What matters most of one model; not of results under an ablation or at a place of one's own choice."""
    from lib.page import findings

    return findings.sentences((shown.result for shown in results if not _is_aside(shown)), words)


def _is_aside(shown: Shown) -> bool:
    return verify_claims.is_aside(shown.result)


def _tokens(shown: Shown) -> int:
    data = shown.result.provenance["data"]
    return data["windows"] * data["seqlen"]


def experiment_of(name: str) -> Experiment:
    """The Experiment of its script that is called so in the JSON."""
    script = importlib.import_module(catalogue.EXPERIMENTS[name].command.split()[0].removesuffix(".py"))
    return next(value for value in vars(script).values() if isinstance(value, Experiment) and value.name == name)


def _subject(
    name: str, called: str, results: list[Shown], files: verify_claims.Files, words: Words, key: str
) -> Subject:
    from lib.page.document import NumberedClaim, Subject

    below = {shown.below for shown in results}
    own = {experiment: kept for experiment, found in files.items() if (kept := [f for f in found if f.path in below])}
    verdicts = verify_claims.judge(own, name)
    return Subject(
        name=called,
        said=sentences(results, words),
        results=results,
        claims=[NumberedClaim(claim, verify_claims.numbers(claim)) for claim in verdicts.claims],
        refutes=verdicts.published_of == verify_claims.GPT2,
        key=key,
    )


def main() -> None:
    cli.require_one_process()
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=cli.path, help="folder of results, as results/gpt2")
    parser.add_argument("--language", choices=LANGUAGES, default=ENGLISH.language, help="of the page (default: en)")
    args: Any = parser.parse_args()
    result_files.require_folder(args.folder)
    print(write(args.folder, LANGUAGES[args.language]))


if __name__ == "__main__":
    cli.main(main)
