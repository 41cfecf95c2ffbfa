"""What a user of the hub meets first, to the end: the lines of `make reproduce-gpt2` and `make study MODEL=gpt2`, on a
small GPT-2 that a hub on this machine serves, from the first download on."""

import json
import re
import shlex
import subprocess

import pytest
from PIL import Image

from lib import catalogue
from lib.run import checkout
from tests import hub as our_hub
from tests.conftest import TEXT

pytestmark = pytest.mark.slow
# the files that the seed study's README shows and names, below the folder it runs in
SEED_FILES = (
    "results/llm/3d_feat_vis/gpt2_layer2_3d.png",
    "results/llm/layerwise/gpt2.png",
    "results/head_analysis/gpt2_head_analysis.png",
    "results/head_analysis/gpt2_head_ranking.png",
    "results/head_analysis/gpt2_pruning_config.txt",
    "results/head_pruning_massive/Prune_TOP_Heads_comparison.png",
    "results/head_pruning_massive/Prune_BOTTOM_Heads_comparison.png",
    "results/head_pruning_massive/summary_comparison.png",
    "results/exp1_feasibility_test/comparison/exp1_top1_comparison.png",
    "results/exp1_feasibility_test/comparison/exp1_critical_dimensions.png",
    "results/exp1_feasibility_test/comparison/exp1_percentage_change_heatmap.png",
    "results/exp1_feasibility_test/comparison/EXPERIMENT_1_SUMMARY.txt",
    "results/exp2a_mlp_feasibility_test/comparison/exp2a_top1_comparison.png",
    "results/exp2a_mlp_feasibility_test/comparison/exp2a_critical_dimensions.png",
    "results/exp2a_mlp_feasibility_test/comparison/exp2a_percentage_change_heatmap.png",
    "results/exp2a_mlp_feasibility_test/comparison/EXPERIMENT_2A_SUMMARY.txt",
    "results/exp2c_mlp_internal/exp2c_gelu_impact.png",
    "results/exp2c_mlp_internal/exp2c_dimension_analysis.png",
    "results/exp2c_mlp_internal/exp2c_activation_flow.png",
    "results/exp2c_mlp_internal/exp2c_detailed_results.json",
    "results/3d_comparison/layer2_3d_comparison.png",
    "results/3d_comparison/layer2_difference_analysis.png",
    "results/3d_comparison/layer5_3d_comparison.png",
    "results/3d_comparison/layer5_difference_analysis.png",
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with our_hub.Hub(
        {
            "models/openai-community/gpt2": our_hub.Repository({"main": our_hub.gpt2(folder / "gpt2", TEXT)}),
            "datasets/Salesforce/wikitext": our_hub.Repository({"main": our_hub.wikitext(folder / "wikitext", TEXT)}),
        },
        moved={"gpt2": "openai-community/gpt2"},
    ) as served:
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def lines_of(target, *variables):
    """The Python command lines that make would run for a target, in order, each as a list that begins with a script."""
    command = ["make", "--dry-run", "--always-make", "--old-file", ".venv/.ready", target, *variables]
    printed = subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith(".venv/bin/python ")]
    return [line[1:] for line in lines if line[1].endswith(".py")]


def with_samples(line, **counts):
    """The line with these numbers, in place of its own or appended."""
    line = list(line)
    for name, count in counts.items():
        flag = f"--{name}"
        if flag in line:
            line[line.index(flag) + 1] = str(count)
        else:
            line += [flag, str(count)]
    return line


def carried_out(lines, folder, environment, drawn=False):
    """All that command lines print, carried out in order."""
    done = our_hub.in_order(lines, folder, environment, drawn)
    for line, ended in zip(lines, done, strict=True):
        assert ended.code == 0, f"{shlex.join(line)}: {ended.error}"
        print(ended.seconds, "s:", shlex.join(line))  # for pytest --capture=no
    return "".join(ended.out for ended in done)


def test_make_reproduce_gpt2(hub, home, tmp_path):
    lines = lines_of("reproduce-gpt2")
    assert [line[0] for line in lines][-1] == "verify_claims.py"
    assert len(lines) == 11
    small = {"nsamples": 2, "seqlen": 32, "dpi": 40}
    sampled = [line if line[0] == "verify_claims.py" else with_samples(line, **small) for line in lines]
    printed = carried_out(sampled, tmp_path, hub.environment(home), drawn=True)
    for name in SEED_FILES:
        assert (tmp_path / name).stat().st_size > 100, name
        if name.endswith(".png"):
            assert len(Image.open(tmp_path / name).convert("RGB").getcolors(1 << 24)) > 20, name
    layerwise = json.loads((tmp_path / "results/llm/layerwise/gpt2_layerwise.json").read_text())
    assert layerwise["provenance"]["model"]["hub_id"] == "gpt2"
    assert layerwise["results"]["massive"][0]["dim"] == 447
    assert len(layerwise["results"]["layers"]) == 12
    pruning = (tmp_path / "results/head_pruning_massive/pruning_summary.txt").read_text()
    assert "the seed study's sets for GPT-2" in pruning

    claims = (tmp_path / "results/gpt2_claims.txt").read_text()
    table = claims.partition("Published figures of GPT-2")[2].partition("Conclusion")[0]
    compared, of = map(int, re.search(r"(\d+) of (\d+) compared", table).groups())
    published = json.loads((checkout.ROOT / "reference" / "gpt2_published.json").read_text())["figures"]
    assert compared == of == len(published)
    assert not re.search(r"\b(nan|inf|None|no result)\b", table)
    assert claims in printed
    ours = json.loads((tmp_path / "results/gpt2_claims.json").read_text())["results"]["published"]
    by_name = {figure["name"]: figure for figure in ours}
    assert by_name["layer 10, top1"]["ours"] == layerwise["results"]["layers"][10]["top1"]["mean"]


def test_make_study(hub, home, tmp_path):
    [line] = lines_of("study", "MODEL=gpt2")
    assert line == ["study.py", "--model", "gpt2", "--dataset", "wikitext"]
    line = [*with_samples(line, nsamples=2, seqlen=8, batch_size=2), "--short"]  # test_study takes the whole
    printed = carried_out([line], tmp_path, hub.environment(home))
    folder = tmp_path / "results" / "gpt2"
    results = {json.loads(path.read_text())["experiment"] for path in folder.rglob("*.json")}
    assert results == {"claims"} | {name for name, entry in catalogue.EXPERIMENTS.items() if entry.seed}
    claims = json.loads((folder / "gpt2_claims.json").read_text())["results"]
    verdicts = {of["row"]: of["verdict"] for of in claims["claims"]}
    assert verdicts["4"] == "holds here"  # one MLP writes it
    assert sum(figure["ours"] is not None for figure in claims["published"]) > 70
    assert "there already" not in printed
