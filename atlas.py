"""Models side by side: one row a model, whatever lies below the folders.

    python atlas.py results
    python atlas.py results ../more-results --savedir results

Writes atlas.txt, atlas.csv (a row a model, for a spreadsheet), atlas.json, two figures and a page of it all,
atlas.html, into --savedir (default: the first folder). The page links the index.html that study.py or page.py made of a
model. Models are told apart by their weights, not by name; of one that has results in several dtypes that with most
experiments has a row. Runs no model: verdicts are judged from the stored results by the rules of today.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import page
import verify_claims
from lib.core.provenance import environment
from lib.report import result_files
from lib.run import cli

if TYPE_CHECKING:  # SciPy and matplotlib take seconds to import, and --help needs none of it
    from lib.atlas.results import Results, Row
    from lib.atlas.rows import Files

FILES = {"json": "atlas.json", "txt": "atlas.txt", "csv": "atlas.csv", "page": "atlas.html"}


def collect(folders: Iterable[Path]) -> tuple[Results, dict[str, Path]]:
    """The atlas of all results below the folders, and {model: its page} of those that have one.

    Raises UserError for a result of ours that is not whole.
    """
    from lib.atlas import agreement, rows
    from lib.atlas.results import ClaimTogether, Results
    from lib.claims.every import CLAIMS
    from lib.claims.measured import SCRIPTS

    models, pages, left_out = by_weights(folders)
    made = [rows.row(model, files) for model, files in models.items()]
    claims = [
        ClaimTogether(
            claim.row, claim.text, agreement.together({row.model: row.claims[claim.row].verdict for row in made})
        )
        for claim in CLAIMS
    ]
    verdicts = {
        name: agreement.together({row.model: row.verdicts[name] for row in made if name in row.verdicts})
        for name in SCRIPTS
        if any(name in row.verdicts for row in made)
    }
    return Results(made, claims, verdicts, agreement.RULE, left_out), pages


def by_weights(folders: Iterable[Path]) -> tuple[dict[str, Files], dict[str, Path], list[str]]:
    """({model: its results by experiment, the one that counts first}, {model: its page}, what else there is of any)."""
    by_name: dict[str, list[tuple[Path, verify_claims.File]]] = {}
    for folder in folders:
        for name, files in verify_claims.find(folder).items():
            by_name.setdefault(name, []).extend((folder, file) for found in files.values() for file in found)
    found: dict[str, dict[str | None, verify_claims.Files]] = {}
    pages_of: dict[str, Path] = {}  # by weights
    for of_name in by_name.values():
        of_each = verify_claims.weights_of([file.result for _folder, file in of_name])
        for (folder, file), (weights, dtype) in zip(of_name, of_each, strict=True):
            found.setdefault(weights, {}).setdefault(dtype, {}).setdefault(file.result.experiment, []).append(file)
            above = _page_above(folder, file)
            if above is not None:
                pages_of.setdefault(weights, above)
    models: dict[str, Files] = {}
    names: Counter[str] = Counter()
    left_out = []
    pages: dict[str, Path] = {}
    for weights, by_dtype in found.items():
        dtypes = sorted(by_dtype, key=lambda dtype: len(by_dtype[dtype]), reverse=True)
        files = by_dtype[dtypes[0]]
        name = _name(files)
        names[name] += 1
        label = name if names[name] == 1 else f"{name} ({names[name]})"
        left_out += [f"{label} in {dtype}" for dtype in dtypes[1:]]
        if weights in pages_of:
            pages[label] = pages_of[weights]
        models[label] = {
            experiment: [file.result for file in sorted(of_experiment, key=lambda file: file.size, reverse=True)]
            for experiment, of_experiment in files.items()
        }
    return dict(sorted(models.items())), pages, left_out


def _page_above(folder: Path, file: verify_claims.File) -> Path | None:
    """The nearest page in the folders from a result up to `folder`."""
    inside = [folder / parent / page.NAME for parent in Path(file.path).parents]
    return next((path for path in inside if path.is_file()), None)


def _name(files: verify_claims.Files) -> str:
    return next(iter(files.values()))[0].result.config["model_name"]


def table(results: Results) -> str:
    """As CSV: a row a model; of the mechanism, of each script's verdict and of each claim a column."""
    from lib.atlas.text import PROPERTIES

    claims = [claim.row for claim in results.claims]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [*PROPERTIES, *results.verdicts, *(f"claim {row}{end}" for row in claims for end in ("", ", number"))]
    writer.writerow(["model", *heads])
    for row in results.models:
        writer.writerow([row.model, *_cells(row, list(results.verdicts), claims)])
    return out.getvalue()


def _cells(row: Row, verdicts: list[str], claims: list[str]) -> Iterable[Any]:
    from lib.atlas.text import PROPERTIES

    yield from (of(row.mechanism) for of in PROPERTIES.values())
    yield from (row.verdicts.get(name, "") for name in verdicts)
    for name in claims:
        said = row.claims[name]
        yield from (said.verdict, "" if said.number is None else said.number.mean)


def main() -> None:
    cli.require_one_process()
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=cli.path, nargs="*", default=[Path("results")], help="default: results")
    parser.add_argument("--savedir", type=cli.path, help="folder for the atlas (default: the first folder)")
    cli.add_flags(parser, cli.Options, cli.DRAWING)
    args = parser.parse_args()
    drawing = cli.Options(**{name: value for name, value in vars(args).items() if name in cli.DRAWING})
    for folder in args.folders:
        result_files.require_folder(folder)
    savedir = args.savedir or args.folders[0]
    result_files.check_writable(savedir)
    results, pages = collect(args.folders)
    if not results.models:
        raise cli.UserError(f"no results below {', '.join(map(str, args.folders))}")

    from lib.atlas import figures, text
    from lib.atlas import page as atlas_page
    from lib.report.figures import write

    origin = environment(0)
    each = {"claims": figures.claims, "depth": figures.depth}
    drawings = {f"atlas_{name}.{suffix}": draw for name, draw in each.items() for suffix in drawing.formats}
    files = FILES | {"figures": list(drawings)}
    config = {"folders": args.folders, "savedir": savedir}
    result_files.write_json(savedir / FILES["json"], result_files.payload("atlas", config, origin, results, files))
    said = text.summarise(results, origin["command"])
    result_files.write_text(savedir / FILES["txt"], said)
    result_files.write_text(savedir / FILES["csv"], table(results))
    for name, draw in drawings.items():
        write(savedir / name, draw, results, drawing.dpi, drawing.width)
    shown = next((suffix for suffix in ("png", "svg") if suffix in drawing.formats), None)
    drawn = {name: savedir / f"atlas_{name}.{shown}" for name in each} if shown else {}
    result_files.write_text(savedir / FILES["page"], atlas_page.document(results, pages, savedir, drawn))
    print(said)
    for name in (*FILES.values(), *drawings):
        print(savedir / name)


if __name__ == "__main__":
    cli.main(main)
