"""Neurons of experts: what they contribute, by NumPy from the weights and a routing made here; what is left with them
off, against copies of the model whose down projections have zeros."""

import copy
import dataclasses
import json

import accelerate
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import exp2c_mlp_internal_analysis
import exp4_neuron_sets
import exp5_interventions
from experiments.mlp_internal import text as mlp_internal_text
from experiments.neuron_sets import measure, text
from lib import catalogue
from lib.core import mlp, neurons, place
from lib.core.results import OfExpert
from lib.model import edits, hooks
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.report import result_files
from lib.run.errors import UserError
from tests import every_type, pretend
from tests.conftest import by_turns
from tests.core.test_sweep import fixed_place, windows_of

pytestmark = pytest.mark.usefixtures("few_draws")
IDS = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(3))
POSITIONS, DIM = [0, 5, 11], 3
# routing normalised or not, by sigmoid, with a bias; a shared expert, a gated one; biases, transposed and interleaved
# weights; layers without experts, without attention
TYPES = ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "olmoe", "glm4_moe", "jamba"]
SHARED = {"qwen2_moe": "shared_expert", "deepseek_v3": "shared_experts", "glm4_moe": "shared_experts"}
GAIN = 2e4  # of a planted neuron
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]


def loaded(model_type, dtype=torch.float32, implementation="eager"):
    model = every_type.build(model_type).to(dtype)
    model.set_experts_implementation(implementation)
    return LanguageModel(model, Architecture(model), None, {})


@pytest.fixture(params=TYPES, scope="module")
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def lm(model_type):
    return loaded(model_type)


def mlp_of(model, layer):
    block = model.base_model.layers[layer]
    return getattr(block, "mlp", None) or block.feed_forward


def layer_of(lm):
    return next(layer for layer in range(lm.arch.n_layers) if hasattr(mlp_of(lm.model, layer), "experts"))


def mixture_of(model, layer):
    """(the mixture, its router, its experts), by transformers' names."""
    module = mlp_of(model, layer)
    return module, getattr(module, "gate", None) or module.router, module.experts


def array(tensor):
    return tensor.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def routing_of(model_type, config, router, hidden):
    """[(expert, routing weight)] of one token."""
    logits = array(router.weight) @ hidden
    k = config.num_experts_per_tok
    if model_type == "gpt_oss":
        logits += array(router.bias)
        chosen = np.argsort(-logits)[:k]
        weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
    elif model_type in ("deepseek_v3", "glm4_moe"):  # of one group
        scores = sigmoid(logits)
        chosen = np.argsort(-(scores + array(router.e_score_correction_bias)))[:k]
        weights = scores[chosen] / scores[chosen].sum() * config.routed_scaling_factor
    else:
        scores = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-scores)[:k]
        norm = model_type == "mixtral" or getattr(config, "norm_topk_prob", False)
        weights = scores[chosen] / (scores[chosen].sum() if norm else 1)
    return list(zip(chosen.tolist(), weights, strict=True))


def gated(model_type, config, gate, up):
    if model_type == "gpt_oss":
        gate, up = gate.clip(max=config.swiglu_limit), up.clip(-config.swiglu_limit, config.swiglu_limit)
        return (up + 1) * gate * sigmoid(config.swiglu_alpha * gate)
    return gate * sigmoid(gate) * up


def by_hand(model_type, model, layer, hidden):
    """({(expert, neuron): contribution to DIM}, what biases add), of one token; hidden: (hidden,)."""
    config, (module, router, experts) = model.config, mixture_of(model, layer)
    parts, bias = {}, 0.0
    for expert, weight in routing_of(model_type, config, router, hidden):
        first, down = array(experts.gate_up_proj[expert]), array(experts.down_proj[expert])
        if model_type == "gpt_oss":
            entered = first.T @ hidden + array(experts.gate_up_proj_bias[expert])
            gate, up, down = entered[::2], entered[1::2], down.T
            bias += weight * array(experts.down_proj_bias[expert])[DIM]
        else:
            gate, up = np.split(first @ hidden, 2)
        contribution = weight * gated(model_type, config, gate, up) * down[DIM]
        parts |= {(expert, neuron): value for neuron, value in enumerate(contribution)}
    if model_type in SHARED:
        shared = getattr(module, SHARED[model_type])
        gate, up, down = (array(getattr(shared, f"{name}_proj").weight) for name in ("gate", "up", "down"))
        inner = gated("", config, gate @ hidden, up @ hidden)
        factor = sigmoid(array(module.shared_expert_gate.weight)[0] @ hidden) if model_type == "qwen2_moe" else 1.0
        parts |= {("shared", neuron): value for neuron, value in enumerate(factor * inner * down[DIM])}
    return parts, bias


def through_the_mixture(model, layer):
    """((windows, seq, hidden) input, output) of the mixture in a pass of the model as it is."""
    seen = {}

    def see(_module, args, kwargs, output):
        first = args[0] if args else kwargs["hidden_states"]
        given = output[0] if isinstance(output, tuple) else output
        seen.update(taken=first.clone().view(*IDS.shape, -1), given=given.clone().view(*IDS.shape, -1))

    handle = mixture_of(model, layer)[0].register_forward_hook(see, with_kwargs=True)
    with torch.inference_mode():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    return seen["taken"], seen["given"]


def measured(lm, layer):
    place = fixed_place(POSITIONS, lm.arch.n_layers)
    values = neurons.checkpoints_at_place(lm, windows_of(IDS), place, layer, 2)
    return mlp.at_place(lm.arch, layer, DIM, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_contributions_are_products(model_type, dtype, implementation):
    lm = loaded(model_type, dtype, implementation)
    layer = layer_of(lm)
    taken, given = through_the_mixture(lm.model, layer)
    expected, biases, output = {}, 0.0, 0.0
    for window, position in enumerate(POSITIONS):
        parts, bias = by_hand(model_type, lm.model, layer, array(taken[window, position]))
        for name, value in parts.items():
            expected[name] = expected.get(name, 0) + value / len(POSITIONS)
        biases += bias / len(POSITIONS)
        output += given[window, position, DIM].item() / len(POSITIONS)
    got, check = measured(lm, layer)
    size = sum(map(abs, expected.values()))
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    assert {row.name for row in got} == {OfExpert(*name) for name in expected}
    assert max(abs(row.contribution - expected[row.name]) for row in got) < tolerance * size
    assert [check.bias, check.output] == pytest.approx([biases, output], abs=tolerance * size)
    assert check.sum + check.bias == pytest.approx(output, abs=tolerance * size)
    assert bool(biases) == (model_type == "gpt_oss")
    along = [row.contribution * (1 if check.output >= 0 else -1) for row in got]
    assert along == sorted(along, reverse=True)


@pytest.fixture
def some(lm):
    """Of every expert and of the shared one."""
    layer = layer_of(lm)
    own, _check = measured(lm, layer)
    names = {OfExpert(e, n) for e in range(len(mixture_of(lm.model, layer)[2].down_proj)) for n in (1, 2, 5)}
    names |= {row.name for row in own[:3]} | {row.name for row in own if row.expert == "shared" and row.neuron < 3}
    return layer, [mlp.number_of(lm.arch, layer, name) for name in sorted(names, key=str)], names


def zeroed(lm, layer, names):
    """A copy in which the columns of these neurons are zero."""
    model = copy.deepcopy(lm.model)
    module, _router, experts = mixture_of(model, layer)
    for name in names:
        if name.expert == "shared":
            getattr(module, SHARED[model.config.model_type]).down_proj.weight.data[:, name.neuron] = 0
        elif model.config.model_type == "gpt_oss":
            experts.down_proj.data[name.expert, name.neuron] = 0
        else:
            experts.down_proj.data[name.expert, :, name.neuron] = 0
    return model


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_off_is_zero_columns(lm, some, implementation):
    lm.model.set_experts_implementation(implementation)
    layer, chosen, names = some
    everything = {mlp.name_of(lm.arch, layer, n) for n in range(lm.arch.n_neurons(layer))}
    before = logits(lm.model)
    for numbers, off in ((chosen, names), ({*range(len(everything))} - {*chosen}, everything - names)):
        with neurons.NeuronsOff("off", "off", layer, tuple(numbers)).hooks(lm.arch):
            got = logits(lm.model)
        assert torch.equal(got, logits(zeroed(lm, layer, off)))
        assert (got - before).abs().max() > 1e-4
        assert torch.equal(logits(lm.model), before)


def test_off_at_some_positions(lm, some):
    """The mixture gives there what a copy gives, elsewhere what it gave."""
    layer, chosen, names = some
    where = torch.zeros(IDS.shape, dtype=torch.bool)
    where[range(3), POSITIONS] = True
    _taken, before = through_the_mixture(lm.model, layer)
    _taken, without = through_the_mixture(zeroed(lm, layer, names), layer)
    with edits.neurons_off(lm.arch, layer, chosen, where):
        _taken, got = through_the_mixture(lm.model, layer)
    torch.testing.assert_close(got, torch.where(where[..., None], without, before), rtol=0, atol=1e-6)
    assert (without - before).abs().amax(-1)[where].min() > 1e-4


def test_weights_are_restored_after_an_error(lm, some):
    layer, chosen, _names = some
    before, own = logits(lm.model), mixture_of(lm.model, layer)[2].down_proj

    def fail(*_):
        raise UserError("here")

    for where in (None, torch.ones(IDS.shape, dtype=torch.bool)):
        handle = mixture_of(lm.model, layer)[2].register_forward_hook(fail)
        with pytest.raises(UserError, match="here"), edits.neurons_off(lm.arch, layer, chosen, where):
            logits(lm.model)
        handle.remove()
        assert mixture_of(lm.model, layer)[2].down_proj is own
        assert torch.equal(logits(lm.model), before)


def test_twice_off(lm, some):
    """What one change has off stays off in another."""
    layer, chosen, names = some
    with edits.neurons_off(lm.arch, layer, chosen[::2]), edits.neurons_off(lm.arch, layer, chosen[1::2]):
        got = logits(lm.model)
    assert torch.equal(got, logits(zeroed(lm, layer, names)))


def test_names_count_all_neurons(lm):
    layer = layer_of(lm)
    names = [mlp.name_of(lm.arch, layer, n) for n in range(lm.arch.n_neurons(layer))]
    assert len({*names}) == len(names)
    assert [mlp.number_of(lm.arch, layer, name) for name in names] == [*range(len(names))]


def test_what_experts_read(lm, model_type):
    """Weights of what enters the activation function, by hand, of two neurons of every expert and of the shared one."""
    layer = layer_of(lm)
    module, _router, own = mixture_of(lm.model, layer)
    place = fixed_place(POSITIONS, lm.arch.n_layers)
    values = neurons.checkpoints_at_place(lm, windows_of(IDS), place, layer, 2)
    taken, _given = through_the_mixture(lm.model, layer)
    hidden = array(taken[range(3), POSITIONS])
    chosen = {OfExpert(e, n) for e in np.flatnonzero(values["routing"].any(0)).tolist() for n in (0, 7)}
    if model_type in SHARED:
        chosen.add(OfExpert("shared", 7))
    for row in measure.reads(lm.arch, layer, values, sorted(chosen, key=str), top=64):
        here = slice(None)
        if row.expert == "shared":
            shared = getattr(module, SHARED[model_type])
            weights = {role: array(getattr(shared, f"{role}_proj").weight)[row.neuron] for role in ("gate", "up")}
        elif model_type == "gpt_oss":
            first = array(own.gate_up_proj[row.expert]).T
            weights = {"gate": first[2 * row.neuron], "up": first[2 * row.neuron + 1]}
        else:
            gate, up = np.split(array(own.gate_up_proj[row.expert]), 2)
            weights = {"gate": gate[row.neuron], "up": up[row.neuron]}
        if row.expert != "shared":
            config, router = lm.model.config, mixture_of(lm.model, layer)[1]
            here = [row.expert in dict(routing_of(model_type, config, router, token)) for token in hidden]
        mean = hidden[here].mean(0)
        assert {*row.projections} == {"gate", "up"}
        for role, projection in row.projections.items():
            contributions = {i.dim: i.contribution for i in projection.inputs}
            got, expected = np.array([contributions[dim] for dim in range(64)]), weights[role] * mean
            np.testing.assert_allclose(got, expected, atol=1e-5)
            assert projection.sum + projection.bias == pytest.approx(projection.pre_activation, abs=1e-4)
            assert bool(projection.bias) == (model_type == "gpt_oss")


def planted(model_type, dtype=torch.float32):
    """One neuron of one expert writes a massive activation into dim 7 wherever that expert is chosen."""
    lm = loaded(model_type, dtype)
    layer = layer_of(lm)
    down = mixture_of(lm.model, layer)[2].down_proj.data
    if model_type == "gpt_oss":
        down[2, 5, 7] = GAIN
    else:
        down[2, 7, 5] = GAIN
    words = WordLevel({str(token): token for token in range(128)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    return dataclasses.replace(lm, tokenizer=tokenizer), layer


WINDOWS = windows_of(torch.randint(3, 100, (8, 16), generator=torch.Generator().manual_seed(5)))


def results(script, lm, windows=WINDOWS, **flags):
    experiment = script.EXPERIMENT
    options = script.Options(batch_size=3, **flags)
    return catalogue.judged(experiment.name, experiment.run(lm, windows, options))


def stored(script, found):
    """As it is read again."""
    payload = {
        "schema_version": result_files.SCHEMA_VERSION,
        "experiment": script.EXPERIMENT.name,
        "provenance": {
            "model": {"name": "tiny", "type": "mixture"},
            "data": {"windows": 8, "seqlen": 16, "bos": False, "dataset": "random"},
            **dict.fromkeys(("dtype", "device", "time", "command"), ""),
            "seed": 0,
        },
        "config": {"model_name": "tiny"},
        "results": json.loads(json.dumps(found)),
        "files": {},
    }
    return catalogue.concluded(payload)


@pytest.mark.parametrize(
    ("model_type", "dtype"), by_turns(["mixtral", "qwen2_moe", "gpt_oss", "jamba"], [torch.float32, torch.bfloat16])
)
def test_a_planted_neuron_is_the_set(model_type, dtype):
    lm, layer = planted(model_type, dtype)
    found = results(exp4_neuron_sets, lm, layer_id=layer, n_whole=2, n_random=3)
    assert [(row["expert"], row["neuron"]) for row in found["minimal_set"]] == [(2, 5)]
    assert found["place"]["dim"] == 7
    assert found["keep_only_share"]["mean"] == pytest.approx(1, abs=0.02)
    assert found["remove_share"]["mean"] == pytest.approx(0, abs=0.02)
    check = found["contribution_check"]
    size = GAIN * found["null"]["activity_of_set"]  # of windows, whose signs differ
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert check["sum"] + check["bias"] == pytest.approx(check["output"], abs=tolerance * size)
    assert found["mixture"]["reached"][0]["expert"] == 2
    assert found["width"] == lm.arch.n_neurons(layer)
    active = {(row.expert, row.neuron) for row in neurons_there(lm, layer)}
    draws = [tuple(name) for draw in found["null"]["draws"] for name in draw["neurons"]]
    assert draws
    assert {*draws} <= active - {(2, 5)}
    assert found["conclusion"]["values"]["neurons"] == [[2, 5]]
    again = stored(exp4_neuron_sets, found)
    said = text.summarise(again)
    assert "\n   2.5 " in said
    assert "mean |routing weight x activation|" in said
    for draw in exp4_neuron_sets.figures().values():
        draw(again)


def neurons_there(lm, layer):
    """Those that give something at the place of exp4."""
    at = place.find(lm, WINDOWS, 3)
    values = neurons.checkpoints_at_place(lm, WINDOWS, at, layer, 3)
    return [row for row in mlp.at_place(lm.arch, layer, at.dim, values)[0] if row.activation]


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_inside(model_type):
    lm, layer = planted(model_type)
    found = results(exp2c_mlp_internal_analysis, lm, layer_id=layer)
    assert found["conclusion"]["verdict"] == f"1 of {lm.arch.n_neurons(layer)} neurons"
    assert (found["contributions"][0]["expert"], found["contributions"][0]["neuron"]) == (2, 5)
    assert found["contribution_check"]["relative_error"] < 1e-5
    points = {point["name"]: point for point in found["checkpoints"]}
    assert ("shared_product" in points) == ("shared_output" in points) == (model_type == "qwen2_moe")
    assert points["routing"]["at"]["index"] in range(4)
    assert list(found["replaced"]) == (["actual"] if model_type == "gpt_oss" else ["actual", "identity", "relu"])
    again = stored(exp2c_mlp_internal_analysis, found)
    said = mlp_internal_text.summarise(again)
    assert ("Not with another activation function" in said) == (model_type == "gpt_oss")
    assert ("biases of the down projections" in said) == (model_type == "gpt_oss")
    for draw in exp2c_mlp_internal_analysis.figures().values():
        draw(again)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_activation_function_replaced(model_type, implementation):
    """In every expert, as in a copy whose modules have another."""
    lm = loaded(model_type, implementation=implementation)
    layer = layer_of(lm)
    for function, module in ((torch.relu, torch.nn.ReLU()), (lambda x: x, torch.nn.Identity())):
        model = copy.deepcopy(lm.model)
        mixture, _router, own = mixture_of(model, layer)
        own.act_fn = module
        if model_type in SHARED:
            getattr(mixture, SHARED[model_type]).act_fn = module
        with edits.activation_replaced(lm.arch, layer, function):
            assert torch.equal(logits(lm.model), logits(model))
    assert not torch.equal(logits(lm.model), logits(model))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_the_writer_off(model_type):
    """Experiment 5 turns it off where it writes, and everywhere."""
    lm, layer = planted(model_type)
    found = results(exp5_interventions, lm, layer_id=layer, factors=(), epsilons=(0.3,))
    assert [(row["expert"], row["neuron"]) for row in found["mlp"]["neurons"]] == [(2, 5)]
    for name in ("neurons_off", "neurons_off_there"):
        assert found["conditions"][name]["left"]["mean"] == pytest.approx(0, abs=0.01)


def test_dense_results_have_no_experts():
    lm, _layer = planted("deepseek_v3")
    found = results(exp4_neuron_sets, lm, layer_id=0, n_whole=1, n_random=0)
    assert "mixture" not in found
    assert isinstance(found["width"], int)
    assert not any("expert" in row for row in [*found["minimal_set"], *found["reads"]["neurons"]])
    found = results(exp2c_mlp_internal_analysis, lm, layer_id=0)
    assert "mixture" not in found
    assert not any("expert" in row for row in found["contributions"])


def test_one_expert_a_token():
    """And experts that no token reaches."""
    model = every_type.build("mixtral")
    for block in model.model.layers:
        block.mlp.gate.top_k = 1
        block.mlp.gate.weight.data[3] = 0
    lm = LanguageModel(model, Architecture(model), None, {})
    got, check = measured(lm, 1)
    assert check.relative_error < 1e-5
    assert len({row.expert for row in got}) < 4
    every = [n for n in range(lm.arch.n_neurons(1)) if n // 96 not in {row.expert for row in got}]
    place = fixed_place(POSITIONS, 3)
    with edits.neurons_off(lm.arch, 1, every):
        values = neurons.checkpoints_at_place(lm, windows_of(IDS), place, 1, 2)
    assert mlp.at_place(lm.arch, 1, DIM, values)[1] == check


def test_refused():
    model = every_type.build("mixtral")
    for block in model.model.layers:
        block.mlp.experts.has_post_expert_norm, block.mlp.experts.post_expert_norm = True, torch.nn.Identity()
    with pytest.raises(UserError, match="a norm follows the down projection of each of its experts"):
        Architecture(model).require_neurons(1)
    model = every_type.build("qwen2_moe")
    for block in model.model.layers:
        block.mlp.shared_expert.down_proj = torch.nn.Sequential(
            block.mlp.shared_expert.down_proj, torch.nn.LayerNorm(64)
        )
    arch = Architecture(model)
    assert arch.layers[1].shared_expert == "mlp.shared_expert"
    with pytest.raises(UserError, match="those of the shared expert beside its experts are not known"):
        arch.require_neurons(1)


def test_random_sets_are_of_experts_that_are_reached(monkeypatch):
    """All windows begin with one token, which two of four experts get."""
    monkeypatch.setattr(measure, "MATCHED", 400)
    lm, layer = planted("mixtral")
    ids = WINDOWS.ids.clone()
    ids[:, 0] = 5
    found = results(exp4_neuron_sets, lm, windows_of(ids), layer_id=layer, position=0, dim=3, n_whole=1, n_random=4)
    reached = {row["expert"] for row in found["mixture"]["reached"]}
    assert len(reached) == 2
    drawn = {expert for draw in found["null"]["draws"] for expert, _neuron in draw["neurons"]}
    assert drawn
    assert drawn <= reached


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])
def test_weights_that_are_elsewhere_until_they_run(model_type):
    """As accelerate leaves them: of a model that does not fit into memory."""
    lm, layer = planted(model_type)
    chosen = range(3, lm.arch.n_neurons(layer), 7)
    with edits.neurons_off(lm.arch, layer, chosen):
        expected = logits(lm.model)
    where = torch.zeros(IDS.shape, dtype=torch.bool)
    where[:, 4:] = True
    with edits.neurons_off(lm.arch, layer, chosen, where):
        partly = logits(lm.model)
    before = measured(lm, layer)
    moved = copy.deepcopy(lm.model)
    accelerate.cpu_offload(moved, execution_device=torch.device("cpu"))
    spread = LanguageModel(moved, Architecture(moved), None, {})
    assert mixture_of(moved, layer)[2].down_proj.is_meta
    assert measured(spread, layer) == before
    with edits.neurons_off(spread.arch, layer, chosen):
        assert torch.equal(logits(moved), expected)
    with edits.neurons_off(spread.arch, layer, chosen, where):
        assert torch.equal(logits(moved), partly)
    assert torch.equal(logits(moved), logits(lm.model))


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])
def test_nothing_more_is_copied_in_a_pass(model_type):
    """On a device, without float64, than by transformers itself; what is found is as on the CPU."""
    lm, layer = planted(model_type)
    lm.model.set_experts_implementation("batched_mm")
    here, begun, inside = measured(lm, layer), [], []
    chosen = range(3, lm.arch.n_neurons(layer), 7)
    where = torch.zeros(IDS.shape, dtype=torch.bool)
    where[:, 4:] = True
    with pretend.device() as transfers:
        moved = copy.deepcopy(lm.model).to(pretend.DEVICE)
        there = LanguageModel(moved, Architecture(moved), None, {})
        moved.base_model.register_forward_pre_hook(lambda *_args: begun.append(transfers.copy()))
        moved.base_model.register_forward_hook(lambda *_args: inside.append(transfers - begun[-1]), always_call=True)
        hooks.forward(there, IDS)
        rows, check = measured(there, layer)
        for at in (None, where):
            with edits.neurons_off(there.arch, layer, chosen, at):
                hooks.forward(there, IDS)
    assert len(inside) == 5
    assert all(of_pass == inside[0] for of_pass in inside)
    expected = {row.name: row.contribution for row in here[0]}
    assert {row.name: row.contribution for row in rows} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert check.sum + check.bias == pytest.approx(check.output, rel=1e-5)
