"""The numbers of the READMEs, held to the results they come from.

A number is followed by a comment `<!--=FILE PATH FORMAT-->`, which GitHub does not show: a key of FILES, a path below
`results` in that JSON, and a Python format. `python -m tests.readme_numbers` (`make readme`) writes all of them anew.
"""

import functools
import json
import re

from lib.report import ROOT, lookup

READMES = [ROOT / "README.md", ROOT / "README_CN.md"]
RESULTS = ROOT / "results" / "smollm2-135m"
FILES = {
    "layerwise": "main_llm/smollm2-135m_layerwise.json",
    "sentence": "main_llm/smollm2-135m_layer11_3d.json",
    "heads": "analyze_heads_simple/smollm2-135m_head_analysis.json",
    "pruning": "test_head_pruning_on_massive/pruning_results.json",
    "exp1": "exp1_feasibility_test/comparison/exp1_results.json",
    "exp2a": "exp2a_mlp_feasibility_test/comparison/exp2a_results.json",
    "exp2c": "exp2c_mlp_internal_analysis/exp2c_detailed_results.json",
    "compare11": "compare_3d_before_after_pruning/layer11_comparison.json",
    "compare18": "compare_3d_before_after_pruning/layer18_comparison.json",
}
NUMBER = re.compile(
    r"(?P<shown>`[^`]*`|[-+]?\d[\d,.]*(?:e[-+]\d+)?%?)<!--=(?P<file>\S+) (?P<path>\S+) (?P<format>\S+)-->"
)


@functools.cache
def result(name):
    return json.loads((RESULTS / FILES[name]).read_text(encoding="utf-8"))


def render(match):
    value = format(lookup(result(match["file"])["results"], match["path"]), match["format"])
    shown = f"`{value}`" if match["format"] == "s" else value
    return match.group().replace(match["shown"], shown, 1)


def rendered(readme):
    """The README's text with every number taken from its result."""
    return NUMBER.sub(render, readme.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path in READMES:
        path.write_text(rendered(path), encoding="utf-8")
