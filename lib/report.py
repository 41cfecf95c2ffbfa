"""Result files: JSON with provenance, TXT, figures. A file appears complete or not at all."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from lib import definitions, ranks, terminal
from lib.errors import UserError, cause

SCHEMA_VERSION = 2
UNFINISHED = ".unfinished-"
UNREPEATED = ("time", "seconds", "git")
ROOT = Path(__file__).resolve().parent.parent
NOT_MEASURING = {"plots.py", "fonts.py", "claims.py", "evidence.py", "judges"}
PACKAGES = ("torch", "transformers", "datasets", "numpy", "safetensors", "gguf")


def check_writable(folder, names=()):
    """Raise UserError if no files of these names can be written into `folder`, which need not exist yet."""
    try:
        for name in names:
            if stat.S_ISDIR(_kind(folder / name)):
                raise UserError(f"cannot write {folder / name}: it is a folder")
        for place in (folder, *folder.absolute().parents):
            if _kind(place):
                if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                    raise UserError(f"cannot write results to {folder}: {place} is not a writable folder")
                return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write results to {folder}: {cause(error)}") from error


def _kind(path):
    """st_mode of what is there, a broken link, too; 0 where there is nothing."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


@contextmanager
def complete_file(path):
    """Yield a temporary path beside `path`; it takes the name of `path` only if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=path.suffix)
        os.close(handle)
        try:
            os.chmod(temporary, 0o666 & ~_umask())
            yield temporary
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or cause(error)}") from error


@contextmanager
def result_file(path):
    """As `complete_file`, of what is told when the run is interrupted."""
    with complete_file(path) as temporary:
        yield temporary
    terminal.written.append(path)


def native(name):
    """A file name from a result in the encoding of this machine's file names, which may not be that of the run's."""
    return os.fsdecode(name.encode(errors="surrogateescape"))


def remove_leftovers(folder, pattern=f"{UNFINISHED}*", days=1):
    """Delete what killed runs have left unfinished in `folder`; what is younger may be in the making by another run."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > days * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """What UTF-8 cannot hold, half of a surrogate pair, is written as \\udc80: JSON reads that back."""
    with result_file(path) as temporary:
        Path(temporary).write_text(text.encode(errors="backslashreplace").decode(), encoding="utf-8")


def write_json(path, payload):
    write_text(path, _dump(payload) + "\n")


def _dump(value, indent=""):
    """JSON text in which what holds no further lists or objects stands on one line."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    flat = not any(
        isinstance(v, dict) or (isinstance(v, list) and v and isinstance(v[0], (dict, list))) for v in inside
    )
    if flat:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_dump(v, deeper)}" for key, v in value.items()]
        opening, closing = "{}"
    else:
        items = [_dump(v, deeper) for v in value]
        opening, closing = "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{closing}"


def read_json(path):
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: not a JSON object")
    return value


def _finite(text):
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


def load(path, experiment):
    """The payload of a result JSON. Raises UserError if it is missing, malformed, changed or of another experiment."""
    payload = read_json(path)
    if payload.get("experiment") != experiment:
        raise UserError(f"{path} is not a result of '{experiment}' but of '{payload.get('experiment')}'")
    if payload.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {payload.get('schema_version')}, not {SCHEMA_VERSION}")
    provenance = payload.get("provenance")
    if not isinstance(provenance, dict) or provenance.get("sha256", _sha256(payload)) != _sha256(payload):
        raise UserError(f"{path} is not what a run wrote: its content does not have the sha256 in its provenance")
    return payload


def _sha256(payload):
    """Of a payload but for what differs when the same run is repeated, and the hash itself."""
    kept = {key: value for key, value in payload["provenance"].items() if key not in (*UNREPEATED, "sha256")}
    return hashlib.sha256(json.dumps(payload | {"provenance": kept}, sort_keys=True).encode()).hexdigest()


def lookup(payload, path):
    """The value at a dotted path, for example results.layers.11.top1.mean. Raises LookupError if there is none."""
    value = payload
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def plain(value):
    """JSON types only; floats to 7 significant digits (float32 carries no more), nan and inf as null."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def config(options):
    """Every option, and the model's short name for files."""
    return dataclasses.asdict(options) | {"model_name": options.model_name}


def payload(experiment, config, provenance, results, files):
    """What the JSON holds; all but provenance's UNREPEATED is the same for the same run on the same machine."""
    whole = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment": experiment,
            "provenance": provenance,
            "config": config,
            "results": results,
            "files": files,
        }
    )
    whole["provenance"]["sha256"] = _sha256(whole)
    return whole


def provenance(options, lm, windows, seconds):
    """What made a result: the environment, the model and the data."""
    import torch

    return {
        **environment(seconds),
        **model_provenance(options, lm),
        "data": windows.provenance,
        "seed": options.seed,
        "attention": lm.model.config._attn_implementation,
        "device": torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else str(lm.device),
        **({"device_map": lm.devices} if len(lm.devices) > 1 else {}),
    }


def model_provenance(options, lm):
    """The part of the provenance that tells models apart; see lib.identity."""
    return {"model": {"name": options.model, "type": lm.model.config.model_type, **lm.source}, "dtype": options.dtype}


def environment(seconds):
    """The part of the provenance that knows no model: command, code, packages."""
    import torch

    n = ranks.size()
    start = ["python"] if n == 1 else ["torchrun", f"--nproc_per_node={n}"]
    module = sys.modules["__main__"].__spec__  # of python -m
    program = ["-m", module.name] if module else [Path(sys.argv[0]).name]
    return {
        "command": shlex.join([*start, *program, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "git": _git(),
        "code_sha256": code_sha256(),
        "threads": torch.get_num_threads(),
        "processes": n,
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def code_sha256():
    """Digest of the running script and of all code that can change a number: not what only draws, words or judges."""
    digest = hashlib.sha256()
    for path in [ROOT / Path(sys.argv[0]).name, *_measuring()]:
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _measuring():
    """The files below lib/ and experiments/ that code_sha256 covers."""
    paths = sorted(path for room in ("lib", "experiments") for path in (ROOT / room).rglob("*.py"))
    return [path for path in paths if NOT_MEASURING.isdisjoint(path.relative_to(ROOT).parts)]


def _git():
    """Commit of this repository and whether the code (all but results/) is unchanged; None outside a checkout."""

    def git(*args):
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, check=True, encoding="utf-8", errors="replace"
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain", "--", ".", ":!results")}
    except (OSError, subprocess.CalledProcessError):
        return None


def header(payload, title):
    """The first lines of a TXT: what ran on what."""
    p = payload["provenance"]
    data = p["data"]
    bos = "on" if data["bos"] else "off"
    source = ", ".join(f"{key} {value}" for key, value in p["model"].items() if key not in ("name", "type"))
    warning = [f"warning  {p['warning']}"] if "warning" in p else []
    return "\n".join(
        [
            title,
            "=" * len(title),
            f"model    {p['model']['name']} ({p['model']['type']}; {source})",
            f"data     {data['windows']} x {data['seqlen']} tokens of {data['dataset']}, BOS {bos}{_documents(data)}",
            f"run      {p['dtype']}, {p['device']}, seed {p['seed']}, {p['time']}",
            f"command  {p['command']}",
            f"spread   {definitions.INTERVALS}",
            *warning,
            "",
        ]
    )


def _documents(data):
    """From how many documents the windows are: what intervals draw from."""
    if data.get("documents_drawn") is None:
        return ""
    if data["documents_drawn"] == 1:
        return "; from one document: intervals tell windows of it apart, not texts"
    return f"; from {data['documents_drawn']} documents (as good as {data['documents_effective']} of equal size)"


def table(headers, rows):
    """Plain-text table; columns of numbers are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    left = [
        all(not row[i].lstrip("+-")[:1].isdigit() and row[i] not in ("", "-") for row in rows)
        for i in range(len(headers))
    ]

    def line(cells):
        return "  ".join(
            c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True)
        ).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *map(line, rows)]) + "\n"


def number(value, signed=False):
    """Four significant digits, thousands grouped: 0.6021, 23,512, +1.250, 3.1e-05."""
    if value is None:
        return "-"
    if 0 < abs(value) < 0.001 or abs(value) >= 1e9:
        return f"{value:{'+' if signed else ''}.1e}"
    digits = 0 if abs(value) >= 1000 else max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:{'+' if signed else ''},.{min(digits, 4)}f}"


def mean(average, signed=False):
    return number(average["mean"], signed)


def interval(average, signed=False):
    """`mean [low, high]` of an average, or the mean alone where one sequence gives no interval."""
    if average.get("ci95") is None:
        return mean(average, signed)
    return f"{mean(average, signed)} [{', '.join(number(x, signed) for x in average['ci95'])}]"


def percent(before, after):
    """Relative change in per cent; `-` where the value before is zero. Print it beside both values only."""
    return "-" if not before else f"{100 * (after - before) / abs(before):+.1f} %"


def fraction(value):
    """A share in per cent; `-` of None: there is nothing to share."""
    return "-" if value is None else f"{100 * value:.1f} %"


def massive_table(massive, definition, at_most=20):
    """Identities of the massive activations: one row a (position, dim), with its layers and its largest value.

    windows: in how many it passes the test, fewest and most over these layers.
    """
    places = {}
    for entry in massive:
        places.setdefault((entry["position"], entry["dim"]), []).append(entry)
    peaks = [(max(of, key=lambda e: abs(e["value"])), of) for of in places.values()]
    peaks.sort(key=lambda pair: -abs(pair[0]["value"]))
    rows = [
        [
            e["position"],
            repr(e["token"]),
            e["dim"],
            _spans([x["layer"] for x in of]),
            "-".join(str(n) for n in sorted({min(x["sequences"] for x in of), max(x["sequences"] for x in of)})),
            e["layer"],
            number(e["value"], True),
            f"{e['ratio']:,.0f}",
        ]
        for e, of in peaks[:at_most]
    ]
    text = f"Massive: {definition}\n"
    if not rows:
        return text + "none found\n"
    heads = [
        "position",
        "most frequent token",
        "dim",
        "massive in layers",
        "windows",
        "largest at",
        "value",
        "x median",
    ]
    more = len(peaks) - len(rows)
    return text + table(heads, rows) + (f"and {more} more places, in the JSON\n" if more else "")


def _spans(numbers):
    """[2, 3, 4, 9] -> '2-4, 9'."""
    spans = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def place_text(place):
    """The followed place of results.place in words, and the rule that chose it."""
    positions = ", ".join(f"{n} at {position}" for position, n in list(place["positions"].items())[:8])
    values = place["values"]
    first, last = place["plateau"]
    found = (
        f" (massive in {place['spiking']['mean']:.0%} of the windows)" if place["massive"] else " (nothing is massive)"
    )
    return (
        f"Followed: dim {place['dim']}, most often token {place['token']!r}{found}; windows: {positions}\n"
        f"peak {interval(values[place['peak_layer']], True)} at layer {place['peak_layer']}, "
        f"plateau layers {first} to {last}\n"
        f"Rule: {place['rule']}\n" + _first_tokens(place)
    )


def _first_tokens(place):
    """What the spread of values at position 0 is of."""
    if place["first_tokens"] is None:
        return ""
    n = place["values"][0]["n"]
    return (
        f"At position 0 a value depends on the first token alone: {n} windows are {n} draws of a token, "
        f"{place['first_tokens']} different ones here\n"
    )


def tests_table(tests):
    """Every threshold that a verdict hangs on: what was measured, what was asked, how far away the threshold is.

    distance: from the nearer end of the interval; 0 where the interval holds the threshold, which is never a verdict.
    """
    rows = [
        [
            t["what"],
            interval({"mean": t["mean"], "ci95": t["interval"]}),
            f"{t['wanted']} {number(t['threshold'])}",
            t["side"],
            number(t["distance"], True),
        ]
        for t in tests
    ]
    return table(["what", "measured", "asked", "it is", "distance"], rows) if rows else ""


def ablation_summary(payload, title, question):
    """The short part of an ablation's TXT: what is massive, what is left of it, every condition, the conclusion."""
    r = payload["results"]
    parts = [header(payload, title), question, "", massive_table(r["massive"], r["definition"])]
    if r["places"]:
        parts.append(places_table(r["places"], r["conclusion"]["values"]["places"]) + first_tokens_text(r))
    return "\n".join([*parts, conditions_table(r["conditions"]), conclusion_text(r["conclusion"])])


def places_table(places, words, at_most=12):
    """What is left of each place of results.places; words: [[position, dim, word], ...] of its conclusion."""
    rows = [
        [
            "0" if place["position"] == "first" else "later",
            repr(place["token"]),
            place["dim"],
            place["windows"],
            place["layer"],
            mean(place["value"], True),
            mean(place["ablated"], True),
            interval(place["retained"]),
            interval(place["absolute_change"]),
            f"{place['massive']['mean']:.0%} -> {place['still_massive']['mean']:.0%}",
            word,
        ]
        for place, (_position, _dim, word) in list(zip(places, words, strict=True))[:at_most]
    ]
    heads = ["position", "most frequent token", "dim", "windows", "after layer", "value", "ablated", "retained"]
    more = f"and {len(places) - at_most} more places, in the JSON\n" if len(places) > at_most else ""
    return (
        "What is left of each place (position 0 or the later ones, and a dim), largest first, after the end of its "
        "plateau, in the windows that have it:\n"
        + table([*heads, "|change| / |value|", "massive there", "so it"], rows)
        + more
    )


def first_tokens_text(results):
    """What the windows' spread at position 0 is of, and the exact numbers over all first tokens, if there are any."""
    largest, exact = results["places"][0], results["first_tokens"]
    if largest["position"] != "first":
        return ""
    n = largest["windows"]
    text = f"At position 0 a value depends on the first token alone: {n} windows are {n} draws of a token.\n"
    return text if exact is None else text + exact_text(exact)


def exact_text(exact):
    """What of lib.first_tokens holds over all first tokens of the text."""
    still = "" if exact["still_massive"] is None else f", still massive {exact['still_massive']:.1%}"
    return (
        f"All {exact['tokens']:,} first tokens that the text could give, each as often as the text has it, "
        f"{exact['share']:.1%} of which have the spike, exactly: dim {exact['dim']} after layer {exact['layer']} "
        f"{number(exact['value'], True)} -> {number(exact['ablated'], True)}, retained {number(exact['retained'])}, "
        f"|change| / |value| {number(exact['absolute_change'])}{still}\n"
        "Token by token, it " + ", ".join(f"{fate} for {share:.1%}" for fate, share in exact["shares"].items()) + "\n"
    )


def ablation_details(payload, names=None):
    """Every layer of the named conditions (default: of all): top-1 and the followed dims."""
    r = payload["results"]
    baseline = r["conditions"]["baseline"]
    parts = []
    for name in names or r["changes"]:
        changes = r["changes"][name]
        condition = r["conditions"][name]
        parts.append(f"{condition['label']}: every layer, mean over windows, before -> after")
        parts.append("change: paired difference with its 95 % interval\n")
        parts.append(_layers_table(baseline, condition, changes, "top1", "top 1"))
        for dim in r["dims"]:
            parts.append(f"dim {dim}, signed, at the position where it peaks in the baseline (the same in both runs)")
            parts.append(_layers_table(baseline, condition, changes, str(dim), f"dim {dim}"))
    return "\n".join(parts)


def conditions_table(conditions):
    rows = []
    for condition in conditions.values():
        perplexity = condition["perplexity"]
        rows.append(
            [
                condition["label"],
                interval({"mean": perplexity["value"], "ci95": perplexity["ci95"]}),
                interval(condition["sink_rate"]),
                interval(condition["sink_rate_change"], True) if condition["sink_rate_change"] else "-",
                interval(condition["massive_positions"]),
            ]
        )
    heads = ["condition", "perplexity", "sink rate", "its change", "positions with a massive activation"]
    return table(heads, rows) + (
        f"sink rate: share of all heads, off or on, with more than {definitions.SINK_EPSILON} of their attention on "
        f"the first token in windows of {definitions.SINK_WINDOW} tokens (a head that is off writes nothing and still "
        "looks somewhere); "
        "change: paired\n"
    )


def cell(layer, key):
    """The average of a statistic (top1, median, ...) or of a followed dim, in one layer's entry."""
    return layer[key] if key in layer else layer["dims"][key]


def _layers_table(baseline, condition, changes, key, label):
    rows = []
    for before, after, change in zip(baseline["layers"], condition["layers"], changes, strict=True):
        b, a = cell(before, key), cell(after, key)
        rows.append(
            [before["layer"], mean(b), mean(a), interval(cell(change, key), True), percent(b["mean"], a["mean"])]
        )
    return table(["layer", f"{label} before", "after", "change", "per cent"], rows)


def interventions_summary(payload, title):
    """What the model loses without it, what is changed, every change with its question and its cost, the sinks, what is
    left of the value, the conclusion by its printed rule."""
    r = payload["results"]
    sites, place, first, conclusion = r["sites"], r["place"], r["layer"], r["conclusion"]
    conditions = r["conditions"]
    words = conclusion["values"].get("costs", {})
    costs, sinks = [], []
    for name, condition in conditions.items():
        perplexity = interval({"mean": condition["perplexity"]["value"], "ci95": condition["perplexity"]["ci95"]})
        loss, changes = condition.get("loss_change"), condition.get("sink_rate_changes")
        costs.append([condition["label"], perplexity, interval(loss, True) if loss else "-", words.get(name, "-")])
        sinks.append([condition["label"]])
        for epsilon, rate in condition["sink_rates"].items():
            sinks[-1] += [mean(rate), interval(changes[epsilon], True) if changes else "-"]
    epsilons = [heading for e in r["epsilons"] for heading in (f"epsilon {e:g}", "change")]
    parts = [
        header(payload, title),
        f"Followed: dim {place['dim']} at position {_counted(place['positions'])}, plateau layers "
        f"{place['plateau'][0]}-{place['plateau'][1]}",
        f"Rule: {place['rule']}",
        f"Changed: what is massive in the output of layer {first}; windows of the other half that have it: "
        f"{interval(sites['spiking'])}; measured: {sites['windows']}; massive and left alone: {sites['left_alone']}",
        f"Rule: {sites['rule']}",
        f"Massive: {sites['definition']}",
        _sites_table(sites),
        *_writers(r["mlp"], first),
        _questions(conditions),
        "Loss: paired change in nats a token, with its 95 % interval",
        table(["condition", "perplexity", "change of the loss", "cost"], costs),
        "Sink rate: share of all heads with more than epsilon of their attention on the first token, in windows of 64",
        "tokens; change: paired",
        table(["condition", *epsilons], sinks),
        _left_table(r),
        _without_it(conclusion["values"].get("counterfactual"), conditions) + conclusion_text(conclusion),
    ]
    return "\n".join(parts)


def _sites_table(sites):
    rows = [
        [
            d["position"],
            d["dim"],
            _counted(d["positions"]),
            d["sites"],
            d["massive"],
            number(d["value"], True),
            number(d["means"][0], True),
            number(d["ordinary"][0], True),
            d["estimation_sites"],
        ]
        for d in sites["dims"]
    ]
    if not rows:
        return "none found\n"
    heads = [
        "position",
        "dim",
        "at (windows)",
        "sites",
        "massive",
        "value",
        "mean set",
        "ordinary set",
        "estimated from",
    ]
    return (
        table(heads, rows)
        + f"Median set: {number(sites['medians'][0])} at this layer, with the sign of the mean. From a layer on, each\n"
        "later layer has its own of all these.\n"
    )


def _writers(mlp, layer):
    """Which neurons are off, and why, if none are."""
    if mlp is None:
        return []
    listed = ", ".join(f"{n['neuron']} ({number(n['contribution'], True)})" for n in mlp["neurons"][:8])
    more = f" and {len(mlp['neurons']) - 8} more" if len(mlp["neurons"]) > 8 else ""
    share = f"MLP {layer} adds {interval(mlp['share'])} of the value. " if mlp["share"] else ""
    neurons = f"no neurons are off: {mlp['left_out']}" if mlp["left_out"] else f"Neurons that write it: {listed}{more}"
    return [f"{share}{neurons}", f"Rule: {mlp['rule']}\n"]


def _questions(conditions):
    """Each change with the question that it answers, once for all places where it is made."""
    asked = {}
    for condition in conditions.values():
        if "question" in condition:
            held = condition["where"] in ("layer", "onward")
            asked[condition["set_to"] if held else condition["label"]] = condition["question"]
    return table(["change", "question"], asked.items()) if asked else ""


def _left_table(r):
    """The value at the followed place by layer, and what is left of it."""
    first, place = r["layer"], r["place"]
    last = len(place["values"]) - 1
    shown = [i for i in sorted({first, min(first + 1, last), place["plateau"][1], last}) if i >= first]
    rows = []
    for condition in r["conditions"].values():
        left, back = condition.get("left"), condition.get("comes_back")
        rows.append([condition["label"], *(mean(condition["values"][layer], True) for layer in shown)])
        rows[-1] += [interval(left) if left else "-", interval(back["share"]) if back else "-"]
    heads = [*(f"layer {layer}" for layer in shown), f"left at layer {first}", "comes back"]
    return (
        f"Value at dim {place['dim']}, signed, mean of the measured windows; left, comes back: the share of the "
        f"baseline's\nvalue in the output of layer {first}, and of the last layer of the plateau where no layer up to "
        "it is held; ratio of sums over\nthe windows in which it is massive\n" + table(["condition", *heads], rows)
    )


def _without_it(counterfactual, conditions):
    """The headline: what the model loses without it."""
    if counterfactual is None:
        return ""
    label = conditions[counterfactual["condition"]]["label"]
    before = conditions["baseline"]["sink_rates"][str(counterfactual["epsilon"])]
    return (
        f"Without it ({label}) the loss changes by {interval(counterfactual['loss_change'], True)} nats a token: "
        f"{counterfactual['cost']}.\nThe sink rate (epsilon {counterfactual['epsilon']:g}) changes by "
        f"{interval(counterfactual['sink_rate_change'], True)}, from {mean(before)}\n"
    )


def interventions_details(payload):
    """Every layer's value at the followed place, in every condition."""
    r = payload["results"]
    conditions = r["conditions"].values()
    rows = [
        [layer, *(mean(condition["values"][layer], True) for condition in conditions)]
        for layer in range(r["layer"], len(r["place"]["values"]))
    ]
    return f"Value at dim {r['place']['dim']}, signed, mean of the measured windows, by layer\n" + table(
        ["layer", *(condition["label"] for condition in conditions)], rows
    )


def _counted(positions, at_most=5):
    """{"0": 14, "3": 1} -> `0 (14), 3 (1)`."""
    shown = ", ".join(f"{position} ({n})" for position, n in list(positions.items())[:at_most])
    return shown + (f" and {len(positions) - at_most} more" if len(positions) > at_most else "")


def conclusion_text(conclusion):
    values = conclusion["values"]
    why = f" ({values['why']})" if values.get("why") else ""
    lines = [f"Conclusion: {conclusion['verdict']}{why}", f"Rule: {conclusion['rule']}"]
    if conclusion.get("tests"):
        lines.append(tests_table(conclusion["tests"]))
    return "\n".join(lines) + "\n"
