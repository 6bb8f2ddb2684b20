"""Whether int8 sums of a CPU saturate, so that its files need another recipe.

x86 without VNNI multiplies uint8 activations by int8 weights with ``vpmaddubsw``: two products are added into 16 bits
and cut at 32,767, silently. Figures on an AVX2-only CPU, x-sdd, tf_efficientnet_lite0 at 128 px, int8 against fp32:
ONNX Runtime U8S8 KL 0.0905 (top-1 97.3 %), here U8U8 0.0057 (99.5 %), 3 % slower; OpenVINO 8-bit activations 0.105
(97.3 %), NNCF's FIRST_LAYER fix 0.064 (98.3 %), its ENABLE 0.226 (94.4 %), here 7-bit activations 0.028 (98.8 %), as
fast. LiteRT (XNNPACK) sums in 32 bits: 0.0083 (99.3 %).
"""

from __future__ import annotations

from typing import Any

X86 = ("x86_64", "AMD64", "i686")
EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def saturates(card: dict[str, Any]) -> bool:
    """Of a device card (``ondevice.facts.device_card``): x86 and none of the instructions that sum in 32 bits."""
    return card.get("machine") in X86 and EXACT.isdisjoint(card.get("cpu_flags") or ())
