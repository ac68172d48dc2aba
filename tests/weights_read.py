"""What a context reads of a model's weights while it computes a token, from the nodes of its graph."""

from __future__ import annotations

import re
from pathlib import Path

from moebind import Batch, ContextParams, DeviceType, EvalTensor, Gguf, Model, ModelParams, ffi, lib

__all__ = ["Counter", "computed", "counted"]

_ONLY_DESCRIBE = {"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"}
#: The name of what was copied from host memory for a node that a device computes.
_COPY = re.compile(r"[^#]+#(.+?)( \(\w+\))?#\d+")


class Counter:
    """An eval callback that adds up the bytes of weights that the nodes of a graph read, by device.

    ``users`` has what is done with each weight.
    """

    def __init__(self, path: Path) -> None:
        self.weights = set(Gguf.from_file(path).tensors)
        self.reads: dict[str, int] = {}
        self.users: dict[str, set[str]] = {}

    def __call__(self, node: EvalTensor, ask: bool) -> bool:
        # Branches for batches of another kind are in the graph, too.
        done = node.native.flags & lib.GGML_TENSOR_FLAG_COMPUTE
        if ask and done and node.op not in _ONLY_DESCRIBE:
            for at, source in enumerate(node.native.src):
                if source != ffi.NULL:
                    self._add(node, at, source)
        return False

    def _add(self, node: EvalTensor, at: int, source: object) -> None:
        base = source
        while base.view_src != ffi.NULL:  # type: ignore[attr-defined]
            base = base.view_src  # type: ignore[attr-defined]
        weight = ffi.string(base.name).decode()  # type: ignore[attr-defined]
        copied = _COPY.fullmatch(weight)
        weight = copied[1] if copied else weight
        if weight not in self.weights:
            return
        self.users.setdefault(weight, set()).add(node.op)
        nbytes = int(lib.ggml_nbytes(source))
        others = node.native.src
        if node.op == "MUL_MAT_ID" and at == 0:
            nbytes = nbytes * int(others[2].ne[0]) // int(source.ne[2])  # type: ignore[attr-defined]
        elif node.op == "ADD_ID" and at == 1:
            nbytes = nbytes * int(others[2].ne[0]) // int(source.ne[1])  # type: ignore[attr-defined]
        elif node.op == "GET_ROWS" and at == 0:
            rows = int(lib.ggml_nrows(source))
            nbytes = nbytes * int(lib.ggml_nelements(others[1])) // rows
        device = lib.ggml_backend_buft_get_device(lib.ggml_backend_buffer_get_type(base.buffer))  # type: ignore[attr-defined]
        on_host = copied or device == ffi.NULL or lib.ggml_backend_dev_type(device) == DeviceType.CPU
        name = "Host" if on_host else ffi.string(lib.ggml_backend_dev_name(device)).decode()
        self.reads[name] = self.reads.get(name, 0) + nbytes


def computed(path: Path, params: ModelParams, context: ContextParams) -> dict[str, int]:
    """Bytes that one token reads, by device."""
    return counted(path, params, context).reads


def counted(path: Path, params: ModelParams, context: ContextParams) -> Counter:
    """What one token reads, and what is done with it."""
    counter = Counter(path)
    with (
        Model.load_from_file(path, params) as model,
        model.new_context(context.with_eval_callback(counter)) as live,
    ):
        live.decode(Batch.get_one([1, 5, 6, 7]))
        counter.reads.clear()
        counter.users.clear()
        live.decode(Batch.get_one([8]))
        live.synchronize()
    return counter
