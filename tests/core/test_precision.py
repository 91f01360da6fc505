"""Half precision on CPUs with and without instructions for it."""

import functools
import logging

import pytest
import torch

from glip_adapt.core import precision
from glip_adapt.core.precision import autocast, full_precision, product_dtype

CPU = torch.device("cpu")


@pytest.fixture
def cpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "cpu_gains_from_bfloat16", lambda: False)
    precision._warn_of_slow_products.cache_clear()
    yield
    precision._warn_of_slow_products.cache_clear()


def test_a_cpu_without_instructions_is_named_once(cpu_without_bfloat16, caplog):
    with caplog.at_level(logging.WARNING):
        for wanted in ("float32", "bfloat16", "bfloat16"):
            with autocast(CPU, wanted):
                pass
    assert [record.message.split(" (")[0] for record in caplog.records] == ["This CPU has no instructions for bfloat16"]


def test_a_cpu_with_instructions_is_not_warned_about(monkeypatch, caplog):
    monkeypatch.setattr(precision, "cpu_gains_from_bfloat16", lambda: True)
    with caplog.at_level(logging.WARNING), autocast(CPU, "bfloat16"):
        pass
    assert not caplog.records


@pytest.mark.parametrize(
    ("machine", "instructions", "gains"),
    [
        ("x86_64", (), False),
        ("x86_64", ("_is_avx512_bf16_supported",), True),
        ("AMD64", ("_is_amx_tile_supported",), True),
    ],
)
def test_instructions_are_looked_for(monkeypatch, machine, instructions, gains):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, functools.partial(bool, name in instructions))
    assert precision.cpu_gains_from_bfloat16.__wrapped__() is gains


def test_products_have_the_type_of_the_open_context():
    x = torch.zeros(2)
    assert product_dtype(x) == torch.float32
    with autocast(CPU, "bfloat16"):
        assert product_dtype(x) == torch.bfloat16
        with autocast(CPU, "float32"):
            assert product_dtype(x.double()) == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_the_tensor_itself(dtype):
    x = torch.zeros(2, dtype=dtype)
    assert full_precision(x) is x
    assert full_precision(x.half()).dtype == torch.float32
