"""Our values for GPT-2 beside the published ones, after `make reproduce-gpt2`.

    python compare_with_published.py results

Reads the results that the seed study's commands wrote below the folder, and reference/gpt2_published.json. A figure
whose result file is missing is called untested.
"""

import argparse
from pathlib import Path

from lib import cli, report

PUBLISHED = report.ROOT / "reference" / "gpt2_published.json"


def compare(folder, model_name):
    """[(figure, our value or None)] for every published figure."""
    payloads = {}
    pairs = []
    for figure in report.read_json(PUBLISHED)["figures"]:
        path = folder / figure["file"].format(model=model_name)
        if path not in payloads:
            payloads[path] = report.read_json(path) if path.exists() else None
        try:
            pairs.append((figure, payloads[path] and report.lookup(payloads[path], figure["path"])))
        except LookupError as error:
            raise cli.UserError(f"{path} has no {figure['path']}: is it a result of GPT-2 small?") from error
    return pairs


def summarise(pairs):
    rows = [
        [
            figure["name"],
            "untested" if ours is None else report.number(ours),
            report.number(figure["published"]),
            "-" if ours is None else report.percent(figure["published"], ours),
            figure["source"],
        ]
        for figure, ours in pairs
    ]
    tested = [ours for _figure, ours in pairs if ours is not None]
    return (
        report.table(["figure", "ours", "published", "gap", "source"], rows)
        + f"{len(tested)} of {len(rows)} compared\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder below which the seed study's commands wrote their results")
    parser.add_argument("--model_name", default="gpt2", help="the model's name in the file names (default: gpt2)")
    args = parser.parse_args()
    cli.require_one_process()
    if not args.folder.is_dir():
        raise cli.UserError(f"no such folder: {args.folder}")
    text = summarise(compare(args.folder, args.model_name))
    report.write_text(args.folder / "comparison_with_published.txt", text)
    print(text)
    print(args.folder / "comparison_with_published.txt")


if __name__ == "__main__":
    cli.main(main)
