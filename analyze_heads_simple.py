"""How much every attention head attends to the first token, where massive activations usually sit.

    python analyze_heads_simple.py --model gpt2 --nsamples 30 --savedir results/head_analysis/

A head's score is the mean over windows and queries of its probability on the first token. As in the seed study the
first query (whose probability is always 1) is included, so no score is below 1 / seqlen; the score without it is
given beside. Writes a heatmap, a ranking, and a configuration for test_head_pruning_on_massive.py.
"""

from dataclasses import dataclass

from lib import cli, plots, pruning, report
from lib.experiment import Experiment, execute

NEIGHBOURS = 10


@dataclass(frozen=True)
class Options(cli.Options):
    pass


@dataclass(frozen=True)
class HeadAnalysis:
    """scores, scores_without_first_query: [layer][head] averages; ranking: highest first, ties in layer order.

    uniform: the score of a head that attends evenly to all it can see; floor: the lowest possible score.
    neighbours: of the NEIGHBOURS highest heads, paired differences of each to the next.
    sink_rate: share of heads over `sink_epsilon` in windows of `sink_window` tokens.
    """

    scores: list
    scores_without_first_query: list
    ranking: list
    uniform: float
    floor: float
    neighbours: list
    sink_rate: dict
    sink_epsilon: float
    sink_window: int


def run(lm, windows, options):
    import numpy as np

    from lib import definitions, sinks

    heads = sinks.measure(lm, windows, options.batch_size)
    seqlen, draws = windows.ids.shape[1], windows.draws(options.seed)
    ranking = sinks.rank(heads.scores.mean(0))
    highest = np.stack([heads.scores[:, of["layer"], of["head"]] for of in ranking[:NEIGHBOURS]], axis=1)
    return HeadAnalysis(
        scores=draws.averages(heads.scores),
        scores_without_first_query=draws.averages(heads.later),
        ranking=ranking,
        uniform=sum(1 / seen for seen in range(1, seqlen + 1)) / seqlen,
        floor=1 / seqlen,
        neighbours=draws.averages(highest[:, :-1] - highest[:, 1:], family=True),
        sink_rate=draws.averages(heads.sink_rates()),
        sink_epsilon=definitions.SINK_EPSILON,
        sink_window=min(definitions.SINK_WINDOW, seqlen),
    )


def summarise(payload):
    r = payload["results"]

    def rows(ranking):
        return [
            [
                rank,
                cell["layer"],
                cell["head"],
                _score(r["scores"], cell),
                _score(r["scores_without_first_query"], cell),
            ]
            for rank, cell in ranking
        ]

    ranked = list(enumerate(r["ranking"], 1))
    columns = ["rank", "layer", "head", "score", "without first query"]
    rate = r["sink_rate"]
    return "\n".join(
        [
            report.header(payload, "Attention of every head to the first token"),
            "score: mean over windows and queries of the probability on the first token, the first query (always 1)",
            f"included. Uniform attention would score {r['uniform']:.4f}; no head can score below {r['floor']:.4f}.",
            "Intervals: 95 %, as above.",
            "",
            f"The {min(10, len(ranked))} highest of {len(ranked)} heads",
            report.table(columns, rows(ranked[:10])),
            f"The {min(10, len(ranked))} lowest",
            report.table(columns, rows(ranked[-10:])),
            f"Sink rate: {report.interval(rate)} of the heads give the first token more than {r['sink_epsilon']} "
            f"on average in windows of {r['sink_window']} tokens (Gu et al. 2025, arXiv 2410.10781).",
            "A low score says where a head looks, not that the model can do without it.",
            "",
        ]
    )


def _score(scores, cell):
    average = scores[cell["layer"]][cell["head"]]
    if average["ci95"] is None:
        return f"{average['mean']:.4f}"
    return f"{average['mean']:.4f} [{average['ci95'][0]:.4f}, {average['ci95'][1]:.4f}]"


EXPERIMENT = Experiment(
    name="head_analysis",
    json="{model_name}_head_analysis.json",
    txt="{model_name}_head_analysis.txt",
    run=run,
    summary=summarise,
    figures={
        "{model_name}_head_analysis.png": plots.head_scores,
        "{model_name}_head_ranking.png": plots.head_ranking,
    },
    extra={"{model_name}_pruning_config.txt": pruning.config_text},
)

if __name__ == "__main__":
    cli.main(lambda: execute(EXPERIMENT, cli.parse(Options, __doc__)))
