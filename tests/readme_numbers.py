"""The numbers of the READMEs, held to the results they come from.

A number is followed by a comment `<!--=FILE PATH FORMAT-->`, which GitHub does not show: a key of FILES, a path below
`results` in that JSON, and a Python format. A table stands between `<!-- NAME -->` and `<!-- /NAME -->`,
NAME being one of TABLES. `python -m tests.readme_numbers` (`make readme`) writes all of them anew.
"""

import functools
import json
import re

import verify_claims
from lib import judges
from lib.report import ROOT, lookup
from tests import architectures

READMES = [ROOT / "README.md", ROOT / "README_CN.md"]
RESULTS = ROOT / "results" / "smollm2-135m"
DTYPES = "float32", "bfloat16"
BENCHED = "gpt2-small-shaped", "smollm2-135m"
DTYPE_LAYERS = 2, 9, 11, 20, 27, 28, 29
FILES = {
    "layerwise": "main_llm/smollm2-135m_layerwise.json",
    "sentence": "main_llm/smollm2-135m_layer11_3d.json",
    "heads": "analyze_heads_simple/smollm2-135m_head_analysis.json",
    "pruning": "test_head_pruning_on_massive/pruning_results.json",
    "exp1": "exp1_feasibility_test/comparison/exp1_results.json",
    "exp2a": "exp2a_mlp_feasibility_test/comparison/exp2a_results.json",
    "exp2c": "exp2c_mlp_internal_analysis/exp2c_detailed_results.json",
    "exp2b": "exp2b_mlp_layer_sweep/exp2b_results.json",
    "exp3": "exp3_lifecycle_ledger/exp3_results.json",
    "exp4": "exp4_neuron_sets/exp4_results.json",
    "exp5": "exp5_interventions/exp5_results.json",
    "exp6": "exp6_trigger_census/exp6_results.json",
    "exp7": "exp7_head_sweep/exp7_results.json",
    "claims": "smollm2-135m_claims.json",
    "compare11": "compare_3d_before_after_pruning/layer11_comparison.json",
    "compare18": "compare_3d_before_after_pruning/layer18_comparison.json",
    **{dtype: f"../dtypes/{dtype}/smollm2-135m_layerwise.json" for dtype in DTYPES},
    **{name: f"../bench/{name}_bench.json" for name in BENCHED},
}
NUMBER = re.compile(
    r"(?P<shown>`[^`]*`|[-+]?\d[\d,.]*(?:e[-+]\d+)?%?)<!--=(?P<file>\S+) (?P<path>\S+) (?P<format>\S+)-->"
)
TABLE = re.compile(r"(?P<begin><!-- (?P<name>\w+) -->\n).*?(?P<end><!-- /(?P=name) -->)", re.DOTALL)


@functools.cache
def result(name):
    payload = json.loads((RESULTS / FILES[name]).read_text(encoding="utf-8"))
    return payload | {"results": judges.judged(payload["experiment"], payload["results"])}


def render(match):
    value = format(lookup(result(match["file"])["results"], match["path"]), match["format"])
    shown = f"`{value}`" if match["format"] == "s" else value
    return match.group().replace(match["shown"], shown, 1)


def claims_table():
    """Every claim, its verdict and the numbers that the verdict rests on."""
    rows = [
        [c["row"], c["verdict"], c["claim"], verify_claims.numbers(c)] for c in result("claims")["results"]["claims"]
    ]
    return [["row", "verdict", "claim", "numbers"], *rows]


def dtypes_table():
    """Top-1 and median of some layers in each dtype, and how far the second is from the first."""
    table = [["layer", "top-1, float32", "bfloat16", "change", "median, float32", "bfloat16", "change"]]
    layers = [result(dtype)["results"]["layers"] for dtype in DTYPES]
    for i in DTYPE_LAYERS:
        row = [str(i)]
        for key, digits in (("top1", ",.1f"), ("median", ".4f")):
            before, after = (of[i][key]["mean"] for of in layers)
            row += [format(before, digits), format(after, digits), f"{after / before - 1:+.2%}"]
        table.append(row)
    return table


def bench_table():
    """Every target of the benchmark, with what each model came to."""
    targets = [result(name)["results"]["targets"] for name in BENCHED]
    rows = [
        [of[0]["text"], *(t["verdict"] if t["value"] is None else f"{t['value']:,.2f}, {t['verdict']}" for t in of)]
        for of in zip(*targets, strict=True)
    ]
    return [["target", *BENCHED], *rows]


TABLES = {
    "claims": claims_table,
    "dtypes": dtypes_table,
    "bench": bench_table,
    "architectures": architectures.table,
}


def markdown(table):
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def rendered(readme):
    """The README's text with every number and table made anew."""
    text = NUMBER.sub(render, readme.read_text(encoding="utf-8"))
    return TABLE.sub(lambda match: f"{match['begin']}{markdown(TABLES[match['name']]())}{match['end']}", text)


if __name__ == "__main__":
    for path in READMES:
        path.write_text(rendered(path), encoding="utf-8")
