"""How long a context has computed."""

from __future__ import annotations

from states import decode_all

from moebind import Batch, Context


def test_timings(context: Context) -> None:
    decode_all(context, [1, 2, 3])
    context.decode(Batch.get_one([4]))
    context.get_logits_ith(-1)
    timings = context.timings()
    assert (timings.n_p_eval, timings.n_eval) == (3, 1)
    assert timings.t_p_eval_ms > 0
    assert timings.tokens_per_second > 0
    assert "decode 1 tokens" in str(timings)
    context.reset_timings()
    assert context.timings().t_p_eval_ms == 0
