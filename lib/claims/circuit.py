"""Claims about the parameters behind the attention sink at the first position (GPT-2's circuit, arXiv 2604.14722)."""

from experiments.sink_circuit.judge import candidate_tests, sink_test
from experiments.sink_circuit.results import EPES, QUERY_BIAS, RAW, Results
from lib.claims.judging import Judged, claim
from lib.claims.measured import CannotTellError, Measured
from lib.core.definitions import ATTRACTS, CARRIES
from lib.core.evidence import Test

SINK = f"there is a sink if position 0 has more than {ATTRACTS:g} times the attention that attending evenly gives"


def _results(measured: Measured, *needed: str) -> Results:
    """Raises CannotTellError if there is no sink, or an edit that is needed is not there."""
    results = measured.sink_circuit.results
    if sink_test(results).answer is False:
        raise CannotTellError("there is no sink at position 0")
    for edit in (results.edits[name] for name in needed):
        if not edit.there:
            raise CannotTellError(f"{edit.label}: {edit.why}")
    return results


@claim(
    "query bias",
    "It carries the attention sink (Ran-Milo et al. 2026, of GPT-2)",
    f"{SINK}; with all query biases zero less than {CARRIES} of that attention is left, and with random vectors of "
    f"their norms added more than {CARRIES} is",
)
def query_bias(measured: Measured) -> Judged:
    results = _results(measured, QUERY_BIAS)
    tests = [sink_test(results), *candidate_tests(results, QUERY_BIAS)]
    return tests, {test.what: test.cell for test in tests}


@claim(
    "first position's embedding",
    "The sink hangs on that embedding as block 0's MLP makes it, not on the raw one (Ran-Milo et al. 2026, of GPT-2)",
    f"{SINK}; after block 0 the embeddings of positions 0 and 1 as its MLP makes them are swapped, and less than "
    f"{CARRIES} of that attention is left; the raw ones are, and more than {CARRIES} is",
)
def made_by_the_mlp(measured: Measured) -> Judged:
    results = _results(measured, EPES, RAW)
    tests = [sink_test(results)]
    for name, wanted in ((EPES, "below"), (RAW, "above")):
        edit = results.edits[name]
        assert edit.left is not None, "it is there"
        tests.append(Test(f"attention left, {edit.label}", edit.left, wanted, CARRIES))
    return tests, {test.what: test.cell for test in tests}
