"""A vector that every prefix begins with: its keys and values are computed once."""

from pathlib import Path

import pytest
import torch
from llm_world import DEPTH, HANDLED, HD, HEADS, reference, vectors
from torch.utils.flop_counter import FlopCounterMode

from simv0.llm.fast import FastStack, disagreement, outputs_of
from simv0.llm.load import load_llm


@pytest.mark.parametrize("case", HANDLED)
def test_a_first_vector_computed_once_agrees_with_one_in_every_prefix(case: str) -> None:
    fast = FastStack(reference(HANDLED[case]), torch.float32)
    first = vectors(1, 1)[0, 0]
    kept = fast.keep(first)
    for tokens in (1, 6, 19):  # longer than the windows: those positions no longer see the first
        x = vectors(batch=3, tokens=tokens)
        wanted = outputs_of(lambda x: fast(torch.cat([first.expand(len(x), 1, -1), x], 1)), x)
        assert disagreement(lambda x: fast(x, kept), wanted, x) < 2e-6


def test_a_bos_costs_no_product(tmp_path: Path) -> None:
    """Of a batch; and another BOS is another result, a lone prefix holds it all."""
    reference(HANDLED["llama"]).save_pretrained(tmp_path)
    llm, x = load_llm(str(tmp_path)), vectors(batch=5, tokens=7)
    for bos in vectors(1, 2)[0]:
        x[:, 0] = bos
        wanted = llm(x)
        torch.testing.assert_close(llm(x, bos), wanted, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(llm(x[:1], bos), wanted[:1], rtol=2e-6, atol=2e-6)
    flops = []
    for prefix, first in ((x, bos), (x[:, 1:], None)):
        with FlopCounterMode(display=False) as counted:
            llm(prefix, first)
        flops.append(counted.get_total_flops())
    one_key_more = 2 * 2 * 5 * HEADS * HD * ((DEPTH - 1) * 6 + 1)
    assert flops[0] == flops[1] + one_key_more
