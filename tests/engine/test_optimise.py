"""One optimiser step against AdamW by hand, its clipping, and errors that leave the parameters as they were."""

import math

import pytest
import torch

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.engine.optimise import NonFiniteLossError, Step, Stepper


def parameter(*values):
    return torch.tensor(values, requires_grad=True)


def stepper(*parameters, rate=0.1, decay=0.0, clip_norm=1e9, precision="float32"):
    groups = [{"params": list(parameters), "lr": rate, "weight_decay": decay}]
    return Stepper(groups, device=torch.device("cpu"), precision=precision, clip_norm=clip_norm)


def test_the_first_step_of_adamw_moves_by_the_rate_against_the_gradient_after_decay():
    """Moments corrected for their start give gradient / |gradient|; decay takes rate × decay of the value."""
    x = parameter(2.0, -4.0)
    step = stepper(x, rate=0.1, decay=0.25).take(1, "images [7]", [("image 7", {"loss": 3 * x[0] - 5 * x[1]})])
    torch.testing.assert_close(x.detach(), torch.tensor([2.0 * (1 - 0.025) - 0.1, -4.0 * (1 - 0.025) + 0.1]))
    assert (step.step, step.learning_rate) == (1, 0.1)
    assert step.gradient_norm == pytest.approx(math.hypot(3, 5))
    assert step.losses == {"loss": pytest.approx(26.0)}


def test_losses_of_all_parts_and_names_add_up():
    x = parameter(1.0)
    parts = [("image 1", {"token": 2 * x[0], "box": 3 * x[0]}), ("image 2", {"token": 5 * x[0]})]
    step = stepper(x).take(1, "images [1, 2]", parts)
    assert step.losses == {"token": 7.0, "box": 3.0}
    assert step.loss == 10.0
    assert step.gradient_norm == pytest.approx(10.0)


def test_the_graph_of_a_part_is_gone_before_the_next_one_is_asked_for():
    x, order = parameter(1.0), []

    def parts():
        for name in ("first", "second"):
            order.append((name, None if x.grad is None else x.grad.item()))
            yield name, {"loss": 2 * x[0]}

    stepper(x).take(1, "two", parts())
    assert order == [("first", None), ("second", 2.0)]


def test_gradients_are_clipped_together_and_the_norm_is_that_before():
    x, y = parameter(3.0), parameter(4.0)
    step = stepper(x, y, clip_norm=0.5).take(1, "one", [("one", {"loss": 3 * x[0] + 4 * y[0]})])
    assert step.gradient_norm == pytest.approx(5.0)
    assert (x.grad.item(), y.grad.item()) == (pytest.approx(0.3), pytest.approx(0.4))


def test_each_step_starts_without_the_gradients_of_the_last():
    x = parameter(1.0)
    taker = stepper(x)
    norms = [taker.take(n, "one", [("one", {"loss": 2 * x[0]})]).gradient_norm for n in (1, 2)]
    assert norms == [2.0, 2.0]


def test_groups_keep_their_own_rates_and_the_first_one_is_reported():
    x, y = parameter(0.0), parameter(0.0)
    groups = [{"params": [x], "lr": 0.5}, {"params": [y], "lr": 0.25}]
    taker = Stepper(groups, device=torch.device("cpu"), precision="float32", clip_norm=1e9)
    step = taker.take(1, "one", [("one", {"loss": x[0] + y[0]})])
    assert (x.item(), y.item()) == (pytest.approx(-0.5), pytest.approx(-0.25))
    assert step.learning_rate == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_part_step_and_losses_and_moves_nothing(value):
    x = parameter(1.0)
    parts = [("image 7 (a.jpg)", {"token": x[0], "box": x[0] * value})]
    with pytest.raises(NonFiniteLossError, match=r"loss of image 7 \(a\.jpg\) is not finite in step 4: token 1, box "):
        stepper(x).take(4, "images [7]", parts)
    assert x.item() == 1.0
    assert issubclass(NonFiniteLossError, GlipAdaptError)
    assert issubclass(NonFiniteLossError, ArithmeticError)


def test_the_first_part_with_a_loss_that_is_not_finite_is_named():
    x = parameter(1.0)
    parts = [(f"image {i}", {"token": x[0] * value}) for i, value in enumerate((1.0, math.nan, math.inf))]
    with pytest.raises(NonFiniteLossError, match="loss of image 1 is not finite in step 1: token nan"):
        stepper(x).take(1, "three images", parts)
    assert x.item() == 1.0


def test_a_gradient_that_is_not_finite_under_a_finite_loss_moves_nothing():
    x = parameter(0.0)
    with pytest.raises(NonFiniteLossError, match=r"gradient of step 2 is not finite \(inf\).*batch holds images \[3\]"):
        stepper(x).take(2, "images [3]", [("image 3", {"loss": x[0].sqrt()})])  # the slope at zero is infinite
    assert x.item() == 0.0


def test_an_overflow_in_float16_is_skipped_and_halves_the_scale_until_it_is_one():
    x = parameter(1.0)
    taker = stepper(x, precision="float16")
    scale = taker.scaler.get_scale()
    found = taker.take(1, "one", [("one", {"loss": x[0] * 1e36})])  # times 65536 it is beyond float32
    assert found.gradient_norm is None
    assert (x.item(), taker.scaler.get_scale()) == (1.0, scale / 2)
    finite = taker.take(2, "one", [("one", {"loss": 3 * x[0]})])
    assert finite.gradient_norm == pytest.approx(3.0)  # the scale is taken out again
    assert x.item() == pytest.approx(0.9)
    taker.scaler.update(1.0)
    with pytest.raises(NonFiniteLossError, match="gradient of step 3"):
        taker.take(3, "one", [("one", {"loss": (x[0] - x[0].detach()).sqrt()})])


def test_the_loss_of_a_step_is_the_sum_of_its_losses():
    assert Step(1, {"token": 0.5, "box": 0.25}, 0.1, None, 0.0).loss == 0.75
