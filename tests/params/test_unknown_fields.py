"""Fields that parameters do not have: each answer says what to write."""

from __future__ import annotations

import copy

import pytest

import moebind
from moebind import ContextParams, ModelParams


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (ModelParams, {"n_gpu_layer": 3}, r"no parameter 'n_gpu_layer'\. Write ModelParams\(n_gpu_layers=3\)"),
        (ContextParams, {"nctx": 512}, r"Write ContextParams\(n_ctx=512\)"),
        (ModelParams, {"use_mmap": True}, r"Write ModelParams\(\)\.with_use_mmap\(True\)"),
        (ModelParams, {"n_ctx": 512}, r"'n_ctx': ContextParams has\. Write ContextParams\(n_ctx=512\)"),
        (ContextParams, {"n_gpu_layers": 1}, r"ModelParams has\. Write ModelParams\(n_gpu_layers=1\)"),
        (ContextParams, {"n_ctx": 512, "zzz": 1}, "ContextParams has no parameter 'zzz'$"),
        (ModelParams, {"cpu_moe": True}, r"'cpu_moe'\. Write ModelParams\(\)\.with_cpu_moe_all\(\)$"),
        (ContextParams, {"cpu_moe": True}, r"ModelParams has\. Write ModelParams\(\)\.with_cpu_moe_all\(\)$"),
        (ContextParams, {"flash_attn": True}, r"Write ContextParams\(flash_attn_type=FlashAttnType\.ENABLED\)$"),
        (ContextParams, {"flash_attn": False}, r"Write ContextParams\(flash_attn_type=FlashAttnType\.DISABLED\)$"),
        (ContextParams, {"flash_attn": "auto"}, r"Write ContextParams\(flash_attn_type=FlashAttnType\.AUTO\)$"),
        (
            ContextParams,
            {"flash_attn": 3.5},
            r"Write ContextParams\(flash_attn_type=\.\.\.\): flash_attn_type is 3\.5; it",
        ),
        (
            ContextParams,
            {"cache_type_k": "q8_0"},
            r"ContextParams\(type_k=\.\.\.\): type_k is 'q8_0'; .*GgmlType\.Q8_0$",
        ),
        (ContextParams, {"ctx_size": -3}, r"Write ContextParams\(n_ctx=\.\.\.\): n_ctx is -3; it takes"),
        (ContextParams, {"moe_cache": "4GiB"}, r"Write ContextParams\(moe_cache_size='4GiB'\)$"),
        (ContextParams, {"logits_all": True}, r"no parameter 'logits_all'\. Here it is batch\.add_sequence"),
        (ContextParams, {"seed": 1}, r"no parameter 'seed'\. Here it is the seed of generate\(\)"),
        (ContextParams, {"verbose": False}, r"no parameter 'verbose'\. Here it is moebind\.set_log"),
        (
            ModelParams,
            {"chat_format": "chatml"},
            r"no parameter 'chat_format'\. Here it is template='chatml'|template=NAME",
        ),
        (ModelParams, {"num_gpu": 3}, r"'num_gpu'\. Write ModelParams\(n_gpu_layers=3\)$"),
        (ModelParams, {"num_ctx": 512}, r"ContextParams has\. Write ContextParams\(n_ctx=512\)$"),
        (ModelParams, {"device_map": "auto"}, r"'device_map'\. Here it is moebind\.fit\(path\), whose model_params"),
        (ContextParams, {"n_parallel": 2}, r"'n_parallel'\. Write ContextParams\(n_seq_max=2\)$"),
        (ModelParams, {"lora_path": "x"}, r"context\.set_lora_adapters"),
    ],
)
def test_what_to_write_instead(
    kind: type[ModelParams] | type[ContextParams], given: dict[str, object], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        kind(**given)  # type: ignore[arg-type]


def test_what_there_is_can_still_be_made_and_copied() -> None:
    for params in (ModelParams(n_gpu_layers=3), ContextParams(n_ctx=512)):
        assert copy.copy(params) == copy.deepcopy(params) == params


@pytest.mark.parametrize(
    ("params", "name", "said"),
    [
        (
            ModelParams(),
            "with_cpu_moe",
            r"^'ModelParams' object has no attribute 'with_cpu_moe'\. Here it is with_cpu_moe_all",
        ),
        (ContextParams(), "with_cpu_moe", r"Here it is with_cpu_moe_all\(\) of ModelParams"),
        (ContextParams(), "with_flash_attn", r"Here it is with_flash_attn_type"),
        (ContextParams(), "with_seed", r"Here it is the seed of generate"),
        (ContextParams(), "verbose", r"Here it is moebind\.set_log"),
        (ModelParams(), "with_nothing", "has no attribute 'with_nothing'$"),
    ],
)
def test_methods_and_attributes_that_there_are_not(params: object, name: str, said: str) -> None:
    with pytest.raises(AttributeError, match=said) as raised:
        getattr(params, name)
    assert (raised.value.name, raised.value.obj) == (name, params)
    assert not hasattr(params, name)


def test_what_is_told_to_write_can_be_written() -> None:
    for given in ({"flash_attn": value} for value in (True, False, "on", "off", "auto")):
        with pytest.raises(TypeError) as raised:
            ContextParams(**given)  # type: ignore[arg-type]
        written = str(raised.value).partition("Write ")[2]
        assert isinstance(eval(written, vars(moebind)), ContextParams)  # noqa: S307
