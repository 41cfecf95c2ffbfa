"""Every threshold, once: what counts as massive, as a sink, as a plateau, and where verdicts turn. No torch."""

# massive (Sun et al. 2024, arXiv 2402.17762)
ABSOLUTE = 100.0
RELATIVE = 1000.0
MASSIVE = f"|value| > {ABSOLUTE:,.0f} and > {RELATIVE:,.0f} x the layer's median (Sun et al. 2024, arXiv 2402.17762)"
MOST_DIMS = 3  # of a layer, where few must be massive
LASTING = 1 / 4  # of the layers, where a dim must be massive in many

# attention sinks (Gu et al. 2025, arXiv 2410.10781)
SINK_WINDOW = 64  # tokens
SINK_EPSILON = 0.3  # mean probability on the first token
ALL = 0.99  # of a query's attention, in any dtype
SINK_QUERIES = 16  # later queries, at least, over which a key anywhere takes its mean
SINKS = 0.05  # share of heads from which on there are sinks
DRAINED, BROADCASTS = 0.25, 0.5  # of the value's norm to other keys', from which a no-op ends; of the head's output
SAME_MASS = 0.9  # of the sink's attention: what random other keys must have to stand for it
ALIKE = 0.9  # |cosine| with the first token's hidden state, of a secondary sink (arXiv 2512.22213)


def evenly(first: int, queries: int) -> float:
    """Mean attention to key `first` of so many queries, itself the first of them, if each attends evenly to itself and
    to all before it: no sink where the threshold lies below."""
    return sum(1 / (1 + query) for query in range(first, first + queries)) / queries


# the parameters behind a sink (arXiv 2604.14722)
ATTRACTS = 2.0  # times what attending evenly gives: from here on the first position is a sink
CARRIES = 0.5  # of the attention to it: without what carries the sink less is left

# the place and its ledger
PLATEAU = 0.5  # of the largest mean |value| over layers, and of the most windows in which it is massive in one
IN_LAYERS = f"the layers in which it is massive at least {PLATEAU:.0%} as often as in any (all, where in none)"
WRITES = 0.1  # of the peak: from here on a write is a generator's or an eraser's

# forecasts from weights alone
OWN_DIM = 1.0  # of an even share, 1 / hidden: more of a direction's mass than this on the dim it writes is an eraser's

# what is left of a value, relative to the baseline's, along its sign
PERSISTS = (0.9, 1.1)  # from, to
COLLAPSES = (-0.1, 0.1)
BOUNDS = (*COLLAPSES, *PERSISTS)
FATES = ("reverses", "collapses", "reduced", "persists", "grows")  # below, between and above the BOUNDS

# quantised activations
GROUP = 128  # dims that share a scale, or the largest divisor of the width below
FLOAT16_MAX = 65_504.0  # its largest value

# what a change costs
COST = 0.05  # nats a token
MOVES = 0.1  # of the value at the place

# self-repair
REPAIRS = 0.1  # of the removed write

# triggers
NEARLY_ALL, HARDLY_ANY = 0.9, 0.1  # shares of tokens
MOST = 0.5  # of the windows

# sets of neurons; the value PERSISTS by the set alone and COLLAPSES without it
CARRIED = 0.95  # of the down projection's output: what the smallest set must give
MADE = 0.9  # of it: what the smallest set of the MLP's inside must give, which no run confirms
WRITTEN = 0.5  # of the block output: from here on it is written by this MLP
REMAINS = 0.5  # of the value: less is left without a super weight

# experts of a mixture
SUPER = (99.5, 0.1)  # percentile of all experts' largest outputs, and share of the largest of them
CANDIDATE = 0.01  # of the peak: what an expert writes at the place, to be turned off

# intervals
LEVEL = 0.95
RESAMPLES = 4000
FEWEST = 6  # documents: of fewer, a mean lies beyond the extremes, where no resample goes, more often than LEVEL allows
INTERVALS = (
    f"{LEVEL:.0%} intervals of means and ratios: documents drawn anew with replacement, {RESAMPLES:,} times (all "
    "windows of a document at once; windows where the text is one document); bias-corrected and accelerated (BCa, "
    "Efron 1987), widened for few documents as Student's t is (Hesterberg 2015); of fewer than "
    f"{FEWEST} Student's t itself. Of shares of windows: Clopper and Pearson (1934). Of families, where it says so: by "
    f"the largest studentised deviation (Romano and Wolf 2005), of fewer than {FEWEST} at Bonferroni's level"
)
WINDOWS = 30  # at least so many where a verdict hangs on them

# words of the seed study's claims, as numbers
RATIOS = (300.0, 3000.0)  # of the largest value to the median
EARLY = 1 / 4  # of the layers
HARDLY = 0.01  # "hardly moves", "no part in it", "nothing changes": of the value
SLIGHTLY = 0.02  # its "less than 2 %"
LOST = (0.56, 0.66)  # its 61 %
DROPS = 0.5  # of what was there before
MANY = 0.1  # of an MLP's neurons
WEAK = 0.3  # |rank correlation|
ODDS = 0.05  # of chance alone doing as much
