"""llama.cpp for Python, with a mixture-of-experts model's experts in host memory.

Examples
--------
>>> import moebind
>>> from moebind import ContextParams, Model, ModelParams
>>> with Model.load_from_file("moe.gguf", ModelParams().with_cpu_moe_all()) as model:
...     with model.new_context(ContextParams(n_ctx=2048)) as context:
...         for piece in context.generate("Once upon a time", max_tokens=64):
...             print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from typing import Any

import lazy_loader

from moebind._core import log as _log  # noqa: F401  # with libllama: what cannot work says so here
from moebind._core.version import __version__ as __version__

_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        from moebind._core.other_names import refuse_module_name

        refuse_module_name(name, __all__)
    value = globals()[name] = _import(name)
    return value
