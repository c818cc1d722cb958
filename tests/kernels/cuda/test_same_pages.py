"""The device kernels and the CPU kernels share the bytes of a page and what they mean."""

from __future__ import annotations

import numpy as np
import torch

from windlass_kernels import quantized_pages
from windlass_kernels.cuda import cache, emulate, samples
from windlass_kernels.page_format import PAGE_TOKENS, PageFormat


def test_both_fill_a_page_with_the_same_bytes() -> None:
    sample = samples.kv_quantize(samples.Maker(21), 3, 2, 64)
    sample.inputs["tails"][1] = 1
    pages = torch.zeros(sample.inputs["pool"].shape, dtype=torch.uint8)
    tails = (torch.from_numpy(sample.inputs[name]) for name in ("key_tails", "value_tails"))
    which = (torch.from_numpy(sample.inputs[name]) for name in ("pages", "tails"))

    quantized_pages.fill(pages, next(which), *tails, next(which), PageFormat(4, 64))
    (pool,) = emulate.run(sample.op, sample.inputs)

    assert (pool == pages.numpy()).all()


def test_both_attend_to_the_same_pages_with_the_same_result() -> None:
    """The CPU kernel takes a query that is turned already and turns it back; the device kernel turns it once."""
    sample = samples.paged_attention(samples.Maker(22), (200, 70), 4, 2, 64, pages_per_piece=2, interleaved=1)
    arrays = {name: torch.from_numpy(array) for name, array in sample.inputs.items()}
    positions, cosines, sines = (sample.inputs[name] for name in ("positions", "cosines", "sines"))
    turned = np.stack(
        [
            cache.turn(query, cosines[position], sines[position], interleaved=1)
            for query, position in zip(sample.inputs["queries"], positions, strict=True)
        ]
    )
    bases = torch.arange(arrays["page_table"].shape[1]) * PAGE_TOKENS

    expected = quantized_pages.attention(
        torch.from_numpy(turned.astype(np.float32)),
        arrays["pool"],
        arrays["key_tails"],
        arrays["value_tails"],
        arrays["page_table"],
        arrays["tails"],
        torch.arange(2, dtype=torch.int32),
        arrays["positions"],
        arrays["cosines"][bases].contiguous(),
        arrays["sines"][bases].contiguous(),
        float(sample.inputs["scale"][0]),
        PageFormat(4, 64),
    )
    partials, summaries = emulate.run(sample.op, sample.inputs, sample.attributes)
    (result,) = emulate.run(cache.ATTENTION_MERGE, {"partials": partials, "summaries": summaries})

    np.testing.assert_allclose(result, expected.numpy(), atol=4e-3)
