"""What a model's results say to each claim of the seed study: it holds here, it does not, or they cannot tell.

    python verify_claims.py results/gpt2

Reads every result JSON below the folder and writes <model>_claims.txt and <model>_claims.json into it, for each model
that has results there, or for --model; where a model has results in several dtypes, <model>_<dtype>_claims of each.
Different weights of one name are an error, as is a result that is not whole. Where there are several results of one
experiment, the one with most tokens counts, then the newest; results under an ablation or at a place of one's own
choice are left aside. For GPT-2's weights our values stand beside the published ones, reference/gpt2_published.json.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import catalogue
from lib.core.provenance import environment
from lib.report import identity, result_files, tables
from lib.run import checkout, cli
from lib.run.errors import cause

PUBLISHED = checkout.ROOT / "reference" / "gpt2_published.json"
NEEDED = ("results", "config.model_name", "provenance.model.name", "provenance.time", "provenance.data.seqlen")
Files = dict[str, list[dict[str, Any]]]  # of one model: the payloads of each experiment, the one that counts first
CHOSEN_PLACE = ("dim", "position", "dims", "mlps_off", "heads_off")


@dataclass(frozen=True)
class Verdicts:
    """claims: as lib.claims.judging.judge gives them. files: {experiment: the results they rest on}. published: for
    gpt2, {name, published, ours (None: no result), gap (ours - published), source}; otherwise empty."""

    claims: list[dict[str, Any]]
    files: Files
    published: list[dict[str, Any]]
    conclusion: dict[str, Any]


def find(folder: Path) -> dict[str, Files]:
    """The files of each model, by its name, of all result files below a folder.

    A payload gets the key `path`, below the folder. Raises UserError for a result of ours that is not whole.
    """
    found = {}
    for path in sorted(folder.rglob("*.json")):
        payload = _read(path) if path.is_file() else None
        if payload is None:
            continue
        try:
            for key in NEEDED:
                result_files.lookup(payload, key)
            payload["results"] = catalogue.judged(payload["experiment"], payload["results"])
        except (LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {cause(error)}"
            raise cli.UserError(f"{path} is not a whole result ({what})") from error
        if any(payload["config"].get(name) not in (None, []) for name in CHOSEN_PLACE):
            continue
        of = found.setdefault(payload["config"]["model_name"], {})
        of.setdefault(payload["experiment"], []).append(payload | {"path": str(path.relative_to(folder))})
    for of in found.values():
        for payloads in of.values():
            payloads.sort(key=_counts, reverse=True)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """The payload of an experiment's result, or None where a file is none of ours or of another version."""
    from lib.claims.results import SCRIPTS

    try:
        payload = result_files.read_json(path)
    except cli.UserError:
        if _begins_as_ours(path):
            raise
        return None
    experiment, version = payload.get("experiment"), payload.get("schema_version")
    if version is None or experiment not in list(SCRIPTS):
        return None
    if version != result_files.SCHEMA_VERSION:
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
    every = [payload for payloads in files.values() for payload in payloads]
    weights = {}
    for payload in every:
        weights.setdefault(identity.of(payload["provenance"])[0], []).append(payload)
    called = [of for of, payloads in weights.items() if model in (p["provenance"]["model"]["name"] for p in payloads)]
    if len(weights) > 1 and len(called) != 1:
        first = [of[0] for of in weights.values()]
        raise cli.UserError(
            f"results of different weights are called {model_name}: {', '.join(of['path'] for of in first)} (of "
            f"{', '.join(identity.described(of['provenance']) for of in first)}); give --model as it was typed for one "
            "of them, or a folder that holds only one"
        )
    split = {}
    for experiment, payloads in files.items():
        for payload in payloads:
            weights_of, dtype = identity.of(payload["provenance"])
            if len(weights) == 1 or weights_of == called[0]:
                split.setdefault(dtype, {}).setdefault(experiment, []).append(payload)
    return split


def _counts(payload: dict[str, Any]) -> tuple[int, str]:
    data = payload["provenance"]["data"]
    return data["windows"] * data["seqlen"], payload["provenance"]["time"]


def judge(files: Files, model_name: str) -> Verdicts:
    """The Verdicts on one model's files of `find`."""
    from lib.claims import judging
    from lib.claims.every import CLAIMS
    from lib.claims.results import SCRIPTS, Results

    results = Results(files)
    judged = [judging.judge(claim, results) for claim in CLAIMS]
    counts = {verdict: sum(of["verdict"] == verdict for of in judged) for verdict in judging.VERDICTS}
    used = {name: [_described(payload) for payload in files.get(name, [])] for name in SCRIPTS}
    return Verdicts(
        claims=judged,
        files=used,
        published=beside_published(files) if _is_gpt2(files, model_name) else [],
        conclusion={
            "verdict": ", ".join(f"{n} {verdict}" for verdict, n in counts.items()),
            "rule": "each claim by its own rule; cannot tell: a result is missing, an interval holds a threshold, or "
            "causality made the outcome certain beforehand",
            "values": counts,
        },
    )


def _described(payload: dict[str, Any]) -> dict[str, Any]:
    provenance = payload["provenance"]
    return {"path": payload["path"]} | {key: provenance[key] for key in ("data", "model", "git")}


def _is_gpt2(files: Files, model_name: str) -> bool:
    every = [payload for payloads in files.values() for payload in payloads]
    return all(identity.is_gpt2(p["provenance"]) for p in every) if every else model_name == "gpt2"


def beside_published(files: Files) -> list[dict[str, Any]]:
    """Every published figure of GPT-2 beside ours."""
    rows = []
    for figure in result_files.read_json(PUBLISHED)["figures"]:
        payloads = files.get(figure["experiment"], [])
        if figure["layer"] is not None:
            payloads = [p for p in payloads if p["results"]["layer"] == figure["layer"]]
        try:
            ours = result_files.lookup(payloads[0], figure["path"]) if payloads else None
        except LookupError as error:
            raise cli.UserError(f"{payloads[0]['path']} has no {figure['path']}: is it of GPT-2 small?") from error
        gap = None if ours is None else ours - figure["published"]
        rows.append({"name": figure["name"], "published": figure["published"], "ours": ours, "gap": gap})
        rows[-1]["source"] = figure["source"]
    return rows


def summarise(payload: dict[str, Any]) -> str:
    from lib.claims.results import SCRIPTS

    r, model_name = payload["results"], payload["config"]["model_name"]
    title = f"Claims about massive activations, by the results of {model_name}"
    parts = [
        title,
        "=" * len(title),
        f"command  {payload['provenance']['command']}",
        "",
        f"Here: {model_name}, on the texts below. What does not hold here may hold elsewhere.",
        *(["Results of this model do not refute the seed study's figures, which are of GPT-2."] * (not r["published"])),
        "",
        "Results that count",
    ]
    used = []
    for name, files in r["files"].items():
        data = files[0]["data"] if files else None
        described = f"{data['windows']} x {data['seqlen']} tokens of {data['dataset']}" if data else "-"
        used.append([SCRIPTS[name], " ".join(f["path"] for f in files[:2]) or "missing", described])
    parts += [tables.table(["script", "file", "data"], used)]
    rows = [[of["row"], of["verdict"], of["claim"]] for of in r["claims"]]
    parts += [tables.table(["row", "verdict", "claim"], rows), "Of each the numbers, the rule, the nearest threshold"]
    for of in r["claims"]:
        parts += [f"{of['row']}: {of['verdict']}: {numbers(of)}", f"    {of['rule']}"]
        if of["tests"]:
            parts.append(f"    nearest threshold: {_threshold(nearest(of))}")
    if r["published"]:
        rows = [
            [
                f["name"],
                "no result" if f["ours"] is None else tables.number(f["ours"]),
                tables.number(f["published"]),
                "-" if f["ours"] is None else tables.number(f["gap"], True),
                "-" if f["ours"] is None else tables.percent(f["published"], f["ours"]),
                f["source"],
            ]
            for f in r["published"]
        ]
        compared = sum(f["ours"] is not None for f in r["published"])
        parts += ["", "Published figures of GPT-2", f"{compared} of {len(rows)} compared"]
        parts += [tables.table(["figure", "ours", "published", "gap", "per cent", "source"], rows)]
    elif model_name == "gpt2":
        why = "these are not known to be its weights (on the hub: gpt2)"
        parts += ["", f"Published figures of GPT-2 are left out: {why}"]
    return "\n".join([*parts, "", f"Conclusion: {r['conclusion']['verdict']}", f"Rule: {r['conclusion']['rule']}", ""])


def numbers(claim: dict[str, Any]) -> str:
    """The numbers of a judged claim in one line, behind the reason, if it cannot be told."""
    values = [f"{name} {_text(value)}" for name, value in claim["values"].items()]
    return "; ".join([claim["reason"]] * bool(claim["reason"]) + values)


def nearest(claim: dict[str, Any]) -> dict[str, Any]:
    """Of a judged claim's tests that on which its verdict hangs: the nearest to its threshold; if it does not hold, of
    those that say so the furthest, for all of them would have to turn."""
    against = [test for test in claim["tests"] if test["answer"] is False]
    if claim["reason"] is None and against:
        return max(against, key=_distance)
    return min(claim["tests"], key=_distance)


def _distance(test: dict[str, Any]) -> float:
    """In parts of the threshold, which makes those of several units comparable."""
    return abs(test["distance"] or 0) / (abs(test["threshold"] or 0) or 1)


def _threshold(test: dict[str, Any]) -> str:
    if test["threshold"] is None:
        measured, asked = test["side"], test["wanted"]
    else:
        measured = _text({"mean": test["mean"], "ci95": test["interval"]})
        asked = f"{test['wanted']} {tables.number(test['threshold'])}"
    away = f"{tables.number(test['distance'], True)} away" if test["answer"] is not None else test["side"]
    return f"{test['what']} {measured}, asked: {asked}; {away}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        exact = value["ci95"] == [value["mean"]] * 2
        return tables.mean(value) if exact else tables.interval(value)
    return str(value) if isinstance(value, (str, int)) else tables.number(value)


def verify(folder: Path, model_name: str, files: Files, label: str | None = None) -> None:
    """Judge one model's files, print the table, write TXT and JSON into the folder; label: for the names of these."""
    label = label or model_name
    names = {"json": f"{label}_claims.json", "txt": f"{label}_claims.txt"}
    config = {"folder": folder, "model_name": model_name}
    payload = result_files.payload("claims", config, environment(0), judge(files, model_name), names)
    text = summarise(payload)
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
    if not args.folder.is_dir():
        raise cli.UserError(f"no such folder: {args.folder}")
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
