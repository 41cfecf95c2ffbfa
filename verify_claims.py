"""What a model's results say to each published claim: it holds here, it does not, or they cannot tell.

    python verify_claims.py results/gpt2

Reads every result JSON below the folder and writes <model>_claims.txt and <model>_claims.json into it, for each model
that has results there, or for --model; where a model has results in several dtypes, <model>_<dtype>_claims of each.
Different weights of one name are an error, as is a result that is not whole. Where there are several results of one
experiment, the one with most tokens counts, then the newest; results under an ablation or at a place of one's own
choice are left aside. For GPT-2's weights our values stand beside the published ones, reference/gpt2_published.json,
and for the hub's models that reference/sink_circuit_published.json and training_published.json name, beside those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import catalogue
from lib.core.evidence import Cell, Conclusion, conclusion
from lib.core.provenance import environment
from lib.report import identity, result_files, tables, upgrades
from lib.run import checkout, cli
from lib.run.errors import cause

if TYPE_CHECKING:  # SciPy takes a second to import, and --help needs none of it
    from lib.claims.judging import AnsweredTest, JudgedClaim

PUBLISHED = checkout.ROOT / "reference" / "gpt2_published.json"
OF_OTHERS = [PUBLISHED.with_name(f"{what}_published.json") for what in ("sink_circuit", "training")]
NEEDED = ("results", "config.model_name", "provenance.model.name", "provenance.time", "provenance.data.seqlen")

GPT2 = "GPT-2"
CHOSEN_PLACE = ("dim", "position", "dims", "mlps_off", "heads_off")


@dataclass(frozen=True)
class File:
    """A result: its path below the folder, what the JSON holds, and the same typed and judged."""

    path: str
    payload: dict[str, Any]
    result: result_files.Result[Any, Any]

    @property
    def size(self) -> tuple[int, str]:
        """Tokens, and when it was measured."""
        data = self.result.provenance["data"]
        return data["windows"] * data["seqlen"], self.result.provenance["time"]


Files = dict[str, list[File]]  # of one model, by experiment, the one that counts first


@dataclass(frozen=True)
class UsedFile:
    path: str
    data: dict[str, Any]
    model: dict[str, Any]
    git: dict[str, Any] | None


@dataclass(frozen=True)
class PublishedFigure:
    """ours: None where there is no result; gap: ours - published."""

    name: str
    published: float
    ours: float | None
    gap: float | None
    source: str


@dataclass(frozen=True)
class Verdicts:
    """files: those that the claims rest on, by experiment. published: of which model there is any, and what."""

    claims: list[JudgedClaim]
    files: dict[str, list[UsedFile]]
    published_of: str | None
    published: list[PublishedFigure]
    conclusion: Conclusion[dict[str, int]]


def find(folder: Path) -> dict[str, Files]:
    """The files of each model, by its name, of all result files below a folder.

    Raises UserError for a result of ours that is not whole.
    """
    from lib.claims.measured import SCRIPTS

    models: dict[str, Files] = {}
    for path in sorted(folder.rglob("*.json")):
        payload = read(path, SCRIPTS)
        if payload is None:
            continue
        try:
            for key in NEEDED:
                result_files.lookup(payload, key)
            result = catalogue.concluded(payload)
        except (LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {cause(error)}"
            raise cli.UserError(f"{path} is not a whole result ({what})") from error
        if is_aside(result):
            continue
        files = models.setdefault(result.config["model_name"], {})
        files.setdefault(result.experiment, []).append(File(str(path.relative_to(folder)), payload, result))
    for files in models.values():
        for found in files.values():
            found.sort(key=lambda file: file.size, reverse=True)
    return models


def is_aside(result: result_files.Result[Any, Any]) -> bool:
    """Whether it is under an ablation, or at a place of one's own choice."""
    return any(result.config.get(name) not in (None, []) for name in CHOSEN_PLACE)


def read(path: Path, experiments: Collection[str]) -> dict[str, Any] | None:
    """The payload of a result of one of the experiments, or None where a file is no such or of another version."""
    if not path.is_file():
        return None
    try:
        payload = result_files.read_json(path)
    except cli.UserError:
        if _begins_as_ours(path):
            raise
        return None
    experiment, version = payload.get("experiment"), payload.get("schema_version")
    if version is None or experiment not in list(experiments):
        return None
    if version not in upgrades.READABLE:
        print(f"left out: {path} has schema version {version}", file=sys.stderr)
        return None
    return result_files.load(path, experiment)


def _begins_as_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b'"schema_version"' in file.read(100)
    except OSError:
        return True


def by_dtype(model_name: str, files: Files, model: str | None = None) -> dict[str | None, Files]:
    """{dtype: files} of one model name's files of `find`; model: what was asked for, as typed.

    Raises UserError if they are of different weights, unless just one of these was called `model` when it ran.
    """
    every = [(experiment, file) for experiment, found in files.items() for file in found]
    told = weights_of([file.result for _experiment, file in every])
    weights: dict[str, list[File]] = {}
    for (_experiment, file), (weights_of_file, _dtype) in zip(every, told, strict=True):
        weights.setdefault(weights_of_file, []).append(file)
    called = [
        model_of
        for model_of, found in weights.items()
        if model in (file.result.provenance["model"]["name"] for file in found)
    ]
    if len(weights) > 1 and len(called) != 1:
        first = [found[0] for found in weights.values()]
        raise cli.UserError(
            f"results of different weights are called {model_name}: {', '.join(file.path for file in first)} (of "
            f"{', '.join(identity.described(file.result.provenance) for file in first)}); give --model as it was typed "
            "for one of them, or a folder that holds only one"
        )
    split: dict[str | None, Files] = {}
    for (experiment, file), (weights_of_file, dtype) in zip(every, told, strict=True):
        if len(weights) == 1 or weights_of_file == called[0]:
            split.setdefault(dtype, {}).setdefault(experiment, []).append(file)
    return split


def weights_of(results: Sequence[result_files.Result[Any, Any]]) -> list[tuple[str, str | None]]:
    """identity.of each of these results of one name; a course of training goes with the only model it may be of."""
    courses = [catalogue.EXPERIMENTS[result.experiment].course for result in results]
    return identity.of_each([result.provenance for result in results], courses)


def _all(files: Files) -> list[File]:
    return [file for found in files.values() for file in found]


def judge(files: Files, model_name: str) -> Verdicts:
    """The Verdicts on one model's files of `find`."""
    from lib.claims import judging
    from lib.claims.every import CLAIMS
    from lib.claims.measured import SCRIPTS, Measured

    measured = Measured({experiment: [file.result for file in found] for experiment, found in files.items()})
    judged = [judging.judge(claim, measured) for claim in CLAIMS]
    published_of, figures = _published(files, model_name)
    counts = {verdict: sum(claim.verdict == verdict for claim in judged) for verdict in judging.VERDICTS}
    return Verdicts(
        claims=judged,
        files={name: [_used(file) for file in files.get(name, [])] for name in SCRIPTS},
        published_of=published_of,
        published=beside_published(files, figures),
        conclusion=conclusion(
            ", ".join(f"{n} {verdict}" for verdict, n in counts.items()),
            "each claim by its own rule; cannot tell: a result is missing, an interval holds a threshold, or "
            "causality made the outcome certain beforehand",
            counts,
        ),
    )


def _used(file: File) -> UsedFile:
    provenance = file.result.provenance
    return UsedFile(file.path, provenance["data"], provenance["model"], provenance["git"])


def _is_gpt2(files: Files, model_name: str) -> bool:
    every = _all(files)
    return all(identity.is_gpt2(file.result.provenance) for file in every) if every else model_name == "gpt2"


def _published(files: Files, model_name: str) -> tuple[str | None, list[dict[str, Any]]]:
    """(of which model figures are published, these); (None, []) of one of which there are none."""
    if _is_gpt2(files, model_name):
        return GPT2, result_files.read_json(PUBLISHED)["figures"]
    hub_ids = {str(file.result.provenance["model"].get("hub_id")).lower() for file in _all(files)}
    models = [model for path in OF_OTHERS for model in result_files.read_json(path)["models"]]
    found = [model for model in models if hub_ids and hub_ids <= {name.lower() for name in model["hub_ids"]}]
    return found[0]["name"] if found else None, [figure for model in found for figure in model["figures"]]


def beside_published(files: Files, figures: Sequence[dict[str, Any]]) -> list[PublishedFigure]:
    """Every published figure beside ours: of one layer or step, if it is of one; of several cells the largest mean."""
    rows = []
    for figure in figures:
        found, path = files.get(figure["experiment"], []), figure["path"]
        if figure["layer"] is not None:
            found = [file for file in found if file.result.results.layer == figure["layer"]]
        if "step" in figure:
            steps = {file.path: [step.step for step in file.result.results.steps] for file in found}
            found = [file for file in found if figure["step"] in steps[file.path]]
            path = path.format(step=steps[found[0].path].index(figure["step"]) if found else None)
        try:
            told = result_files.lookup(found[0].payload, path) if found else None
        except LookupError as error:
            raise cli.UserError(f"{found[0].path} has no {path}: is it of another model?") from error
        ours = max((cell["mean"] for cell in told if cell), default=None) if isinstance(told, list) else told
        gap = None if ours is None else ours - figure["published"]
        rows.append(PublishedFigure(figure["name"], figure["published"], ours, gap, figure["source"]))
    return rows


def summarise(verdicts: Verdicts, model_name: str, command: str) -> str:
    from lib.claims.measured import SCRIPTS

    title = f"Claims about massive activations, by the results of {model_name}"
    no_gpt2 = "Results of this model do not refute the seed study's figures, which are of GPT-2."
    parts = [
        title,
        "=" * len(title),
        f"command  {command}",
        "",
        f"Here: {model_name}, on the texts below. What does not hold here may hold elsewhere.",
        *([] if verdicts.published_of == GPT2 else [no_gpt2]),
        "",
        "Results that count",
    ]
    used = []
    for name, files in verdicts.files.items():
        data = files[0].data if files else None
        described = f"{data['windows']} x {data['seqlen']} tokens of {data['dataset']}" if data else "-"
        used.append([SCRIPTS[name], " ".join(file.path for file in files[:2]) or "missing", described])
    parts += [tables.table(["script", "file", "data"], used)]
    rows = [[claim.row, claim.verdict, claim.claim] for claim in verdicts.claims]
    parts += [tables.table(["row", "verdict", "claim"], rows), "Of each the numbers, the rule, the nearest threshold"]
    for claim in verdicts.claims:
        parts += [f"{claim.row}: {claim.verdict}: {numbers(claim)}", f"    {claim.rule}"]
        if claim.nearest:
            parts.append(f"    nearest threshold: {_threshold(claim.nearest)}")
    if verdicts.published:
        parts += ["", f"Published figures of {verdicts.published_of}", _published_text(verdicts.published)]
    elif model_name == "gpt2":
        why = "these are not known to be its weights (on the hub: gpt2)"
        parts += ["", f"Published figures of GPT-2 are left out: {why}"]
    verdict, rule = verdicts.conclusion.verdict, verdicts.conclusion.rule
    return "\n".join([*parts, "", f"Conclusion: {verdict}", f"Rule: {rule}", ""])


def _published_text(figures: Sequence[PublishedFigure]) -> str:
    rows = [
        [
            figure.name,
            "no result" if figure.ours is None else tables.number(figure.ours),
            tables.number(figure.published),
            tables.number(figure.gap, True),
            "-" if figure.ours is None else tables.percent(figure.published, figure.ours),
            figure.source,
        ]
        for figure in figures
    ]
    compared = sum(figure.ours is not None for figure in figures)
    table = tables.table(["figure", "ours", "published", "gap", "per cent", "source"], rows)
    return f"{compared} of {len(rows)} compared\n{table}"


def numbers(claim: JudgedClaim) -> str:
    """The numbers of a judged claim in one line, behind the reason, if it cannot be told."""
    values = [f"{name} {_text(value)}" for name, value in claim.values.items()]
    return "; ".join([claim.reason, *values] if claim.reason else values)


def _threshold(test: AnsweredTest) -> str:
    if test.threshold is None or test.mean is None:
        measured, asked = test.side, test.wanted
    else:
        measured = _text(Cell(test.mean, test.interval))
        asked = f"{test.wanted} {tables.number(test.threshold)}"
    away = f"{tables.number(test.distance, True)} away" if test.answer is not None else test.side
    return f"{test.what} {measured}, asked: {asked}; {away}"


def _text(value: Cell | str | float | None) -> str:
    if isinstance(value, Cell):
        return tables.told(value)
    return str(value) if isinstance(value, (str, int)) else tables.number(value)


def verify(folder: Path, model_name: str, files: Files, label: str | None = None) -> None:
    """Judge one model's files, print the table, write TXT and JSON into the folder; label: for the names of these."""
    label = label or model_name
    names = {"json": f"{label}_claims.json", "txt": f"{label}_claims.txt"}
    config = {"folder": folder, "model_name": model_name}
    verdicts, origin = judge(files, model_name), environment(0)
    payload = result_files.payload("claims", config, origin, verdicts, names)
    text = summarise(verdicts, model_name, origin["command"])
    result_files.write_json(folder / names["json"], payload)
    result_files.write_text(folder / names["txt"], text)
    print(text)
    for name in names.values():
        print(folder / name)


def main() -> None:
    cli.require_one_process()
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=cli.path, nargs="?", default=Path("results"), help="default: results")
    parser.add_argument("--model", help="short name of the model, as in the file names, or its --model (default: all)")
    args = parser.parse_args()
    result_files.require_folder(args.folder)
    result_files.check_writable(args.folder)
    found = find(args.folder)
    if not found and not args.model:
        raise cli.UserError(f"no results below {args.folder}; name the --model to see what is missing")
    names = [args.model if args.model in found else cli.Options(model=args.model).model_name] if args.model else found
    if found and not found.keys() & set(names):
        raise cli.UserError(
            f"no results of '{args.model}' below {args.folder}; there are some of: {', '.join(sorted(found))}"
        )
    judged = {name: by_dtype(name, found.get(name, {}), args.model) for name in sorted(names)}
    for name, split in judged.items():
        for dtype, files in split.items() or [(None, {})]:
            verify(args.folder, name, files, f"{name}_{dtype}" if len(split) > 1 else name)


if __name__ == "__main__":
    cli.main(main)
