"""Memory by device and purpose."""

from __future__ import annotations

from conftest import SMALL
from moebind import Context, Model


def test_memory_breakdown(context: Context, moe: Model) -> None:
    breakdown = context.memory_breakdown()
    assert breakdown.device_bytes == 0
    assert breakdown.host.model >= moe.size * 0.9
    assert breakdown.host.context > 0
    assert breakdown.host_bytes == breakdown.host.total == sum(buffer.total for buffer in breakdown.host.buffers)
    assert "Host" in str(breakdown)
    assert breakdown.reduction_vs(breakdown) == 0.0


def test_a_breakdown_has_what_is_free(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        host = context.memory_breakdown().host
    assert 0 < host.free <= host.capacity
