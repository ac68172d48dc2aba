"""Where the weights go, by name: what is compared."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory, parse_size, show_size
from moebind.files.gguf import Gguf
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ModelParams
from moebind.params.tensor_overrides import written_rules

__all__ = ["Placement", "default_placements"]

_FORMS = "all, cpu-moe, n-cpu-moe=N, n-gpu-layers=N, none, ot=PATTERN=TARGET, moe-cache=SIZE, fit=SIZE"


@dataclass(frozen=True)
class Placement:
    """One way to place a model, with a name.

    Parameters
    ----------
    name
        What the rows of a report call it.
    model_params
        How the model is loaded. Devices that are left open are those of the benchmark.
    memory
        A budget of device memory in bytes, or a text such as ``"8GiB"``: :func:`moebind.fit` then finds the rest of the
        parameters, in the process that measures. None: the parameters are taken as they are.
    moe_cache
        Bytes of a cache of experts on the device, or a text such as ``"4GiB"``, as for
        :attr:`moebind.ContextParams.moe_cache_size`; None: as ``context_params`` of the benchmark has it.

    Examples
    --------
    >>> Placement("the first half", ModelParams().with_n_cpu_moe(16))
    >>> Placement("8 GiB", memory="8GiB")
    """

    name: str
    model_params: ModelParams = field(default_factory=ModelParams)
    memory: int | str | None = None
    moe_cache: int | str | None = None

    def __post_init__(self) -> None:
        if not checks.text("name", self.name).strip() or "\n" in self.name:
            raise ValueError(f"name is {shown(self.name)}; it takes a line of text")
        if not isinstance(self.model_params, ModelParams):
            raise TypeError(f"model_params is {shown(self.model_params)}; it takes ModelParams")
        if self.model_params.vocab_only or self.model_params.no_alloc:
            raise ValueError("model_params has vocab_only or no_alloc: such a model cannot compute")
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_memory("memory", self.memory, low=1))
        if self.moe_cache is not None:
            object.__setattr__(self, "moe_cache", parse_memory("moe_cache", self.moe_cache))

    @classmethod
    def parse(cls, text: str, model_params: ModelParams | None = None) -> Placement:
        """Read a placement as the command line takes it.

        Parameters
        ----------
        text
            One of:

            - ``"all"``: everything on the devices;
            - ``"cpu-moe"``: all experts in host memory (``with_cpu_moe_all``);
            - ``"n-cpu-moe=N"``: those of the first N layers (``with_n_cpu_moe``);
            - ``"n-gpu-layers=N"``: N layers on the devices, counted from the last;
            - ``"none"``: no layers on the devices;
            - ``"ot=PATTERN=TARGET"``: tensors whose names match go to a device or buffer type; several rules have
              commas between them, and ``"ot=experts:0-11=CPU"`` goes by layers, as for ``--override-tensor``;
            - ``"moe-cache=SIZE"``: all experts in host memory, and a cache for them on the device
              (:attr:`moebind.ContextParams.moe_cache_size`), without weights that are repacked for the CPU;
            - ``"fit=SIZE"``: what :func:`moebind.fit` finds for so much memory, such as ``"fit=8GiB"``.
        model_params
            What else the model is loaded with.

        Raises
        ------
        ValueError
            If it is none of these.
        """
        checks.text("placement", text)
        params = ModelParams() if model_params is None else model_params
        if not isinstance(params, ModelParams):
            raise TypeError(f"model_params is {shown(params)}; it takes ModelParams")
        kind, _, value = text.partition("=")
        if text == "all":
            return cls("all on the device", params)
        if text == "none":
            return cls("nothing on the device", params.with_n_gpu_layers(0))
        if text == "cpu-moe":
            return cls("experts in host memory", params.with_cpu_moe_all())
        if kind in {"n-cpu-moe", "n-gpu-layers"}:
            if re.fullmatch(r"\d{1,9}", value, re.ASCII) is None:
                raise ValueError(f"placement is {shown(text)}; {kind} takes a number of layers, such as {kind}=12")
            if kind == "n-gpu-layers":
                return cls(f"n_gpu_layers({int(value)})", params.with_n_gpu_layers(int(value)))
            return cls(f"n_cpu_moe({int(value)})", params.with_n_cpu_moe(int(value)))
        if kind == "ot":
            rules = written_rules("placement ot", value)
            name = ", ".join(f"{rule.pattern} on {rule.target}" for rule in rules)
            return cls(name, params.with_tensor_overrides([*params.tensor_overrides, *rules]))
        if kind == "moe-cache":
            size = parse_size("the size of moe-cache", value, low=1)
            plain = params.with_use_extra_bufts(False).with_cpu_moe_all()
            return cls(f"experts in host memory, cache of {show_size(size)}", plain, moe_cache=size)
        if kind == "fit":
            size = parse_size("the size of fit", value, low=1)
            return cls(f"fit({show_size(size)})", params, size)
        raise ValueError(f"placement is {shown(text)}; it takes one of {_FORMS}")


@explained_with_fields()
def default_placements(
    path: str | os.PathLike[str], model_params: ModelParams | None = None, *, n_cpu_moe: SupportsIndex | None = None
) -> tuple[Placement, ...]:
    """Everything on the device, experts of some layers in host memory, all experts in host memory.

    Parameters
    ----------
    path
        The model's file, or the first one of a split model.
    model_params
        What else it is loaded with.
    n_cpu_moe
        Of how many layers; None: of half of them.

    Returns
    -------
    tuple[Placement, ...]
        Of a model without experts: everything on the device, and half of its layers.
    """
    header = Gguf.from_file(checks.path("path", path))
    architecture = header.get("general.architecture", "")
    layers, experts = (header.get(f"{architecture}.{key}", 0) for key in ("block_count", "expert_count"))
    half = int(layers) // 2 if isinstance(layers, int) else 1
    if not experts:
        return (Placement.parse("all", model_params), Placement.parse(f"n-gpu-layers={max(half, 1)}", model_params))
    count = max(half, 1) if n_cpu_moe is None else checks.integer("n_cpu_moe", n_cpu_moe, 1, 4096)
    texts = ("all", f"n-cpu-moe={count}", "cpu-moe")
    return tuple(Placement.parse(text, model_params) for text in texts)


def checked(placements: Sequence[Placement | str] | None, path: str) -> tuple[Placement, ...]:
    """Placements, of which texts are parsed, with different names."""
    if placements is None:
        return default_placements(path)
    if isinstance(placements, (str, Placement)) or not isinstance(placements, Sequence):
        raise TypeError(f"placements is {shown(placements)}; it takes a list, such as ['all', 'cpu-moe']")
    found = []
    for each in placements:
        if not isinstance(each, (str, Placement)):
            raise TypeError(f"placements holds {shown(each)}; it takes Placement objects, or texts for Placement.parse")
        found.append(Placement.parse(each) if isinstance(each, str) else each)
    if not found:
        raise ValueError("placements is empty; it takes at least one")
    names = [each.name for each in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"placements has {', '.join(sorted(twice))} more than once: give each a name of its own")
    return tuple(found)
