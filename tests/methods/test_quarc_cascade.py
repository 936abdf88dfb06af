"""Cascaded layer correction against the definition typed out, in value and in gradient, and what it must leave alone."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastqat._errors import InputError
from fastqat.methods import CascadedCorrection
from fastqat.nn import quantize, share_weight_quant

from .quarc_nets import DISTRIBUTIONS, Block, Net, assert_same_gradients, gradients, hooks_of, inputs, run, typed_divergence

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("distribution, reduction", [*itertools.product(DISTRIBUTIONS, ("elements", "rows"))])
def test_value_and_gradient_are_those_of_the_definition(distribution, reduction):
    student, teacher = Net(0), Net(1)
    found, grads = run(student, teacher, distribution=distribution, reduction=reduction)
    wanted_of = copy.deepcopy(student)
    wanted_of.load_state_dict(Net(0).state_dict())
    first, second, logits = wanted_of.outputs(inputs())
    with torch.no_grad():
        first_f, second_f, taught = teacher.eval().outputs(inputs())
    correction = sum(typed_divergence(s, t, distribution, reduction) for s, t in ((first, first_f), (second, second_f)))
    torch.testing.assert_close(found.correction.double(), correction, rtol=1e-5, atol=1e-10)
    assert torch.equal(found.logits, logits) and torch.equal(found.teacher_logits, taught)
    wanted_of.zero_grad()
    (F.cross_entropy(logits, taught.softmax(1)) + 3 * correction.float()).backward()
    assert_same_gradients(grads, gradients(wanted_of))
    assert all(p.grad is None for p in teacher.parameters()) and hooks_of(student, teacher) == 0


def test_the_teacher_is_fed_by_the_student_when_asked():
    student, teacher = Net(0), Net(1)
    found, grads = run(student, teacher, block_input="student", distribution="flat", reduction="rows")
    twin = Net(0)
    first, second, logits = twin.outputs(inputs())
    with torch.no_grad():
        fed = teacher.eval().layers[0](twin.stem(inputs())), teacher.layers[1](first)
        taught = teacher(inputs())
    correction = sum(typed_divergence(s, t, "flat", "rows") for s, t in zip((first, second), fed, strict=True))
    torch.testing.assert_close(found.correction.double(), correction, rtol=1e-5, atol=0)
    twin.zero_grad()
    (F.cross_entropy(logits, taught.softmax(1)) + 3 * correction.float()).backward()
    assert_same_gradients(grads, gradients(twin))
    assert hooks_of(student, teacher) == 0


@pytest.mark.parametrize("block_input", ["own", "student"])
@pytest.mark.parametrize("distribution", ["channel", "spatial", "mse"])
def test_each_blocks_correction_stays_in_the_block_when_asked(distribution, block_input):
    """Against each block run again on its own input, cut off from what is before; with dropout and running statistics."""
    options = {"distribution": distribution, "block_input": block_input}
    student, teacher = Net(0, dropout=0.5), Net(1)
    joint, _ = run(copy.deepcopy(student), teacher, **options)
    twin = copy.deepcopy(student)
    found, grads = run(student, teacher, grad="block", **options)
    torch.testing.assert_close(found.correction, joint.correction, rtol=0, atol=0)
    torch.manual_seed(1)
    logits = twin(inputs())
    assert torch.equal(logits, found.logits)
    F.cross_entropy(logits, found.teacher_logits.softmax(1)).backward()
    statistics = {name: value.clone() for name, value in twin.named_buffers()}
    x, x_f = twin.stem(inputs()).detach(), teacher.stem(inputs()).detach()
    for place in range(2):
        out = twin.layers[place](x)
        out_f = teacher.layers[place](x if block_input == "student" else x_f).detach()
        (3 * typed_divergence(out, out_f, distribution, "elements")).backward()
        x, x_f = out.detach(), out_f
    assert_same_gradients(grads, gradients(twin))
    assert all(torch.equal(value, statistics[name]) for name, value in student.named_buffers())


def test_a_gradient_hook_of_a_parameter_sees_the_whole_gradient_once():
    student, teacher = Net(0), Net(1)
    _, plain = run(student, teacher, grad="block")
    hooked, calls = Net(0), []
    weight = hooked.layers[0].conv.weight
    weight.register_hook(lambda grad: calls.append(1) or 2 * grad)
    _, grads = run(hooked, teacher, grad="block")
    assert len(calls) == 1 and len(weight._backward_hooks) == 1
    torch.testing.assert_close(grads["layers.0.conv.weight"], 2 * plain["layers.0.conv.weight"])


def test_block_gradients_of_a_model_without_any_to_give():
    student = Net(0)
    student.layers[0].requires_grad_(False)
    _, grads = run(student, Net(1), grad="block")
    assert grads["layers.0.conv.weight"] is None and grads["layers.1.conv.weight"] is not None
    with torch.no_grad():
        assert CascadedCorrection(student.eval(), Net(1), grad="block")(inputs()).correction > 0


def test_weights_of_the_samples():
    student, teacher, weights = Net(0).eval(), Net(1), torch.tensor([2.0, 0.0, 0.0, 1.0, 3.0, 0.0])
    clc = CascadedCorrection(student, teacher, distribution="spatial")
    each = torch.stack([clc(x[None]).correction for x in inputs()])
    torch.testing.assert_close(clc(inputs(), weights=weights).correction, (each * weights).mean())
    torch.testing.assert_close(clc(inputs()).correction, each.mean())


def test_an_equal_student_costs_nothing_and_gets_no_gradient():
    teacher = Net(0).eval()
    for distribution in DISTRIBUTIONS:
        student = copy.deepcopy(teacher)
        clc = CascadedCorrection(student, teacher, distribution=distribution)
        logits, taught, correction = clc(inputs())
        assert correction.item() == 0.0
        clc.weighted(correction, F.cross_entropy(logits, taught.softmax(1))).backward()
        assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_quantized_students_and_convolutions():
    teacher = Net(0).eval()
    student = quantize(teacher, "w2a32", skip=())
    clc = CascadedCorrection(student, teacher, layers="convs")
    assert clc.names == ["stem", "layers.0.conv", "layers.0.shortcut", "layers.1.conv", "layers.1.shortcut"]
    run(student, teacher, layers="convs")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("options", [{}, {"grad": "block"}, {"grad": "block", "block_input": "student"}])
def test_a_student_that_quantizes_all_its_weights_at_once(options):
    teacher = Net(1).eval()
    student = quantize(teacher, "w2a32", skip=())
    _, wanted = run(copy.deepcopy(student), teacher, **options)
    _, grads = run(share_weight_quant(student), teacher, **options)
    assert_same_gradients(grads, wanted)


class Twice(Net):
    """The same layer run again, more often for some inputs."""

    def __init__(self, seed, times):
        super().__init__(seed)
        self.layers = nn.Sequential(Block(4, 4))
        self.head, self.times = nn.Linear(4, 5), times

    def forward(self, x):
        x = self.stem(x)
        for _ in range(self.times):
            x = self.layers[0](x)
        return self.head(x.mean((2, 3)))


def test_a_layer_that_runs_twice_is_compared_twice():
    student, teacher = Twice(0, 2).eval(), Twice(1, 2).eval()
    x = inputs()
    a, b = student.stem(x), teacher.stem(x)
    wanted = 0.0
    for _ in range(2):
        a, b = student.layers[0](a), teacher.layers[0](b)
        wanted += typed_divergence(a, b, "channel", "elements")
    torch.testing.assert_close(CascadedCorrection(student, teacher)(x).correction.double(), wanted, rtol=1e-5, atol=0)
    with pytest.raises(InputError, match="'layers.0' ran more often in the student than in the teacher"):
        CascadedCorrection(student, Twice(1, 1))(x)
    with pytest.raises(InputError, match="'layers.0' ran less often in the student than in the teacher"):
        CascadedCorrection(Twice(1, 1), teacher)(x)
    with pytest.raises(InputError, match="'layers.0' ran in no forward"):
        CascadedCorrection(Twice(0, 0), Twice(1, 0))(x)


def test_under_autocast_the_correction_is_fp32():
    student, teacher = Net(0), Net(1)
    for distribution in DISTRIBUTIONS:
        plain, _ = run(student, teacher, distribution=distribution)
        with torch.autocast("cpu", torch.bfloat16):
            found, grads = run(student, teacher, distribution=distribution)
        assert found.logits.dtype == torch.bfloat16 and found.teacher_logits.dtype == found.correction.dtype == torch.float32
        torch.testing.assert_close(found.correction, plain.correction, rtol=0.1, atol=0)
        assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("grad", ["joint", "block"])
def test_a_compiled_student(grad):
    """After a scoring pass, which compiles the model without hooks; nothing is compiled again in the steps that follow the second."""
    student, teacher = Net(0), Net(1)
    _, wanted = run(copy.deepcopy(student), teacher, grad=grad)
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="eager" if grad == "joint" else "aot_eager")
    with torch.no_grad():
        compiled.eval()(inputs())
    compiled.train()
    clc = CascadedCorrection(compiled, teacher, grad=grad)
    assert clc.names == ["layers.0", "layers.1"]
    graphs = []
    for step in range(3):
        logits, taught, correction = clc(inputs())
        student.zero_grad()
        (F.cross_entropy(logits, taught.softmax(1)) + 3 * correction).backward()
        if step == 0:
            assert_same_gradients(gradients(student), wanted)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 2 and graphs[2] == graphs[1]
    torch._dynamo.reset()


def test_a_student_that_was_compiled_without_the_hooks_says_so():
    student = Net(0)
    compiled = torch.compile(student, backend="eager")
    compiled(inputs())
    with pytest.raises(InputError, match="'layers.0' ran in no forward.*compiled before"):
        CascadedCorrection(compiled, Net(1))(inputs())
    torch._dynamo.reset()


OPTIONS = {
    "distribution": ({"distribution": "softmax"}, "distribution must be one of 'channel', 'spatial', 'flat', 'mse'; got 'softmax'"),
    "reduction": ({"reduction": "mean"}, "reduction must be one of 'elements', 'rows'; got 'mean'"),
    "balance": ({"balance": True}, "balance must be one of 'fixed', 'auto'; got True"),
    "weight": ({"weight": 0}, "weight must be a finite number above 0; got 0"),
    "ratio": ({"ratio": float("inf")}, "ratio must be a finite number above 0; got inf"),
    "teacher": ({"teacher": torch.zeros(3, 5)}, "teacher must be a torch.nn.Module, whose layers are compared; got Tensor"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_refused(name):
    options, message = OPTIONS[name]
    with pytest.raises(InputError, match=message):
        CascadedCorrection(Net(0), **{"teacher": Net(1), **options})


def test_one_model_is_not_its_own_teacher():
    model = Net(0)
    with pytest.raises(InputError, match="student and teacher are one model"):
        CascadedCorrection(model, model)
