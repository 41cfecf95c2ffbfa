"""What was measured is on disk whatever becomes of the terminal, the figures and the machine's folders; whatever goes
wrong is told in one line that names the cause. By kind: files first, signals, figures, names, causes, folders."""

import builtins
import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import huggingface_hub
import pytest
from PIL import Image

import main_llm
from experiments.attention_logits import figures
from experiments.attention_logits.results import Results
from lib import catalogue, experiment
from lib.report import figures as report_figures
from lib.report import result_files
from lib.run import checkout
from lib.run.cli import Options, UserError
from tests.conftest import exhaustive_unless
from tests.scripts.test_scripts import SAMPLE, files, run

pytestmark = pytest.mark.slow
TRACKED = checkout.ROOT / "results" / "smollm2-135m"
RESULT = TRACKED / "main_llm" / "smollm2-135m_layerwise.json"
NAMES = ["smollm2-135m.png", "smollm2-135m_layerwise.json", "smollm2-135m_layerwise.txt"]
# main_llm.py --exp2 with a stored result in the place of the model: no torch, the rest as it is
STORED = f"""
import json, pathlib, sys
from lib import experiment
from lib.run import cli
import main_llm
experiment._measure = lambda *_: json.loads(pathlib.Path({str(RESULT)!r}).read_text(encoding="utf-8"))
sys.argv[0] = "main_llm.py"
cli.main(main_llm.main)
"""


@pytest.fixture
def stored(monkeypatch):
    """Scripts find this result in the place of what they would measure."""
    payload = json.loads(RESULT.read_text())
    monkeypatch.setattr(experiment, "_measure", lambda *_: payload)
    return payload


def start(code, *arguments, environment=None, **streams):
    """A Python process in which Ctrl-C is not ignored, as it is in what a shell runs in the background."""
    return subprocess.Popen(
        [sys.executable, *code, *map(str, arguments)],
        cwd=checkout.ROOT,
        env=os.environ | (environment or {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **streams,
    )


# files first


def test_all_files_are_there_before_the_first_word(stored, tmp_path, monkeypatch, capsys):
    out, found = tmp_path / "out", []

    def spy(*args, **kwargs):
        found.append(files(out))
        shown(*args, **kwargs)

    shown = builtins.print
    monkeypatch.setattr(builtins, "print", spy)
    assert run("main_llm.py --exp2", "--savedir", out) == 0
    assert found[0] == NAMES
    assert capsys.readouterr().out.startswith("Largest activations of every layer")


def left_reader():
    """The end of a pipe whose other end nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


FULL = "error: cannot print: No space left on device; written: "
TERMINALS = {  # how: (stdout, stderr, environment, exit code, what stderr begins with)
    "nobody reads": (left_reader, None, {}, 0, ""),
    "nobody reads either": (left_reader, left_reader, {"PYTHONUNBUFFERED": "1"}, 0, ""),
    "no space": (lambda: os.open("/dev/full", os.O_WRONLY), None, {"PYTHONUNBUFFERED": "1"}, 2, FULL),
}


@pytest.mark.parametrize("how", [exhaustive_unless(how != "nobody reads either", how) for how in TERMINALS])
def test_output_that_goes_nowhere(how, tmp_path):
    stdout, stderr, environment, code, said = TERMINALS[how]
    streams = {"stdout": stdout(), "stderr": stderr() if stderr else subprocess.PIPE}
    started = start(["-c", STORED, "--exp2"], "--savedir", tmp_path, environment=environment, **streams)
    error = started.communicate()[1]
    for stream in streams.values():
        if stream != subprocess.PIPE:
            os.close(stream)
    assert started.returncode == code
    assert files(tmp_path) == NAMES
    if error is not None:
        assert error.decode().startswith(said)
        assert error.count(b"\n") == bool(said)


NOISY = """
import os, pathlib
def write_text(path, text, encoding):
    with open(path, "w", encoding=encoding) as file:
        file.write(text)
        file.flush()
        os.write(1, b"noise")  # as a library in C may
pathlib.Path.write_text = write_text
"""


def test_closed_streams_are_not_the_next_file(tmp_path):
    """A file that is opened gets the number of a closed stream, and what is printed would go into it."""
    command = f'exec "$0" -c "$1" --exp2 --savedir {tmp_path} >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, NOISY + STORED], cwd=checkout.ROOT).returncode == 0
    assert files(tmp_path) == NAMES
    assert result_files.load(tmp_path / NAMES[1], "layerwise")


def test_an_ascii_terminal_that_cannot_name_the_model(tmp_path):
    """Names of files are another matter where their encoding is ASCII, too."""
    result, name = tmp_path / "result.json", "模型\u00d7é"
    payload = json.loads(RESULT.read_text().replace("smollm2-135m", name))
    del payload["provenance"]["sha256"]
    result.write_text(json.dumps(payload))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in ({"PYTHONIOENCODING": "cp1252"}, ascii_only):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        command = ["main_llm.py", "--replot", result, "--savedir", out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        printed, error = start(command[:1], *command[1:], environment=environment, **pipes).communicate()
        assert (error, files(out)) == (b"", [f"{name}.png", f"{name}_layerwise.txt"])
        assert b"\\u" in printed


def test_half_of_a_surrogate_pair_is_written_and_read(tmp_path):
    payload = {"token": "\ud83d", "tokens": ["\udc80x", "\\\ud800", "é"], "模": 1}
    result_files.write_json(tmp_path / "a.json", payload)
    assert result_files.read_json(tmp_path / "a.json") == payload
    result_files.write_text(tmp_path / "a.txt", "token \ud83d")
    assert (tmp_path / "a.txt").read_text() == "token \\ud83d"


def test_what_cannot_be_written_is_still_printed(stored, tmp_path, monkeypatch, capsys):
    def no_space(*_args):
        raise UserError("cannot write result.json: No space left on device")

    monkeypatch.setattr(result_files, "write_json", no_space)
    assert run("main_llm.py --exp2", "--savedir", tmp_path) == 2
    printed = capsys.readouterr()
    assert "Largest activations of every layer" in printed.out
    assert printed.err == "error: cannot write result.json: No space left on device\n"
    assert files(tmp_path) == [NAMES[0], NAMES[2]]


@pytest.mark.parametrize("kind", ["broken link", "long name", "long path", "folder in the file's place"])
def test_what_could_not_be_written_is_not_measured(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "_measure", lambda *_: pytest.fail("measured"))
    out = tmp_path / {"long name": "x" * 300, "long path": "/".join(["x" * 200] * 30)}.get(kind, "out")
    if kind == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "folder in the file's place":
        (out / "smollm2-135m.png").mkdir(parents=True)
    assert run("main_llm.py --exp2", "--model", "smollm2-135m", "--savedir", out) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write")
    assert error.count("\n") == 1


# signals


@pytest.fixture
def heard():
    """Ctrl-C is heard, as it is not in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_a_figure_is_drawn(sent, code, said, heard, stored, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(sent)
    monkeypatch.setattr(report_figures, "save", lambda *_: os.kill(os.getpid(), sent))
    assert run("main_llm.py --exp2", "--savedir", tmp_path) == code
    assert capsys.readouterr().err == f"{said}: written: {tmp_path / NAMES[1]}, {tmp_path / NAMES[2]}\n"
    assert files(tmp_path) == NAMES[1:]
    assert signal.getsignal(sent) == before


DEAF = """
import os, signal
from lib.report import tables
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        list(map(str, range(9)))
tables.header = lambda *_arguments: Deaf() and ""
"""


def test_a_signal_where_python_cannot_raise(tmp_path):
    """In __del__ and in callbacks of weak references it would print the exception, and go on."""
    started = start(["-c", DEAF + STORED, "--exp2"], "--savedir", tmp_path, stderr=subprocess.PIPE)
    assert started.communicate()[1] == f"terminated: written: {tmp_path / NAMES[1]}\n".encode()
    assert started.returncode == 143


@pytest.mark.parametrize("writes", [("figures", "write"), ("result_files", "write_text")])
def test_nothing_of_an_earlier_result_stands_beside_a_new_one(writes, heard, stored, tmp_path, monkeypatch):
    """A run that ends before its TXT or its figures, or draws in another format, leaves none of an earlier run's."""
    assert run("main_llm.py --exp2", "--savedir", tmp_path) == 0
    (tmp_path / NAMES[0]).with_suffix(".svg").touch()
    (tmp_path / "mine.png").touch()
    module, name = writes
    write = {"figures": report_figures, "result_files": result_files}[module]
    monkeypatch.setattr(write, name, lambda *_args, **_kwargs: os.kill(os.getpid(), signal.SIGINT))
    assert run("main_llm.py --exp2", "--savedir", tmp_path) == 130
    assert files(tmp_path) == sorted(["mine.png", *NAMES[1 : 3 if module == "figures" else 2]])


def test_a_signal_before_anything_is_written(heard, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "_measure", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run("main_llm.py --exp2", "--savedir", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted: no result was written\n"


@pytest.mark.parametrize(
    ("module", "times", "sent"),
    [("numpy", 1, signal.SIGINT), ("matplotlib.ticker", 3, signal.SIGINT), ("torch._C", 1, signal.SIGTERM)],
)
def test_a_signal_while_modules_are_imported(module, times, sent, tiny_gpt2_folder, tmp_path):
    """When python tells that it has imported `module`."""
    arguments = ["--exp2", "--model", tiny_gpt2_folder, "--savedir", tmp_path / "out"]
    started = start(["-X", "importtime", "main_llm.py"], *arguments, stderr=subprocess.PIPE, text=True)
    for line in started.stderr:
        if line.split("|")[-1].strip() == module:
            for _ in range(times):
                started.send_signal(sent)
            break
    told = [line for line in started.stderr if not line.startswith("import time:")]
    assert told == [f"{'terminated' if sent == signal.SIGTERM else 'interrupted'}: no result was written\n"]
    assert started.wait() == 128 + sent


def test_other_programs_keep_their_signals():
    """Whoever imports lib/ from elsewhere, a notebook or a test, has Ctrl-C as before."""
    code = "import signal\nfrom lib.report import figures\nassert signal.getsignal(2) is signal.default_int_handler"
    assert start(["-c", code]).wait() == 0


# figures


def test_a_command_in_a_notebook(tmp_path):
    """There the environment names a backend that is the notebook's own."""
    result = checkout.ROOT / "results" / "smollm2-135m" / "exp3_lifecycle_ledger" / "exp3_results.json"
    backend = {"MPLBACKEND": "inline-nowhere"}
    arguments = ["--replot", result, "--savedir", tmp_path]
    assert start(["exp3_lifecycle_ledger.py"], *arguments, environment=backend).wait() == 0


def test_a_notebook_goes_on_as_it_was(tmp_path):
    """After %run, which runs a script in the notebook's own process."""
    result = TRACKED / "exp3_lifecycle_ledger" / "exp3_results.json"
    code = f"""
import runpy, sys, types
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: None, version_info=(9, 0))
import matplotlib
from matplotlib.colors import to_rgb
before = dict(matplotlib.rcParams)
sys.argv = ["exp3_lifecycle_ledger.py", "--replot", {str(result)!r}, "--savedir", {str(tmp_path)!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
import matplotlib.pyplot as plt
assert dict(matplotlib.rcParams) == before
assert plt.get_backend() == "svg" and not plt.get_fignums() and to_rgb("g") == (0, 0.5, 0)
plt.bar(["a", "b"], [1, 2])
"""
    assert start(["-c", code], environment={"MPLBACKEND": "svg"}).wait() == 0


def test_another_model_that_was_faster_is_not_overwritten(monkeypatch, tmp_path, capsys):
    """Both began before either had written."""
    path = TRACKED / "exp3_lifecycle_ledger" / "exp3_results.json"
    payload = json.loads(path.read_text())
    monkeypatch.setattr(
        experiment, "_measure", lambda *_: payload | {"provenance": payload["provenance"] | {"dtype": "?"}}
    )
    shutil.copy(path, tmp_path)
    assert run("exp3_lifecycle_ledger.py", "--savedir", tmp_path) == 2
    assert "is of another model" in capsys.readouterr().err
    assert files(tmp_path) == [path.name]
    assert (tmp_path / path.name).read_text() == path.read_text()


def test_a_figure_that_cannot_be_drawn_costs_no_other_file(monkeypatch, tmp_path, capsys):
    heads = TRACKED / "analyze_heads_simple" / "smollm2-135m_head_analysis.json"
    payload = json.loads(heads.read_text())
    monkeypatch.setattr(experiment, "_measure", lambda *_: payload)

    def fails(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(report_figures.sns, "heatmap", fails)
    assert run("analyze_heads_simple.py", "--savedir", tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"error: cannot make {tmp_path}/smollm2-135m_head_analysis.png (redraw it with --replot "
        f"{tmp_path}/{heads.name}): MemoryError: out of memory\n"
    )
    assert sorted(payload["files"]["figures"]) == ["smollm2-135m_head_analysis.png", "smollm2-135m_head_ranking.png"]
    assert files(tmp_path) == sorted(
        [heads.name, "smollm2-135m_head_analysis.txt", "smollm2-135m_head_ranking.png", *payload["files"]["extra"]]
    )
    assert "Attention of every head" in printed.out
    with pytest.raises(experiment.IncompleteError) as error:
        experiment.execute(importlib.import_module("analyze_heads_simple").EXPERIMENT, Options(savedir=tmp_path))
    assert error.value.payload == payload  # a study goes on with it
    monkeypatch.undo()
    assert run("analyze_heads_simple.py", "--replot", tmp_path / heads.name) == 0
    assert (tmp_path / "smollm2-135m_head_analysis.png").exists()


@pytest.mark.parametrize(
    ("script", "path", "words"),
    [
        ("main_llm.py", "main_llm/smollm2-135m_layerwise.json", ["layer (block output, before the final norm)"]),
        ("main_llm.py", "main_llm/smollm2-135m_layer11_3d.json", ["dim", "Summer"]),
        exhaustive_unless(False, "exp7_head_sweep.py", "exp7_head_sweep/exp7_results.json", ["head"]),
    ],
)
def test_figures_in_other_formats(script, path, words, tmp_path):
    """Text in vector figures is text; the same figure is the same file; --dpi is that of PNGs."""
    for folder, flags in (("a", ["svg", "pdf", "png"]), ("b", ["pdf", "svg", "svg"]), ("c", ["png", "--dpi", "220"])):
        assert run(script, "--replot", TRACKED / path, "--savedir", tmp_path / folder, "--format", *flags) == 0
    stems = {file.stem for file in (tmp_path / "a").rglob("*.png")}
    assert stems
    drawn = {folder: {file.name: file for file in (tmp_path / folder).rglob("*.[sp]*")} for folder in "abc"}
    for stem in stems:
        drawing, page = drawn["a"][f"{stem}.svg"], drawn["a"][f"{stem}.pdf"]
        text = " ".join(ElementTree.parse(drawing).getroot().itertext())
        assert all(word in text for word in words), text
        assert page.read_bytes().startswith(b"%PDF")
        assert drawing.read_bytes() == drawn["b"][drawing.name].read_bytes()
        assert page.read_bytes() == drawn["b"][page.name].read_bytes()
        size, double = (Image.open(drawn[folder][f"{stem}.png"]).size for folder in "ac")
        assert double == pytest.approx((2 * size[0], 2 * size[1]), abs=2)
        assert f"{stem}.png" not in drawn["b"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--format", "jpg"], "invalid choice: 'jpg'"), (["--dpi", "5"], "--dpi must be from 20 to 1200, not 5")],
)
def test_formats_that_are_none(flags, message, tmp_path, capsys):
    assert run("main_llm.py", "--replot", RESULT, "--savedir", tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


TOKENS = [
    *("\n", "\t", "\r\n", "\x00", "\x1b[31m", "\u2028", "\u200d", "\ufeff", "\u00a0", "\u00ad", "\ue000", "\U0010ffff"),
    *("$", "$$", "$x$", "\\$", "$\\frac{", "a$b", "_", "^", "\\", "%", "{}", "#", "&", "~", "", " ", " the"),
    *("模型", "한국어", "नमस्ते", "ไทย", "עברית", "عربي", "😀", "🤖", "🇩🇪", "\u0301", "e\u0301", "\u093e", "\ud83d"),
    *("x" * 5000, "-" * 64, " " * 200, "模" * 300),
]
NAME = "my_$model^2$ [v2] {x} %s \\alpha 模型 $\\frac{"


def redrawn(path, change, tmp_path):
    """The folder of the figures of a stored result that `change` has altered; a warning is an error."""
    payload = json.loads(path.read_text())
    of = {e.name: e for e in main_llm.EXPERIMENTS.values()} | {"exp6": exp6(), "compare_3d": compare_3d()}
    change(payload)
    payload["config"]["model_name"] = NAME
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, draw in enumerate(of[payload["experiment"]].figures().values()):
            report_figures.write(tmp_path / f"{i}.png", draw, catalogue.concluded(payload))
    return tmp_path


def exp6():
    import exp6_trigger_census

    return exp6_trigger_census.EXPERIMENT


def compare_3d():
    import compare_3d_before_after_pruning

    return compare_3d_before_after_pruning.EXPERIMENT


def of_tokens(payload):
    """One row for each of TOKENS."""
    results = payload["results"]
    for key in ("before", "after", "values"):
        if key in results:
            results[key] = (results[key] * len(TOKENS))[: len(TOKENS)]
    results["tokens"] = TOKENS


def of_few_tokens(payload):
    census = payload["results"]["census"]
    census["failing"] = [{"id": i, "token": token, "value": 1.0} for i, token in enumerate(TOKENS)]
    census |= {"n_failing": len(TOKENS), "n_spiking": len(TOKENS) + 1}
    payload["results"]["census"] = census


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("main_llm/smollm2-135m_layerwise.json", lambda _payload: None),
        ("main_llm/smollm2-135m_layer11_3d.json", of_tokens),
        ("compare_3d_before_after_pruning/layer11_comparison.json", of_tokens),
        ("exp6_trigger_census/exp6_results.json", of_few_tokens),
    ],
)
def test_any_name_and_token_is_drawn(path, change, tmp_path):
    assert files(redrawn(TRACKED / path, change, tmp_path))


def test_attention_logits_of_any_token_and_of_many(tmp_path):
    for tokens, widths in ((TOKENS, (None, 7)), ([f" word {i}" for i in range(200)], (7,))):
        rows = [[1.0] * (i + 1) for i in range(len(tokens))]
        results = Results(layer=0, tokens=tokens, logits=[rows] * 4, mean=rows, first_token=[])
        result = result_files.Result("attention_logits", {}, {"model_name": NAME}, results, None, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for width in widths:
                report_figures.write(tmp_path / "logits.png", figures.attention_logits, result, width=width)


def test_what_has_no_glyph_is_escaped():
    from lib.report.fonts import legible

    shown = {
        "a\nb\t\x00": "a\\nb\\t\\x00",
        "\U0010fffd": "\\U0010fffd",
        "\ud83d": "\\ud83d",
        "$x$": r"\$x\$",
        " the": " the",
        "\u00e9 \u00d7 \u2192 \u2212": "\u00e9 \u00d7 \u2192 \u2212",
        "\u0301": "\\u0301",
        "e\u0301": "e\u0301",
        "\u00a0": "\\xa0",
    }
    payload = {"a": [*shown], "b": {"c": [1, None, 0.5, True]}}
    assert legible(payload) == {"a": [*shown.values()], "b": {"c": [1, None, 0.5, True]}}
    assert len(legible("x" * 1000)) < 100
    assert [*payload["a"]] == [*shown]


def test_a_font_of_this_machine_that_has_the_glyph_is_used(tmp_path, monkeypatch):
    from lib.report import fonts

    manager = fonts.font_manager
    own = Path(fonts.matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf"
    known, there = (fonts._face(path).get_charmap() for path in (manager.findfont(fonts.FAMILY), str(own)))
    only_there = next(chr(c) for c in there if chr(c).isalnum() and c not in known)
    others = [font for font in manager.fontManager.ttflist if "STIX" not in font.name]
    monkeypatch.setattr(manager.fontManager, "ttflist", others)
    assert fonts.legible(only_there) == only_there.encode("unicode_escape").decode()
    manager.fontManager.addfont(shutil.copy(own, tmp_path))
    assert fonts.legible(only_there) == only_there
    figure, ax = report_figures.make_axes()
    ax.set_title(only_there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_figures.save(figure, tmp_path / "a.png")


# names


@pytest.mark.filterwarnings("error:.*[Gg]lyph")
@pytest.mark.parametrize("name", [NAME, "-x", *(exhaustive_unless(False, of) for of in (".hidden", "é" * 126, "a\nb"))])
def test_a_model_folder_of_any_name(name, tiny_gpt2_folder, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "_misfit", lambda *_: None)  # random weights fit no text
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_gpt2_folder, tmp_path / name)
    code = run("main_llm.py --exp2", f"--model={name}", "--dataset", text_file, *SAMPLE, "--savedir", "out")
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    stem = Options(model=name).model_name
    assert files(tmp_path / "out") == sorted([f"{stem}.png", f"{stem}_layerwise.json", f"{stem}_layerwise.txt"])
    assert run("main_llm.py", "--replot", f"out/{stem}_layerwise.json") == 0


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Options(model=".").model_name == tmp_path.name
    assert Options(model="..").model_name == tmp_path.parent.name
    assert Options(model="/").model_name
    long = [Options(model="x" * 300 + end).model_name for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name.encode()) < 200 for name in (*long, Options(model="é" * 5000).model_name))
    assert Options(model="org/Model-1.5B").model_name == "Model-1.5B"


# causes


def raised(function, *args, **kwargs):
    with pytest.raises(Exception) as error:  # noqa: PT011
        function(*args, **kwargs)
    return error.value


def of_another(outer, inner, explicit=True):
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error if explicit else None
    except Exception as error:
        return error


class Strict:
    """What a configuration of the pinned libraries says to a wrong type."""

    def __call__(self):
        import transformers

        transformers.GPT2Config(n_layer="two")


def cases():
    import safetensors
    import tokenizers
    import torch
    from datasets.exceptions import DatasetGenerationError

    def torch_load():
        Path("broken.bin").write_bytes(b"garbage" * 9)
        torch.load("broken.bin", weights_only=True)

    def transformers_load():
        import transformers

        Path("model").mkdir()
        Path("model/config.json").write_text("{x")
        transformers.AutoConfig.from_pretrained("model")

    def generation():
        return DatasetGenerationError("An error occurred while generating the dataset")

    return {
        "second line": (raised(Strict()), ["n_layer", "expected int, got str (value: 'two')"]),
        "of a data set": (
            of_another(generation(), ValueError("Expected 1 fields in line 3, saw 2")),
            ["Expected 1 fields in line 3, saw 2"],
        ),
        "two deep": (
            of_another(generation(), of_another(OSError("Failed to read"), KeyError("text"))),
            ["'text' is missing"],
        ),
        "from None": (
            of_another(ValueError("Unable to load weights"), OSError(5, "Input/output error", "a.bin"), False),
            ["Unable to load weights: Input/output error: a.bin"],
        ),
        "pickle": (raised(torch_load), ["Weights only load failed: Unsupported operand"]),
        "json of a library": (raised(transformers_load), ["config.json", "line 1 column 2"]),
        "safetensors": (raised(safetensors.safe_open, "broken.bin", "pt"), ["header"]),
        "tokenizers": (
            raised(tokenizers.Tokenizer.from_str, '{"version":"1.0","model":{"type":"XX"}}'),
            ["damaged, or of a newer version of tokenizers"],
        ),
        "key": (raised({}.__getitem__, "hidden_size"), ["'hidden_size' is missing"]),
        "no file": (raised(open, "/nonexistent/x"), ["No such file or directory: /nonexistent/x"]),
        "memory": (MemoryError(), ["out of memory"]),
        "memory of torch": (raised(torch.empty, 10**15), ["out of memory"]),
        "package": (raised(__import__, "einops_nowhere.sub"), ["pip install einops_nowhere"]),
        "part of a package": (raised(__import__, "torch.nowhere"), ["No module named 'torch.nowhere'"]),
        "nothing said": (RuntimeError(), ["RuntimeError"]),
        "one word": (ValueError("text"), ["ValueError: text"]),
        "colours and addresses": (
            ValueError("\x1b[31mbroken\x1b[0m   file\n\nhttps://example.org/help\nof version 3"),
            ["broken file of version 3"],
        ),
        "a sum of words": (ValueError("word " * 1000), ["word word"]),
        "itself": (of_another(ValueError("wrong: 5"), ValueError("wrong: 5")), ["wrong: 5"]),
    }


def test_causes(tmp_path, monkeypatch):
    from lib.run.errors import LONGEST, cause

    monkeypatch.chdir(tmp_path)
    for name, (error, expected) in cases().items():
        line = cause(error)
        assert all(part in line for part in expected), (name, line)
        assert len(line) <= LONGEST, name
        assert line.isprintable(), name
    assert cause(ValueError("wrong: 5")) == "wrong: 5"


def from_the_hub(kind, status=404):
    import httpx2

    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub/x"))
    return getattr(huggingface_hub.errors, kind)("404 Client Error. (Request ID: abc)\n\nNot Found", response=response)


HUB = {
    "gated": (lambda: from_the_hub("GatedRepoError", 403), ["it is gated", "accept its terms", "hf auth login"]),
    "unknown": (lambda: from_the_hub("RepositoryNotFoundError"), ["unknown model 'org/x'", "private"]),
    "revision": (lambda: from_the_hub("RevisionNotFoundError"), ["model 'org/x': it has no revision 'main'"]),
    "token": (lambda: from_the_hub("HfHubHTTPError", 401), ["access token"]),
    "too many": (lambda: from_the_hub("HfHubHTTPError", 429), ["later"]),
    "down": (lambda: from_the_hub("HfHubHTTPError", 503), ["503", "later"]),
    "local mistake": (lambda: ValueError("model type `foo` is not known"), ["model type `foo` is not known"]),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("case", HUB)
def test_what_the_hub_says(case, wrapped, monkeypatch):
    from lib.model import hub

    make, expected = HUB[case]
    error = of_another(OSError("Can't load it. Make sure that there is no folder"), make()) if wrapped else make()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub._Offline, "why", None)
    line = hub.why_not("org/x", error)
    assert all(part in line for part in expected), line
    assert "reach" not in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what is wrong in the cache is that, too
    assert "reach" not in hub.why_not("org/x", error)


OFFLINE = ["HF_HUB_OFFLINE=1", "--model smollm2-135m"]
MISTAKES = {  # what is typed: what the line says, what not
    "typo": (["--model", "gpt2-mdium"], ["unknown model 'gpt2-mdium'", "not here", *OFFLINE], []),
    "below a folder of ours": (["--model", "models/gpt2"], ["no such model folder: models/gpt2", *OFFLINE], []),
    "folder": (["--model", "./gpt2"], ["no such model folder: ./gpt2"], ["hub"]),
    "slash": (["--model", "gpt2/"], ["no such model folder"], ["hub"]),
    "home": (["--model", "~/gpt2"], ["no such model folder"], ["hub"]),
    "three parts": (["--model", "a/b/c"], ["no such model folder: a/b/c"], ["reach"]),
    "spaces": (["--model", "my model"], ["no such model folder: my model", "OWNER/NAME"], ["reach"]),
    "too long": (["--model", "x" * 5000], ["no such model folder"], ["reach"]),
    "empty": (["--model", ""], ["--model is empty"], ["reach"]),
    "weights": (["--model", "models/model.safetensors"], ["is a file", "--model models"], ["reach"]),
    "weights here": (["--model", "pytorch_model.bin"], ["is a file"], ["--model", "reach"]),  # no folder of a model
    "configuration": (["--model", "models/config.json"], ["is a file", "--model models"], ["reach"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_local_mistake_is_not_the_networks(case, tmp_path, monkeypatch, capsys):
    from lib.model import hub

    arguments, expected, unexpected = MISTAKES[case]
    monkeypatch.setattr(hub._Offline, "why", None, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("models/model.safetensors", "models/config.json", "pytorch_model.bin"):
        Path(name).touch()
    assert run("main_llm.py --exp2", *arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in expected), line
    assert not any(part in line for part in unexpected), line


def test_why_the_hub_was_not_reached(monkeypatch):
    """The connection's own reason; or the flag that was typed."""
    from lib.model import hub

    error = huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(hub._Offline, "why", None)
    hub.reachable.cache_clear()
    assert not hub.reachable()
    hub.reachable.cache_clear()
    assert "cannot reach the Hugging Face hub (Connection refused)" in hub.why_not("gpt2", error)
    hub.go_offline()
    assert "(--offline)" in hub.why_not("gpt2", error)


def test_unexpected_arguments_are_one_line(capsys):
    for script in ("verify_claims.py", "check_controls.py", "cluster.py", "study.py", "page.py"):
        assert run(script, "--frobnicate") == 2
        assert capsys.readouterr().err.count("\n") == 1, script


# folders


def test_without_a_folder_for_the_cache(tmp_path, monkeypatch):
    from lib.run import storage

    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lasting = tmp_path / "home" / ".cache" / "massive-activations"
    assert storage.cache() == lasting
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert storage.cache() == lasting
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert storage.cache() == tmp_path / "xdg" / "massive-activations"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    temporary = storage.cache()
    assert temporary.is_dir()
    assert tmp_path not in temporary.parents
    assert storage.cache() == temporary
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert storage.cache() == temporary


def test_without_any_folder_to_write(monkeypatch):
    from lib.run import storage

    def nowhere(**_):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    monkeypatch.setattr(storage, "_temporary", storage._temporary.__wrapped__)
    monkeypatch.setattr(storage.tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME or TMPDIR"):
        storage.cache()


def test_a_machine_without_a_home_is_not_told_so(tmp_path):
    """Of matplotlib's folders, and of the hub's and our own."""
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "MPLCONFIGDIR", "TMPDIR")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    environment = {name: f"/dev/null/{name}" for name in names}
    started = start(["-c", STORED, "--exp2"], "--savedir", tmp_path, environment=environment, **pipes)
    assert (started.communicate()[1], started.returncode) == (b"", 0)
    assert files(tmp_path) == NAMES


def test_a_gguf_file_without_a_folder_for_the_cache(tiny_gguf, monkeypatch):
    from lib.model import models

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    assert models.load(Options(model=str(tiny_gguf), device="cpu")).arch.n_layers


def test_the_hubs_folder_cannot_be_written():
    from lib.model import hub

    path = os.path.join(huggingface_hub.constants.HF_HUB_CACHE, "models--gpt2")
    error = of_another(OSError("Can't load the configuration"), PermissionError(13, "Permission denied", path))
    line = hub.why_not("gpt2", error)
    assert f"Permission denied: {path}" in line
    assert "HF_HOME" in line


def test_a_current_folder_that_is_gone(monkeypatch, capsys):
    monkeypatch.setattr(os, "getcwd", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No such file or directory")))
    assert run("main_llm.py --exp2") == 2
    assert capsys.readouterr().err.startswith("error: the folder in which this is started")
